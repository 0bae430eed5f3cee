"""Rates, ratios, many questions and many looks: against statsmodels, against exact sums, and in simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from tunesmith.stats import (
    clopper_pearson,
    clustered_ratio,
    clustered_t,
    e_value,
    f1,
    holm,
    macro_f1,
    mcnemar,
    mean_interval,
    micro_f1,
    non_inferior,
    paired_interval,
    spent,
    unseen,
)

ALPHA = 0.05

# ---------------------------------------------------------------------- one rate


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from([0.01, 0.05, 0.2]))
def test_clopper_pearson_agrees_with_statsmodels(n: int, share: float, alpha: float) -> None:
    x = round(share * n)
    assert clopper_pearson(x, n, alpha) == pytest.approx(proportion_confint(x, n, 2 * alpha, method="beta"), abs=1e-9)


@pytest.mark.parametrize("rate", [0.002, 0.01, 0.3, 0.5])
def test_clopper_pearson_errs_no_more_often_than_alpha_whatever_the_rate(rate: float) -> None:
    n = 120
    chances = stats.binom.pmf(range(n + 1), n, rate)
    bounds = [clopper_pearson(x, n, ALPHA) for x in range(n + 1)]
    assert sum(chance for chance, (low, _) in zip(chances, bounds, strict=True) if low > rate) <= ALPHA
    assert sum(chance for chance, (_, high) in zip(chances, bounds, strict=True) if high < rate) <= ALPHA


def test_the_mean_of_right_and_wrong_is_never_narrower_than_wilsons_interval() -> None:
    scores = [1.0] * 57 + [0.0] * 3
    interval = mean_interval(scores, [str(i) for i in range(60)], ALPHA)
    low, high = proportion_confint(57, 60, 2 * ALPHA, method="wilson")
    assert interval.low <= low + 1e-12
    assert interval.high >= high - 1e-12


@pytest.mark.parametrize(("n", "rate"), [(100, 0.0295), (300, 0.0099), (1000, 0.0030)])
def test_nothing_seen_leaves_about_three_in_n(n: int, rate: float) -> None:
    assert unseen(n, ALPHA) == pytest.approx(rate, abs=5e-5)
    assert unseen(n, ALPHA) == pytest.approx(clopper_pearson(0, n, ALPHA)[1])


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_a_rate_needs_counts_that_can_be(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="clopper_pearson"):
        clopper_pearson(successes, n, ALPHA)


# ---------------------------------------------------------------------- two arms


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_agrees_with_statsmodels(better: int, worse: int) -> None:
    theirs = their_mcnemar([[5, better], [worse, 5]], exact=True).pvalue
    ours = min(1.0, 2 * min(mcnemar(better, worse), mcnemar(worse, better)))
    assert ours == pytest.approx(theirs)


def test_mcnemar_points_one_way() -> None:
    assert mcnemar(9, 1) == pytest.approx(11 / 1024)
    assert mcnemar(1, 9) == pytest.approx(1023 / 1024)
    assert mcnemar(0, 0) == 1.0


def test_clustered_t_with_groups_of_one_size_is_the_regression_with_clustered_errors() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(25), 6)
    values = rng.normal(0.2, 1, 150) + rng.normal(0, 0.7, 25)[groups]
    fitted = OLS(values, np.ones(150)).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    ours = clustered_t(values.tolist(), [str(group) for group in groups], ALPHA)
    assert (ours.low, ours.high) == pytest.approx(tuple(fitted.conf_int(2 * ALPHA)[0]))


UNEQUAL = [20, 20, 11, 9, 8, 7, 6, 6, *[3] * 10, *[2] * 10, *[1] * 17]


def test_a_few_large_groups_do_not_lift_the_gate_above_its_level() -> None:
    """With C - 1 degrees of freedom and the ordinary clustered variance this rate is 0.062."""
    rng = np.random.default_rng(0)
    member = np.repeat(np.arange(len(UNEQUAL)), UNEQUAL)
    groups = [str(group) for group in member]
    trials = above = 0
    for _ in range(1500):
        draws = rng.choice([1.0, -1.0, 0.0], p=[0.2, 0.2, 0.6], size=(2, len(member)))
        follows = rng.random(len(member)) < math.sqrt(0.6)
        values = np.where(follows, draws[0][member], draws[1])
        above += paired_interval((values > 0).astype(float), (values < 0).astype(float), groups, ALPHA).low > 0  # type: ignore[arg-type]
        trials += 1
    assert above / trials < ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / trials)
    assert above / trials > 0.02


def test_to_be_shown_no_worse_is_more_than_not_to_be_shown_worse() -> None:
    few = paired_interval([1.0] * 9 + [0.0] * 11, [1.0] * 10 + [0.0] * 10, [str(i) for i in range(20)], ALPHA)
    assert few.high > 0, "not shown to be worse"
    assert not non_inferior(few, 0.03)
    many = paired_interval([1.0] * 1000, [1.0] * 1000, [str(i) for i in range(1000)], ALPHA)
    assert non_inferior(many, 0.03)


# ---------------------------------------------------------------------- ratios


def test_f1_is_that_of_its_counts() -> None:
    counts = np.array([[[3, 1, 1], [0, 0, 0], [0, 2, 5]]], dtype=float)
    assert f1(counts)[0, [0, 2]] == pytest.approx([0.75, 0.0])
    assert np.isnan(f1(counts)[0, 1])
    assert micro_f1(counts) == pytest.approx([6 / 15])
    assert macro_f1(counts) == pytest.approx([0.375]), "a field that does not occur counts for nothing"
    assert macro_f1(np.zeros((1, 2, 3))) == micro_f1(np.zeros((1, 2, 3))) == [0.0]


def counted(rng: np.random.Generator, clusters: int, size: int, chances: list[float]) -> np.ndarray:
    """Counts of right, wrong and missed of one field: each row has one value, which groups get right more or less."""
    tilt = rng.uniform(0.6, 1.4, clusters).repeat(size)
    right = rng.random(clusters * size) < np.clip(chances[0] * tilt, 0, 1)
    wrong = ~right & (rng.random(clusters * size) < chances[1])
    return np.stack([right, wrong, ~right], axis=-1).astype(float)[:, None, :]


def test_the_bootstrap_over_groups_keeps_its_level_at_the_fewest_that_it_takes() -> None:
    rng = np.random.default_rng(1)
    clusters, size, chances = 30, 4, [0.6, 0.5]
    many = counted(rng, 200_000, 1, chances).sum(axis=0)
    truth = float(micro_f1(many[None])[0])
    groups = [str(i // size) for i in range(clusters * size)]
    trials, below, above = 400, 0, 0
    for seed in range(trials):
        counts = counted(rng, clusters, size, chances)
        interval = clustered_ratio(counts, None, groups, micro_f1, ALPHA, seed=seed, draws=1000)
        below, above = below + (interval.high < truth), above + (interval.low > truth)
    ceiling = ALPHA + 2.5 * math.sqrt(ALPHA * (1 - ALPHA) / trials)
    assert 0 < below / trials < ceiling
    assert 0 < above / trials < ceiling


def test_the_bootstrap_of_a_mean_is_the_t_interval_over_groups() -> None:
    rng = np.random.default_rng(2)
    values, groups = rng.random(90), [str(i // 3) for i in range(90)]
    counts = np.stack([values, np.ones(90)], axis=-1)
    drawn = clustered_ratio(counts, None, groups, lambda c: c[..., 0] / c[..., 1], ALPHA, seed=0, draws=40_000)
    exact = clustered_t(values.tolist(), groups, ALPHA)
    # Percentiles as they are would be too narrow by twice this.
    assert (drawn.low, drawn.high) == pytest.approx((exact.low, exact.high), abs=0.0012)
    assert drawn.estimate == pytest.approx(exact.estimate)


def test_the_bootstrap_pairs_arms_and_repeats_by_seed() -> None:
    rng = np.random.default_rng(3)
    ours = counted(rng, 40, 3, [0.7, 0.5])
    groups = [str(i // 3) for i in range(120)]
    same = clustered_ratio(ours, ours, groups, micro_f1, ALPHA, seed=0)
    assert same.estimate == 0
    assert (same.low, same.high) == pytest.approx((-unseen(40, ALPHA), unseen(40, ALPHA))), "no width is no certainty"
    other = counted(rng, 40, 3, [0.5, 0.5])
    first = clustered_ratio(ours, other, groups, macro_f1, ALPHA, seed=5)
    assert first == clustered_ratio(ours, other, groups, macro_f1, ALPHA, seed=5)
    assert first != clustered_ratio(ours, other, groups, macro_f1, ALPHA, seed=6)
    assert first.low < first.estimate < first.high


def test_the_bootstrap_refuses_few_groups_and_uneven_arms() -> None:
    counts = np.ones((29, 1, 3))
    with pytest.raises(ValueError, match="29 groups"):
        clustered_ratio(counts, None, [str(i) for i in range(29)], micro_f1, ALPHA, seed=0)
    with pytest.raises(ValueError, match="one group for each row"):
        clustered_ratio(counts, counts[1:], [str(i) for i in range(30)], micro_f1, ALPHA, seed=0)


# ---------------------------------------------------------------------- many questions, many looks


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_agrees_with_statsmodels(p_values: list[float]) -> None:
    named = {f"slice {i}": p for i, p in enumerate(p_values)}
    assert list(holm(named).values()) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert list(holm(named)) == list(named)


def test_what_all_looks_spend_is_alpha() -> None:
    assert [round(spent(0.05, look), 4) for look in range(1, 6)] == [0.0304, 0.0076, 0.0034, 0.0019, 0.0012]
    total = sum(spent(0.05, look) for look in range(1, 100_000))
    assert 0.04999 < total < 0.05
    with pytest.raises(ValueError, match="the first is 1"):
        spent(0.05, 0)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (8, 2), (3, 9), (40, 38), (200, 100)])
def test_the_e_value_is_the_mean_likelihood_ratio(better: int, worse: int) -> None:
    chances = np.linspace(0.5, 1, 400_001)[:-1]
    with np.errstate(divide="ignore"):
        ratio = np.exp(better * np.log(2 * chances) + worse * np.log(2 * (1 - chances)))
    assert e_value(better, worse) == pytest.approx(ratio.mean(), rel=1e-4)


def test_evidence_beyond_a_float_is_infinite() -> None:
    assert e_value(3000, 0) == math.inf
    assert e_value(0, 3000) < 1e-3


def test_watching_for_ever_alarms_no_more_often_than_alpha() -> None:
    """A fixed-size test at the same level, looked at after every pair, would alarm in a third of the runs."""
    rng = np.random.default_rng(4)
    runs, length = 400, 300
    table = np.array([[e_value(b, t - b) if b <= t else 0.0 for b in range(length + 1)] for t in range(length + 1)])
    wins = (rng.random((runs, length)) < 0.5).cumsum(axis=1)
    times = np.arange(1, length + 1)
    alarmed = (table[times, wins] >= 1 / ALPHA).any(axis=1).mean()
    naive = (stats.binom.sf(wins - 1, times, 0.5) <= ALPHA).any(axis=1).mean()
    assert alarmed < ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / runs)
    assert naive > 0.2
    better = (rng.random((runs, length)) < 0.65).cumsum(axis=1)
    assert (table[times, better] >= 1 / ALPHA).any(axis=1).mean() > 0.9
