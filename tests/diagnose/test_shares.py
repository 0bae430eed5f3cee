"""Intervals of shares, by simulation and against other computations."""

import math

import numpy as np
import pytest
from scipy import stats

from tunesmith.diagnose.shares import (
    effective_rows,
    rows_to_part,
    share,
    weighted_mean,
    wilson,
)
from tunesmith.stats import Interval

ALPHA = 0.025
TRIALS = 1200


def allowed(rate: float) -> float:
    """The rate of misses that chance would leave below a true one of `rate` 999 times in 1000."""
    return rate + 3.1 * math.sqrt(rate * (1 - rate) / TRIALS)


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (3, 20), (50, 100), (400, 400)])
def test_rows_of_equal_weight_have_wilsons_interval(hits: int, n: int) -> None:
    z = stats.norm.ppf(1 - ALPHA)
    theirs = stats.binomtest(hits, n).proportion_ci(1 - 2 * ALPHA, method="wilson")
    assert wilson(hits / n, n, float(z)) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    ours = share([True] * hits + [False] * (n - hits), [1.0] * n, [str(i) for i in range(n)], ALPHA)
    assert ours.low <= theirs.low + 1e-9
    assert ours.high >= theirs.high - 1e-9
    assert ours.high - ours.low == pytest.approx(theirs.high - theirs.low, rel=0.12)


@pytest.mark.parametrize(
    ("size", "clusters", "weighted", "truth"),
    [(60, 60, False, 0.15), (60, 60, False, 0.5), (200, 40, False, 0.3), (200, 200, True, 0.3), (200, 40, True, 0.6)],
)
def test_a_planted_share_is_in_its_interval(size: int, clusters: int, weighted: bool, truth: float) -> None:
    """Rows of a group are alike: each takes its group's answer half of the time."""
    drawn = np.random.default_rng(size + clusters)
    missed = 0
    for _ in range(TRIALS):
        group = drawn.integers(0, clusters, size) if clusters < size else np.arange(size)
        common = drawn.random(clusters) < truth
        own = drawn.random(size) < truth
        hits = np.where(drawn.random(size) < 0.5, common[group], own) if clusters < size else own
        weights = drawn.lognormal(0, 0.7, size) if weighted else np.ones(size)
        found = share(hits.tolist(), weights.tolist(), [str(g) for g in group], ALPHA)
        missed += not found.low <= truth <= found.high
    assert missed / TRIALS <= allowed(2 * ALPHA)


def test_rows_that_say_the_same_count_once() -> None:
    hits = [i % 2 == 0 for i in range(50) for _ in range(8)]
    groups = [str(i) for i in range(50) for _ in range(8)]
    assert effective_rows(hits, [1.0] * 400, groups, ALPHA) == pytest.approx(50, rel=0.1)


def test_one_heavy_row_is_hardly_more_than_one_row() -> None:
    weights = [1000.0, *[1.0] * 99]
    found = share([True, *[False] * 99], weights, [str(i) for i in range(100)], ALPHA)
    assert found.estimate > 0.9
    assert found.low < 0.2


def test_one_group_tells_nothing_of_the_spread() -> None:
    found = share([True] * 9, [1.0] * 9, ["one"] * 9, ALPHA)
    assert (found.low, found.high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="1 groups have no spread"):
        weighted_mean([1.0] * 9, [1.0] * 9, ["one"] * 9, ALPHA)


def test_a_weighted_mean_of_equal_weights_is_the_t_interval() -> None:
    values = np.random.default_rng(1).normal(0.2, 1, 50)
    found = weighted_mean(values.tolist(), [2.0] * 50, [str(i) for i in range(50)], ALPHA)
    reach = stats.t.ppf(1 - ALPHA, 49) * values.std(ddof=1) / math.sqrt(50)
    assert (found.low, found.high) == pytest.approx((values.mean() - reach, values.mean() + reach))


def test_the_rows_that_are_asked_for_part_the_shares() -> None:
    def of(hits: int, n: int) -> Interval:
        return share([True] * hits + [False] * (n - hits), [1.0] * n, [str(i) for i in range(n)], ALPHA)

    needed = rows_to_part(of(22, 50), of(15, 50))
    assert needed is not None
    assert needed > 50
    larger, smaller = (
        of(round(needed * 0.44 * 1.05), round(needed * 1.05)),
        of(round(needed * 0.315), round(needed * 1.05)),
    )
    assert larger.low > smaller.high
    assert rows_to_part(of(20, 50), of(20, 50)) is None
