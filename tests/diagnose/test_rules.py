"""From shares to what to do."""

from collections.abc import Mapping

import pytest

from tunesmith.diagnose.causes import Cause
from tunesmith.diagnose.rules import FEWEST, Found, Prescription, prescribe
from tunesmith.diagnose.shares import share
from tunesmith.stats import Interval

ALPHA = 0.025


def of(hits: int, n: int) -> Interval:
    return share([True] * hits + [False] * (n - hits), [1.0] * n, [str(i) for i in range(n)], ALPHA)


def found(
    counts: Mapping[Cause, int], *, rows: int = 1000, closed: Interval | None = None, **more: bool
) -> Prescription:
    failing = sum(counts.values())
    needs = {cause: of(counts.get(cause, 0), failing) for cause in Cause} if failing else {}
    return prescribe(Found(rows, of(failing, rows), needs, closed, **more))


def actions(told: Prescription) -> list[str]:
    return [step.action for step in told.steps]


def test_nothing_fails() -> None:
    told = found({})
    assert (actions(told), told.fine_tune, told.decided) == (["nothing"], "no", True)


def test_a_handful_of_failures_decides_nothing() -> None:
    told = found({Cause.SHAPE: 9}, rows=300)
    assert (told.decided, told.fine_tune, told.steps) == (False, "undecided", ())
    assert told.failing_rows_needed == FEWEST
    assert told.rows_needed == round(FEWEST / 0.03)


def test_missing_facts_call_for_retrieval_and_not_for_training() -> None:
    told = found({Cause.RETRIEVAL: 70, Cause.SHAPE: 15, Cause.READING: 15})
    assert (actions(told), told.fine_tune, told.decided) == (["retrieval"], "no", True)


@pytest.mark.parametrize(
    ("closed", "action", "answer", "decided"),
    [
        (of(68, 70), "constrained_decoding", "no", True),
        (of(20, 70), "fine_tuning", "yes", True),
        (of(56, 70), "constrained_decoding", "undecided", False),
        (None, "constrained_decoding", "undecided", False),
    ],
)
def test_a_wrong_shape_is_trained_for_where_nothing_else_closes_it(
    closed: Interval | None, action: str, answer: str, decided: bool
) -> None:
    told = found({Cause.SHAPE: 70, Cause.RETRIEVAL: 15, Cause.READING: 15}, closed=closed)
    assert (actions(told), told.fine_tune, told.decided) == ([action], answer, decided)


def test_an_open_closure_asks_for_the_rows_that_would_settle_it() -> None:
    told = found({Cause.SHAPE: 80, Cause.RETRIEVAL: 10, Cause.READING: 10}, closed=of(68, 80))
    assert told.failing_rows_needed is not None
    assert told.failing_rows_needed > 100
    assert told.rows_needed == round(told.failing_rows_needed / 0.1)


def test_both_at_once_call_for_both() -> None:
    told = found({Cause.BOTH: 70, Cause.SHAPE: 15, Cause.RETRIEVAL: 15})
    assert (actions(told), told.fine_tune) == (["hybrid"], "yes")


def test_facts_in_some_rows_and_shape_in_others_call_for_both() -> None:
    told = found({Cause.RETRIEVAL: 100, Cause.SHAPE: 90, Cause.READING: 10}, closed=of(10, 90))
    assert actions(told) == ["retrieval", "fine_tuning", "hybrid"]
    assert told.fine_tune == "yes"


def test_passages_that_are_read_badly_call_for_training_on_them() -> None:
    counts = {Cause.READING: 70, Cause.SHAPE: 15, Cause.RETRIEVAL: 15}
    assert actions(found(counts, passages=True)) == ["hybrid"]
    assert actions(found(counts, passages=False)) == ["fine_tuning"]


def test_what_nothing_repairs_calls_for_a_bigger_base() -> None:
    told = found({Cause.CAPABILITY: 75, Cause.SHAPE: 15, Cause.BOTH: 10}, measured=True)
    assert (actions(told), told.fine_tune) == (["bigger_base"], "no")


def test_wrong_references_are_put_right_first_and_alone_where_they_rule() -> None:
    told = found({Cause.LABEL: 70, Cause.SHAPE: 30})
    assert (actions(told), told.fine_tune) == (["fix_labels"], "no")
    told = found({Cause.RETRIEVAL: 140, Cause.LABEL: 40, Cause.SHAPE: 20})
    assert actions(told) == ["fix_labels", "retrieval"]


def test_calls_that_nothing_came_back_from_are_mended_before_anything_is_trained() -> None:
    told = found({Cause.UNANSWERED: 70, Cause.SHAPE: 30})
    assert (actions(told), told.fine_tune, told.decided) == (["mend_calls"], "no", True)
    told = found({Cause.SHAPE: 140, Cause.UNANSWERED: 40, Cause.LABEL: 40}, closed=of(20, 140))
    assert actions(told) == ["mend_calls", "fix_labels", "fine_tuning"]


def test_where_only_what_hides_the_rest_is_sure_the_rest_is_not_answered() -> None:
    """The largest share may be the one that few groups tell of: its interval is wide, and it rules nothing."""
    needs = {cause: Interval(0.0, 0.0, 0.02, 300, 300) for cause in Cause}
    needs[Cause.SHAPE] = Interval(0.36, 0.15, 0.60, 300, 6)
    needs[Cause.UNANSWERED] = Interval(0.33, 0.25, 0.41, 300, 300)
    needs[Cause.LABEL] = Interval(0.31, 0.23, 0.40, 300, 300)
    told = prescribe(Found(500, of(300, 500), needs))
    assert (actions(told), told.fine_tune) == (["mend_calls", "fix_labels"], "no")
    assert "never came" in told.because


@pytest.mark.parametrize("cause", [Cause.EITHER, Cause.SPONTANEOUS])
def test_what_a_prompt_repairs_is_not_trained_for(cause: Cause) -> None:
    told = found({cause: 75, Cause.SHAPE: 15, Cause.BOTH: 10})
    assert (actions(told), told.fine_tune) == (["prompt"], "no")


def test_causes_that_overlap_ask_for_the_rows_that_would_part_them() -> None:
    told = found({Cause.RETRIEVAL: 14, Cause.SHAPE: 10, Cause.READING: 8}, rows=320)
    assert (told.decided, told.steps) == (False, ())
    assert "retrieval 44%" in told.because
    assert told.failing_rows_needed is not None
    assert told.failing_rows_needed > 32
    scale = told.failing_rows_needed * 1.1 / 32
    more = {Cause.RETRIEVAL: round(14 * scale), Cause.SHAPE: round(10 * scale), Cause.READING: round(8 * scale)}
    assert found(more, rows=round(320 * scale)).decided


def test_causes_that_are_equal_are_parted_by_no_number_of_rows() -> None:
    told = found({Cause.RETRIEVAL: 11, Cause.SHAPE: 11, Cause.READING: 10})
    assert not told.decided
    assert told.failing_rows_needed is None
