"""Why one row fails: by what repairs it where that was tried, else by the labels of its answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tunesmith.failures import FORM, STOPPED, UNANSWERED


class Cause(StrEnum):
    """Why a row fails."""

    RETRIEVAL = "retrieval"
    """The facts are missing: the raw source repairs it, and an aid to the shape does not."""
    SHAPE = "shape"
    """The shape is wrong: an aid to the shape repairs it, and the source does not."""
    EITHER = "either"
    """The source repairs it, and so does the aid."""
    BOTH = "both"
    """Only the source and the aid together repair it."""
    SPONTANEOUS = "spontaneous"
    """Nothing repaired it: asked again, or with something that does not bear on it, it is right."""
    READING = "reading"
    """What was wanted stood in the passages before the model, which did not use it; or it should have abstained."""
    CAPABILITY = "capability_or_label"
    """With the facts and the aid it is still wrong: beyond this base, or the reference is."""
    LABEL = "label"
    """The reference is suspected."""
    UNANSWERED = "unanswered"
    """Nothing came back, and a log cannot tell whether the model or the call is why."""


@dataclass(frozen=True)
class Case:
    """One judged row."""

    id: str
    group: str
    weight: float
    right: bool
    cause: Cause | None = None
    """None for a row that is right."""
    need: Cause | None = None
    """What a repair has to answer: as `cause`, but where no aid repaired a fault of form, the shape."""
    labels: tuple[str, ...] = ()
    closed: bool | None = None
    """Whether the aid to the shape closes it; for a need of SHAPE."""
    cells: Mapping[str, bool] = field(default_factory=dict)
    """Which interventions it was right under."""


READ_BADLY = frozenset({"retrieved_not_used", "wrong_in_source", "missing_available", "not_abstained", "refused"})
"""Labels of an answer to which the facts were given."""

CELLS = ("y00", "y10", "y01", "y11")
PLACEBOS = ("rerun", "p10", "p01")


def by_cells(
    cells: Mapping[str, bool], labels: Sequence[str], *, suspected: bool, passages: bool
) -> tuple[Cause, Cause]:
    """The cause of a failing row by what repaired it, and what it needs.

    `cells` holds y00 (as is), y10 (with the source), y01 (with the aid to the shape), y11 (with both) and the placebos
    that were run; `labels` are of the answer as is. A row of which the facts were given all along has the y10 of its
    y00 and the y11 of its y01. `passages` says whether it came with retrieved passages.
    """
    if cells["y00"]:
        raise ValueError("by_cells: the row is right as it is")
    if suspected:
        return Cause.LABEL, Cause.LABEL
    if any(cells.get(name, False) for name in PLACEBOS):
        return Cause.SPONTANEOUS, Cause.SPONTANEOUS
    context, aid, both = cells["y10"], cells["y01"], cells["y11"]
    if context or aid:
        cause = Cause.EITHER if context and aid else Cause.RETRIEVAL if context else Cause.SHAPE
        return cause, cause
    if both:
        return Cause.BOTH, Cause.BOTH
    if FORM & set(labels):
        return Cause.CAPABILITY, Cause.SHAPE
    if passages and READ_BADLY & set(labels):
        return Cause.READING, Cause.READING
    return Cause.CAPABILITY, Cause.CAPABILITY


def by_labels(
    labels: Sequence[str],
    *,
    form_right: bool,
    content_right: bool,
    facts: str,
    suspected: bool,
    right_elsewhere: bool,
) -> Cause:
    """The cause of a failing row by its labels alone, where nothing was tried.

    `facts` is `given`, `missing` or `unknown`; `right_elsewhere` says that the same was asked and answered right in
    another row. EITHER cannot be told without a trial; an answer that broke off counts as one of a wrong shape, and one
    that never came as UNANSWERED, for no answer says anything of facts or shape.
    """
    if suspected:
        return Cause.LABEL
    if UNANSWERED & set(labels):
        return Cause.UNANSWERED
    if right_elsewhere:
        return Cause.SPONTANEOUS
    if content_right or (labels and labels[0] in STOPPED and facts != "missing"):
        return Cause.SHAPE
    if facts == "missing":
        return Cause.RETRIEVAL if form_right else Cause.BOTH
    return Cause.READING if READ_BADLY & set(labels) else Cause.CAPABILITY
