"""The bounds that the verdict rests on: against other implementations, against published values, and in simulation."""

import math
import random
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tunesmith.stats import Interval, clustered_t, mean_interval, paired_interval, rows_needed, tango

ALPHA = 0.05


def monte_carlo_ceiling(trials: int, rate: float = ALPHA) -> float:
    return rate + 3 * math.sqrt(rate * (1 - rate) / trials)


# ---------------------------------------------------------------------- Tango, a second time


def bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Root of a function that falls from above 0 to below it."""
    for _ in range(70):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2


def restricted_worse(better: int, worse: int, n: int, delta: float) -> float:
    """P(worse) that maximises the trinomial likelihood when P(better) - P(worse) is delta: where its slope is 0."""

    def pull(count: int, chance: float) -> float:
        return count / max(chance, 1e-300) if count else 0.0

    def slope(q: float) -> float:
        return pull(better, q + delta) + pull(worse, q) - 2 * pull(n - better - worse, 1 - 2 * q - delta)

    return bisect(slope, max(0.0, -delta), (1 - delta) / 2)


def score_bounds(better: int, worse: int, n: int, alpha: float) -> tuple[float, float]:
    z = stats.norm.isf(alpha)
    estimate = (better - worse) / n

    def statistic(delta: float) -> float:
        q = restricted_worse(better, worse, n, delta)
        variance = n * (2 * q + delta - delta**2)
        return (better - worse - n * delta) / math.sqrt(max(variance, 1e-300))

    low = -1.0 if estimate == -1 else bisect(lambda delta: statistic(delta) - z, -1.0, estimate)
    high = 1.0 if estimate == 1 else bisect(lambda delta: statistic(delta) + z, estimate, 1.0)
    return low, high


TABLE = [(0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 0, 2), (1, 1, 2), (3, 0, 100), (0, 3, 100), (10, 10, 20), (20, 0, 20)]
TABLE += [(12, 4, 60), (40, 5, 100), (5, 40, 100), (50, 49, 100), (30, 20, 1000), (300, 299, 1000), (999, 1, 1000)]


@pytest.mark.parametrize("alpha", [0.05, 0.025, 0.3])
@pytest.mark.parametrize(("better", "worse", "n"), TABLE)
def test_tango_agrees_with_a_numerical_maximum_likelihood(better: int, worse: int, n: int, alpha: float) -> None:
    assert tango(better, worse, n, alpha) == pytest.approx(score_bounds(better, worse, n, alpha), abs=1e-7)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 400))
    better = draw(st.integers(0, n))
    return better, draw(st.integers(0, n - better)), n


@settings(max_examples=150, deadline=None)
@given(pairs(), st.sampled_from([0.01, 0.05, 0.2]))
def test_tango_agrees_with_a_numerical_maximum_likelihood_anywhere(counts: tuple[int, int, int], alpha: float) -> None:
    assert tango(*counts, alpha) == pytest.approx(score_bounds(*counts, alpha), abs=1e-7)


@pytest.mark.parametrize(
    ("better", "worse", "n", "level", "low", "high", "digits"),
    [
        # Bentur et al. 2009 and Cavo et al. 2012, as in Fagerland, Lydersen & Laake; R: contingencytables, ratesci.
        (1, 7, 21, 0.95, -0.517, -0.026, 3),
        (6, 16, 161, 0.95, -0.1240, -0.0054, 4),
        # R: PropCIs::scoreci.mp(25, 28, 618), which estimates the second less the first.
        (28, 25, 618, 0.90, -0.0148, 0.0247, 4),
    ],
)
def test_tango_gives_published_intervals(
    better: int, worse: int, n: int, level: float, low: float, high: float, digits: int
) -> None:
    bounds = tango(better, worse, n, (1 - level) / 2)
    assert tuple(round(bound, digits) for bound in bounds) == (low, high)


@settings(deadline=None)
@given(pairs(), st.floats(0.001, 0.4))
def test_tango_is_mirrored_when_the_arms_swap_and_holds_its_estimate(
    counts: tuple[int, int, int], alpha: float
) -> None:
    better, worse, n = counts
    low, high = tango(better, worse, n, alpha)
    assert tango(worse, better, n, alpha) == pytest.approx((-high, -low), abs=1e-9)
    assert -1 <= low <= (better - worse) / n + 1e-9
    assert (better - worse) / n - 1e-9 <= high <= 1


@pytest.mark.parametrize("n", [1, 10, 100, 5000])
def test_tango_without_discordant_pairs_has_a_width(n: int) -> None:
    z = stats.norm.isf(ALPHA)
    width = z**2 / (n + z**2)
    assert tango(0, 0, n, ALPHA) == pytest.approx((-width, width), abs=1e-9)


def test_tango_bound_is_above_zero_exactly_when_mcnemar_is_significant() -> None:
    z = stats.norm.isf(ALPHA)
    for better in range(25):
        for worse in range(25):
            significant = better - worse > z * math.sqrt(better + worse)
            assert (tango(better, worse, 60, ALPHA)[0] > 0) == significant


@pytest.mark.parametrize(("better", "worse", "n"), [(3, 2, 4), (-1, 0, 5), (0, 0, 0)])
def test_tango_refuses_counts_that_cannot_be(better: int, worse: int, n: int) -> None:
    with pytest.raises(ValueError, match="discordant pairs"):
        tango(better, worse, n, ALPHA)


# ---------------------------------------------------------------------- levels


@cache
def tango_low(better: int, worse: int, n: int) -> float:
    return tango(better, worse, n, ALPHA)[0]


def chance_of_exceeding(n: int, discordance: float, difference: float) -> float:
    """Exact chance that Tango's lower bound lies above the true difference: every possible table, weighed."""
    shares = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    tables = [(b, c, n - b - c) for b in range(n + 1) for c in range(n + 1 - b)]
    chances = stats.multinomial.pmf(np.array(tables), n, shares)
    passes = np.array([tango_low(b, c, n) > difference for b, c, _ in tables])
    return float(chances[passes].sum())


@pytest.mark.parametrize("discordance", [0.02, 0.05, 0.1, 0.2, 0.4, 0.7])
def test_tango_keeps_its_level_at_no_difference_in_fifty_rows(discordance: float) -> None:
    assert chance_of_exceeding(50, discordance, 0.0) < 0.053


def test_tango_keeps_its_level_at_a_margin_where_wald_does_not() -> None:
    n, discordance, difference = 50, 0.05, -0.03
    assert chance_of_exceeding(n, discordance, difference) < ALPHA
    # The textbook interval has no width when every pair agrees, so it "shows" whatever margin it is asked for.
    assert stats.binom.pmf(0, n, discordance) > ALPHA


@pytest.mark.parametrize("discordance", [0.1, 0.2])
@pytest.mark.parametrize("n", [50, 200])
def test_tango_passes_equal_arms_no_more_often_than_alpha(n: int, discordance: float) -> None:
    trials = 4000
    shares = [discordance / 2, discordance / 2, 1 - discordance]
    counts = np.random.default_rng(1).multinomial(n, shares, size=trials)
    rate = np.mean([tango_low(int(better), int(worse), n) > 0 for better, worse, _ in counts])
    assert 0.02 < rate < monte_carlo_ceiling(trials)


def test_comparing_means_passes_equal_arms_half_the_time_and_the_gates_rule_does_not() -> None:
    trials, n = 1500, 100
    rng = np.random.default_rng(2)
    groups = [str(i) for i in range(n)]
    by_means = by_rule = 0
    for _ in range(trials):
        ours, theirs = rng.random((2, n)) < 0.5
        by_means += ours.sum() > theirs.sum()
        by_rule += paired_interval(ours.astype(float).tolist(), theirs.astype(float).tolist(), groups, ALPHA).low > 0
    assert by_means / trials > 0.4
    assert 0.02 < by_rule / trials < monte_carlo_ceiling(trials)


def test_clustered_t_keeps_its_level_where_rows_taken_as_independent_do_not() -> None:
    trials, clusters, size = 1500, 20, 10
    rng = np.random.default_rng(3)
    groups = [str(i // size) for i in range(clusters * size)]
    alone = [str(i) for i in range(clusters * size)]
    clustered = naive = 0
    for _ in range(trials):
        shared = rng.normal(0, math.sqrt(0.3), clusters).repeat(size)  # correlation 0.3 within a group
        values = (shared + rng.normal(0, math.sqrt(0.7), clusters * size)).tolist()
        clustered += clustered_t(values, groups, ALPHA).low > 0
        naive += clustered_t(values, alone, ALPHA).low > 0
    assert 0.02 < clustered / trials < monte_carlo_ceiling(trials)
    assert naive / trials > 0.12


def test_paired_interval_keeps_its_level_for_grouped_answers_where_tango_alone_does_not() -> None:
    trials, clusters, size = 1500, 20, 8
    rng = np.random.default_rng(4)
    n = clusters * size
    groups = [str(i // size) for i in range(n)]
    ours_passes = tango_passes = 0
    for _ in range(trials):
        # Each group leans to one arm; over all groups the arms are equal.
        leaning = rng.choice([0.05, 0.35], clusters).repeat(size)
        draw = rng.random(n)
        better, worse = draw < leaning, draw > 1 - (0.4 - leaning)
        ours, theirs = np.where(worse, 0.0, 1.0), np.where(better, 0.0, 1.0)
        ours_passes += paired_interval(ours.tolist(), theirs.tolist(), groups, ALPHA).low > 0
        tango_passes += tango_low(int(better.sum()), int(worse.sum()), n) > 0
    assert 0.02 < ours_passes / trials < monte_carlo_ceiling(trials)
    assert tango_passes / trials > 0.08


# ---------------------------------------------------------------------- clustered t


def leaving_out(values: list[float], groups: list[str], alpha: float) -> Interval:
    """The mean again and again, each time without one group, and Student's t with the groups that they are worth."""
    mean, names = float(np.mean(values)), sorted(set(groups))
    without = [np.mean([v for v, g in zip(values, groups, strict=True) if g != name]) for name in names]
    error = math.sqrt((len(names) - 1) / len(names) * sum((each - mean) ** 2 for each in without))
    shares = [groups.count(name) / len(groups) for name in names]
    reach = stats.t.isf(alpha, 1 / sum(share**2 for share in shares) - 1) * error
    return Interval(mean, mean - reach, mean + reach, len(values), len(names))


@st.composite
def grouped(draw: st.DrawFn) -> tuple[list[float], list[str]]:
    rows = draw(st.lists(st.tuples(st.floats(-1, 1), st.sampled_from("abcdef")), min_size=2, max_size=40))
    values, groups = [value for value, _ in rows], [group for _, group in rows]
    groups[0], groups[-1] = "a", "b"
    return values, groups


@settings(deadline=None)
@given(grouped(), st.floats(0.01, 0.4))
def test_clustered_t_agrees_with_means_that_leave_a_group_out(
    rows: tuple[list[float], list[str]], alpha: float
) -> None:
    ours, theirs = clustered_t(*rows, alpha), leaving_out(*rows, alpha)
    assert (ours.estimate, ours.low, ours.high) == pytest.approx(
        (theirs.estimate, theirs.low, theirs.high), rel=1e-6, abs=1e-7
    )
    assert (ours.n, ours.clusters) == (theirs.n, theirs.clusters)


def test_clustered_t_of_single_rows_is_the_ordinary_t_interval() -> None:
    values = [0.1, 0.4, -0.2, 0.9, 0.3, 0.3]
    ours = clustered_t(values, list("abcdef"), ALPHA)
    expected = stats.ttest_1samp(values, 0).confidence_interval(1 - 2 * ALPHA)
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high))


@settings(deadline=None)
@given(grouped(), st.randoms(use_true_random=False))
def test_clustered_t_does_not_depend_on_the_order_of_rows(
    rows: tuple[list[float], list[str]], order: random.Random
) -> None:
    shuffled = list(zip(*rows, strict=True))
    order.shuffle(shuffled)
    again = clustered_t([value for value, _ in shuffled], [group for _, group in shuffled], ALPHA)
    first = clustered_t(*rows, ALPHA)
    assert (again.low, again.high) == pytest.approx((first.low, first.high), abs=1e-9)


INTERVALS = {
    "clustered_t": clustered_t,
    "mean_interval": mean_interval,
    "paired_interval": lambda values, groups, alpha: paired_interval(values, [0.0] * len(values), groups, alpha),
}


@pytest.mark.parametrize("name", INTERVALS)
@pytest.mark.parametrize(("values", "groups"), [([], []), ([1.0], ["a"]), ([1.0, 0.0, 1.0], ["a", "a", "a"])])
def test_what_has_no_spread_between_groups_has_no_interval(name: str, values: list[float], groups: list[str]) -> None:
    with pytest.raises(ValueError, match="no spread"):
        INTERVALS[name](values, groups, ALPHA)


@pytest.mark.parametrize("name", INTERVALS)
def test_each_value_needs_its_group(name: str) -> None:
    with pytest.raises(ValueError, match="one group for each value"):
        INTERVALS[name]([1.0, 0.0], ["a", "b", "c"], ALPHA)


# ---------------------------------------------------------------------- paired and mean intervals


@st.composite
def two_arms(draw: st.DrawFn) -> tuple[list[float], list[float], list[str]]:
    scores = draw(st.sampled_from([st.sampled_from([0.0, 1.0]), st.floats(0, 1)]))
    rows = draw(st.lists(st.tuples(scores, scores, st.sampled_from("abcdef")), min_size=2, max_size=60))
    ours, theirs, groups = (list(column) for column in zip(*rows, strict=True))
    groups[0], groups[-1] = "a", "b"
    return ours, theirs, groups


@settings(deadline=None)
@given(two_arms())
def test_paired_interval_holds_its_estimate_and_mirrors_when_the_arms_swap(
    arms: tuple[list[float], list[float], list[str]],
) -> None:
    ours, theirs, groups = arms
    interval = paired_interval(ours, theirs, groups, ALPHA)
    swapped = paired_interval(theirs, ours, groups, ALPHA)
    assert interval.estimate == pytest.approx(np.mean(ours) - np.mean(theirs), abs=1e-9)
    assert interval.low <= interval.estimate <= interval.high
    assert (swapped.low, swapped.high) == pytest.approx((-interval.high, -interval.low), abs=1e-9)


@settings(deadline=None)
@given(two_arms())
def test_paired_interval_is_never_narrower_than_by_rows_or_by_groups(
    arms: tuple[list[float], list[float], list[str]],
) -> None:
    ours, theirs, groups = arms
    interval = paired_interval(ours, theirs, groups, ALPHA)
    by_group = clustered_t([a - b for a, b in zip(ours, theirs, strict=True)], groups, ALPHA)
    assert interval.low <= by_group.low
    assert interval.high >= by_group.high
    if set(ours + theirs) <= {0.0, 1.0}:
        better = sum(a > b for a, b in zip(ours, theirs, strict=True))
        worse = sum(a < b for a, b in zip(ours, theirs, strict=True))
        low, high = tango(better, worse, len(ours), ALPHA)
        assert interval.low <= low
        assert interval.high >= high


def test_arms_that_never_differ_still_have_a_width() -> None:
    groups = [str(i) for i in range(100)]
    scores = [0.5 + i / 200 for i in range(100)]
    interval = paired_interval(scores, scores, groups, ALPHA)
    # Nothing in 100: up to 2.95 % may hide.
    assert (interval.low, interval.high) == pytest.approx((-0.0295, 0.0295), abs=1e-4)


def test_paired_interval_refuses_arms_of_different_length() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_interval([1.0, 0.0], [1.0], ["a", "b"], ALPHA)


def test_all_right_does_not_read_as_certain() -> None:
    interval = mean_interval([1.0] * 60, [str(i) for i in range(60)], ALPHA)
    z2 = stats.norm.isf(ALPHA) ** 2
    assert interval.low == pytest.approx(60 / (60 + z2), abs=1e-9)
    assert (interval.estimate, interval.high) == (1.0, 1.0)


def test_all_wrong_does_not_read_as_certain() -> None:
    interval = mean_interval([0.0] * 60, [str(i) for i in range(60)], ALPHA)
    assert interval.low == 0.0
    assert interval.high > 0.03


@settings(deadline=None)
@given(two_arms())
def test_mean_interval_stays_in_zero_to_one_and_holds_the_mean(
    arms: tuple[list[float], list[float], list[str]],
) -> None:
    scores, _, groups = arms
    interval = mean_interval(scores, groups, ALPHA)
    assert 0 <= interval.low <= interval.estimate + 1e-12
    assert interval.estimate - 1e-12 <= interval.high <= 1


def test_mean_interval_widens_when_rows_come_in_groups() -> None:
    scores = [1.0, 0.0] * 50
    alone = mean_interval(scores, [str(i) for i in range(100)], ALPHA)
    together = mean_interval(sorted(scores), [str(i // 10) for i in range(100)], ALPHA)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_one_difference_everywhere_is_not_certainty() -> None:
    groups = [str(i) for i in range(50)]
    interval = paired_interval([0.75] * 50, [0.5] * 50, groups, ALPHA)
    assert interval.estimate == 0.25
    assert interval.high - 0.25 == pytest.approx(1 - ALPHA ** (1 / 50))
    assert 0.25 - interval.low == pytest.approx(1 - ALPHA ** (1 / 50))


# ---------------------------------------------------------------------- rows needed


def test_no_number_of_rows_settles_an_estimate_that_is_the_threshold() -> None:
    assert rows_needed(Interval(0.05, -0.01, 0.11, 100, 100), 0.05) is None


def test_an_estimate_below_the_threshold_is_settled_by_its_upper_bound() -> None:
    assert rows_needed(Interval(-0.02, -0.10, 0.06, 100, 100), 0.0) == 1600
    assert rows_needed(Interval(-0.02, -0.10, 0.02, 100, 100), 0.0) == 400, "the lower bound's reach is not the upper's"


def test_a_bound_past_the_threshold_needs_no_more_rows() -> None:
    assert rows_needed(Interval(0.1, 0.02, 0.18, 100, 100), 0.0) == 100


@settings(deadline=None)
@given(st.floats(0.01, 0.5), st.floats(0.01, 0.5), st.floats(0.1, 0.9), st.floats(0.001, 0.3), st.sampled_from([1, -1]))
def test_a_smaller_effect_or_a_wider_interval_never_needs_fewer_rows(
    estimate: float, reach: float, share: float, more: float, side: int
) -> None:
    estimate *= side

    def needed(estimate: float, reach: float) -> float:
        rows = rows_needed(Interval(estimate, estimate - reach, estimate + reach, 100, 100), 0.0)
        return math.inf if rows is None else rows

    assert needed(estimate * share, reach) >= needed(estimate, reach)
    assert needed(estimate, reach + more) >= needed(estimate, reach)


@pytest.mark.parametrize(
    ("better", "worse", "n", "threshold"),
    [(30, 22, 400, 0.0), (300, 270, 4000, 0.0), (80, 80, 1000, -0.01), (50, 80, 2000, -0.02)],
)
def test_the_rows_named_bring_the_bound_to_the_threshold(better: int, worse: int, n: int, threshold: float) -> None:
    low, high = tango(better, worse, n, ALPHA)
    assert low < threshold
    needed = rows_needed(Interval((better - worse) / n, low, high, n, n), threshold)
    assert needed is not None
    assert needed > n * 1.1
    grown = tango(round(better * needed / n), round(worse * needed / n), needed, ALPHA)[0]
    assert grown == pytest.approx(threshold, abs=0.1 * (threshold - low) + 1 / needed)
