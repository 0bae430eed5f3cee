"""What an answer that is not right is called: one vocabulary for every kind of scorer, and for logs.

The first class that fits names a row's failure, and all that fit are kept. After the ordered error tree of the Berkeley
Function Calling Leaderboard, carried over to other kinds of answers.
"""

from collections.abc import Iterable

FAILURES = {
    "timeout": "shape",
    "empty": "shape",
    "truncated": "shape",
    "loop": "shape",
    "unparseable": "shape",
    "wrapped": "shape",
    "missing_required": "shape",
    "unexpected_key": "shape",
    "wrong_type": "shape",
    "label_surface": "shape",
    "out_of_set": "shape",
    "constraint": "shape",
    "refused": "behaviour",
    "abstained": "behaviour",
    "not_abstained": "behaviour",
    "call_not_wanted": "behaviour",
    "no_call": "behaviour",
    "wrong_count": "behaviour",
    "unknown_function": "behaviour",
    "wrong_function": "behaviour",
    "missing_argument": "behaviour",
    "unexpected_argument": "behaviour",
    "wrong_argument_type": "behaviour",
    "wrong_argument": "behaviour",
    "rule": "shape",
    "stale": "facts",
    "stale_index": "facts",
    "not_retrieved": "facts",
    "hallucinated": "facts",
    "retrieved_not_used": "reading",
    "wrong_in_source": "reading",
    "missing_unavailable": "facts",
    "missing_available": "reading",
    "extra_field": "reading",
    "unknown_citation": "facts",
    "wrong_citation": "reading",
    "not_verbatim": "reading",
    "unsupported": "facts",
    "wrong_label": "reading",
    "wrong_value": "reading",
    "tests_failed": "code",
    "tests_timeout": "code",
    "lint": "shape",
    "wording": "wording",
    "length": "wording",
    "verbose": "shape",
    "order_only": "shape",
    "normalisation_only": "shape",
}
"""Every class of failure, in the order in which the first one names a row's failure, and the side it stands on:
`shape`, `behaviour`, `reading` (the text has it), `facts` (the text has it not), `code`, `wording`."""


STOPPED = frozenset({"timeout", "empty", "truncated", "loop"})
"""Classes of answers that broke off, or never came."""
UNANSWERED = frozenset({"timeout", "empty"})
"""Classes of answers that never came."""
FORM = frozenset(name for name, side in FAILURES.items() if side == "shape")
"""Classes of how an answer came, parses, fits its schema and is said."""


def ordered(labels: Iterable[str]) -> list[str]:
    """Failure classes in the order of FAILURES."""
    return sorted(set(labels), key=list(FAILURES).index)
