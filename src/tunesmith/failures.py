"""What an answer that is not right is called: one vocabulary for every kind of scorer.

The first class that fits names a row's failure, and all that fit are kept. After the ordered error tree of the Berkeley
Function Calling Leaderboard, carried over to other kinds of answers.
"""

FAILURES = {
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
    "hallucinated": "facts",
    "stale": "facts",
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
    "order_only": "shape",
    "normalisation_only": "shape",
}
"""Every class of failure, in the order in which the first one names a row's failure, and the side it stands on:
`shape`, `behaviour`, `reading` (the text has it), `facts` (the text has it not), `code`, `wording`."""


def ordered(labels: set[str]) -> list[str]:
    """Failure classes in the order of FAILURES."""
    return sorted(labels, key=list(FAILURES).index)
