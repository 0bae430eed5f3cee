"""What follows from what was right under which intervention, and from labels."""

import pytest

from tunesmith.diagnose.causes import READ_BADLY, Cause, by_cells, by_labels
from tunesmith.failures import FAILURES, FORM, STOPPED, UNANSWERED

VALUES = ["wrong_value"]


def cells(y10: int, y01: int, y11: int, **placebos: int) -> dict[str, bool]:
    return {"y00": False} | {name: bool(v) for name, v in dict(y10=y10, y01=y01, y11=y11, **placebos).items()}


def cause(
    tried: dict[str, bool], labels: list[str] = VALUES, *, suspected: bool = False, passages: bool = False
) -> Cause:
    return by_cells(tried, labels, suspected=suspected, passages=passages)[0]


@pytest.mark.parametrize(
    ("tried", "wanted"),
    [
        (cells(1, 0, 0), Cause.RETRIEVAL),
        (cells(1, 0, 1), Cause.RETRIEVAL),
        (cells(0, 1, 1), Cause.SHAPE),
        (cells(0, 1, 0), Cause.SHAPE),
        (cells(1, 1, 1), Cause.EITHER),
        (cells(0, 0, 1), Cause.BOTH),
        (cells(0, 0, 0), Cause.CAPABILITY),
        (cells(0, 0, 0, rerun=0, p10=0, p01=0), Cause.CAPABILITY),
        (cells(1, 1, 1, rerun=1), Cause.SPONTANEOUS),
        (cells(1, 0, 1, p10=1), Cause.SPONTANEOUS),
        (cells(0, 1, 1, p01=1), Cause.SPONTANEOUS),
    ],
)
def test_the_cause_is_what_repairs_it(tried: dict[str, bool], wanted: Cause) -> None:
    assert cause(tried) is wanted


def test_a_suspected_reference_goes_before_everything() -> None:
    assert cause(cells(1, 0, 1), suspected=True) is Cause.LABEL


def test_a_shape_that_no_aid_repairs_still_needs_a_shape() -> None:
    assert by_cells(cells(0, 0, 0), ["wrapped"], suspected=False, passages=False) == (Cause.CAPABILITY, Cause.SHAPE)


def test_passages_that_were_read_badly_are_told_from_a_base_that_cannot() -> None:
    assert cause(cells(0, 0, 0), ["retrieved_not_used"], passages=True) is Cause.READING
    assert cause(cells(0, 0, 0), ["retrieved_not_used"], passages=False) is Cause.CAPABILITY


def test_a_right_row_has_no_cause() -> None:
    with pytest.raises(ValueError, match="right as it is"):
        cause(cells(1, 1, 1) | {"y00": True})


@pytest.mark.parametrize(
    ("labels", "form", "content", "facts", "wanted"),
    [
        (["wrapped"], False, True, "given", Cause.SHAPE),
        (["truncated", "missing_unavailable"], False, False, "given", Cause.SHAPE),
        (["truncated", "missing_unavailable"], False, False, "missing", Cause.BOTH),
        (["empty", "missing_unavailable"], False, False, "given", Cause.UNANSWERED),
        (["timeout", "unparseable"], False, False, "missing", Cause.UNANSWERED),
        (["not_retrieved"], True, False, "missing", Cause.RETRIEVAL),
        (["wrapped", "not_retrieved"], False, False, "missing", Cause.BOTH),
        (["wrong_in_source"], True, False, "given", Cause.READING),
        (["hallucinated"], True, False, "unknown", Cause.CAPABILITY),
        (["wrong_label"], True, False, "given", Cause.CAPABILITY),
    ],
)
def test_the_cause_by_labels(labels: list[str], form: bool, content: bool, facts: str, wanted: Cause) -> None:
    def found(suspected: bool = False, elsewhere: bool = False) -> Cause:
        return by_labels(
            labels,
            form_right=form,
            content_right=content,
            facts=facts,
            suspected=suspected,
            right_elsewhere=elsewhere,
        )

    assert found() is wanted
    assert found(elsewhere=True) is (wanted if wanted is Cause.UNANSWERED else Cause.SPONTANEOUS)
    assert found(suspected=True, elsewhere=True) is Cause.LABEL


def test_what_a_cause_is_told_by_is_a_class_of_failure() -> None:
    """A label that nobody gives would never be a cause."""
    assert FAILURES.keys() >= READ_BADLY
    assert not READ_BADLY & FORM
    assert UNANSWERED < STOPPED < FORM
