"""From the causes to what to do. The rules, each a few lines, in the order in which they are asked.

1. Nothing fails: change nothing. Too few rows fail: say so, and how many rows it would take.
2. Calls that nothing came back from, and references that are wrong, are put right first: no other number can be
   trusted before. Where they rule, nothing else is said.
3. A cause rules where its lower bound is above the upper bound of every other. Where none does, those whose lower
   bounds are above a fifth are answered together; where there are fewer than two of those, more rows are needed.
4. Missing facts: retrieval. A wrong shape: decoding by the schema, shots and a cached prompt where they close four
   fifths of it, else fine-tuning. Both, or passages that are read badly: retrieval and fine-tuning on its passages.
   What neither facts nor shape repair: a bigger base.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tunesmith.diagnose.causes import Cause
from tunesmith.diagnose.shares import rows_to_part
from tunesmith.stats import Interval, rows_needed

ALPHA = 0.025
"""One-sided error rate of each bound: intervals of 95 %."""
FEWEST = 20
"""Failing rows below which nothing is said."""
MATTERS = 0.2
"""Share of the failing rows from which a cause is answered beside others."""
PUT_RIGHT = (Cause.UNANSWERED, Cause.LABEL)
"""What is put right before anything else."""
PUT_RIGHT_FROM = 0.1
"""The share of the failing rows from which."""
CLOSED = 0.8
"""Part of the failures of shape which, closed without training, leaves nothing to train for."""

Action = Literal[
    "nothing",
    "mend_calls",
    "fix_labels",
    "retrieval",
    "prompt",
    "constrained_decoding",
    "fine_tuning",
    "hybrid",
    "bigger_base",
]
Answer = Literal["yes", "no", "undecided"]


@dataclass(frozen=True)
class Found:
    """What the rules weigh."""

    rows: int
    """Judged rows."""
    fail_rate: Interval
    needs: Mapping[Cause, Interval] = field(default_factory=dict)
    """Share of each need among failing rows."""
    closed: Interval | None = None
    """Part of the failures of shape that an aid closes without training."""
    measured: bool = False
    """Whether interventions were tried; else causes are read off labels."""
    passages: bool = False
    """Whether rows came with retrieved passages."""


@dataclass(frozen=True)
class Step:
    """One thing to do, and why."""

    action: Action
    cause: Cause | None
    because: str


@dataclass(frozen=True)
class Prescription:
    """What to do, in order; or that more rows are needed to say it."""

    decided: bool
    steps: tuple[Step, ...]
    fine_tune: Answer
    because: str
    """Why to fine-tune, or why not."""
    failing_rows_needed: int | None = None
    """Where it is not decided: failing rows that would decide it if shares stay; None where no number would."""
    rows_needed: int | None = None
    """All rows among which so many would fail."""

    def as_dict(self) -> dict[str, Any]:
        """As diagnosis.json holds it."""
        return asdict(self)


def prescribe(found: Found) -> Prescription:
    """What follows from the shares."""
    failing = found.needs[Cause.SHAPE].n if found.needs else 0
    if failing == 0:
        most = f"at most {found.fail_rate.high:.1%} of the traffic fails"
        return Prescription(True, (Step("nothing", None, f"no row fails; {most}"),), "no", "nothing fails")
    if failing < FEWEST:
        return _undecided(found, FEWEST, f"{failing} failing rows tell no cause from another")
    needs = dict(sorted(found.needs.items(), key=lambda pair: -pair[1].estimate))
    (first, largest), (other, second) = list(needs.items())[:2]
    rules = largest.low > second.high
    chosen = [cause for cause, each in needs.items() if each.low > MATTERS]
    if rules and first not in chosen:
        chosen = [first, *chosen]
    if not rules and len(chosen) < 2:
        more = rows_to_part(largest, second)
        return _undecided(found, more, f"{_told(first, largest)} and {_told(other, second)} overlap")
    before = [cause for cause in PUT_RIGHT if cause in chosen or found.needs[cause].low > PUT_RIGHT_FROM]
    if not set(chosen) - set(before) or (rules and first in before):
        return _put_right(found, before, chosen[0])
    return _answered(found, [*before, *(cause for cause in chosen if cause not in before)])


def _put_right(found: Found, causes: list[Cause], largest: Cause) -> Prescription:
    """What is wrong beside the model, and hides what is wrong with it."""
    why = {
        Cause.LABEL: "the references are wrong more often than anything else; an adapter would learn them",
        Cause.UNANSWERED: "what never came says nothing of the model; log again, or let `--recipe` ask a base",
    }
    return Prescription(True, tuple(_step_before(found, cause) for cause in causes), "no", why[largest])


def _step_before(found: Found, cause: Cause) -> Step:
    told = _told(cause, found.needs[cause])
    if cause is Cause.LABEL:
        return Step("fix_labels", cause, f"{told}: references that are suspected, before anything is measured again")
    return Step("mend_calls", cause, f"{told}: time limits, token limits, errors that were logged as empty text")


def _answered(found: Found, chosen: list[Cause]) -> Prescription:
    """A step for each cause; facts and behaviour together are one."""
    steps: list[Step] = []
    answer: Answer = "no"
    because, needed = "", None
    facts = {Cause.RETRIEVAL, Cause.BOTH} & set(chosen)
    for cause in chosen:
        told = _told(cause, found.needs[cause])
        if cause in PUT_RIGHT:
            steps.append(_step_before(found, cause))
        elif cause is Cause.RETRIEVAL:
            steps.append(Step("retrieval", cause, f"{told}: the facts do not stand before the model"))
            because = (
                because or "missing facts are new knowledge, and that is what retrieval gives; training teaches shape"
            )
        elif cause is Cause.SHAPE:
            step, answer, because, needed = _shape(found, told)
            steps.append(step)
        elif cause is Cause.BOTH:
            steps.append(Step("hybrid", cause, f"{told}: facts are missing and the shape is wrong in the same rows"))
            answer, because = _either(answer, "yes"), "retrieval for the facts, and the shape on top of its passages"
        elif cause is Cause.READING and found.passages:
            steps.append(Step("hybrid", cause, f"{told}: the facts are retrieved and not used, or it should abstain"))
            answer, because = (
                _either(answer, "yes"),
                "train on retrieved passages, near misses and abstentions among them",
            )
        elif cause is Cause.READING:
            steps.append(
                Step("fine_tuning", cause, f"{told}: the values stand in the prompt, and land in wrong places")
            )
            answer, because = (
                _either(answer, "yes"),
                "which value belongs where is a convention, and that can be learned",
            )
        elif cause is Cause.CAPABILITY:
            steps.append(Step("bigger_base", cause, f"{told}: {_beyond(found)}"))
            because = because or "neither facts nor shape repair it; try a bigger base before training this one"
        elif cause is Cause.EITHER:
            steps.append(Step("prompt", cause, f"{told}: shots or passages repair it, whichever costs less"))
            because = because or "a prompt repairs it"
        else:
            steps.append(Step("prompt", cause, f"{told}: it comes right by itself; steady the decoding, or ask twice"))
            because = because or "what comes and goes by itself is not repaired by training"
    if facts and any(step.action in ("fine_tuning", "constrained_decoding") for step in steps):
        steps.append(Step("hybrid", None, "missing facts and wrong shape both matter: retrieval first, then the shape"))
    decided = answer != "undecided" or len(chosen) > 1
    more = None if decided else needed
    return Prescription(decided, tuple(steps), answer, because, more, _all_rows(found, more))


def _shape(found: Found, told: str) -> tuple[Step, Answer, str, int | None]:
    """Whether what needs no training closes a wrong shape."""
    closed = found.closed
    aid = "shots and the schema close" if found.measured else "decoding by the schema closes"
    how = (
        "measured beyond its placebo" if found.measured else "by the labels; try shots with `--recipe` before you train"
    )
    if closed is None or closed.low <= CLOSED <= closed.high:
        part = f"{aid} {_numbers(closed)} of it" if closed else "too few rows tell what closes it"
        step = Step("constrained_decoding", Cause.SHAPE, f"{told}; {part}: try the schema first")
        # Where the aid closes too few rows to tell, the share of shape rows among failing ones scales what is needed.
        more = rows_needed(closed, CLOSED) if closed else None
        shape = found.needs[Cause.SHAPE].estimate
        return step, "undecided", f"whether it closes {CLOSED:.0%} is open", round(more / shape) if more else None
    if closed.low > CLOSED:
        step = Step("constrained_decoding", Cause.SHAPE, f"{told}; {aid} {_numbers(closed)} of it ({how})")
        return step, "no", "what needs no training closes the wrong shape", None
    step = Step("fine_tuning", Cause.SHAPE, f"{told}; {aid} only {_numbers(closed)} of it ({how})")
    return step, "yes", "the shape is wrong, and prompt and schema do not put it right", None


def _undecided(found: Found, failing: int | None, why: str) -> Prescription:
    return Prescription(False, (), "undecided", f"not enough rows to say: {why}", failing, _all_rows(found, failing))


def _all_rows(found: Found, failing: int | None) -> int | None:
    return None if failing is None or found.fail_rate.estimate == 0 else round(failing / found.fail_rate.estimate)


def _either(one: Answer, other: Answer) -> Answer:
    return "yes" if "yes" in (one, other) else one


def _beyond(found: Found) -> str:
    if found.measured:
        return "with the facts and the shape it is still wrong; have a person read some, for references hide here too"
    return "the facts are there and no label of shape explains it; `--recipe` would try what repairs it"


def _told(cause: Cause, share: Interval) -> str:
    return f"{cause.value} {_numbers(share)} of failing rows"


def _numbers(share: Interval) -> str:
    return f"{share.estimate:.0%} ({share.low:.0%} to {share.high:.0%})"
