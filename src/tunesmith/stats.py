"""Bounds, tests and levels: the statistics that a verdict rests on.

All bounds are one-sided at level alpha; `interval` gives both, so it covers 1 - 2 alpha. Rows of one group are not
independent, and few discordant pairs are less certain than they look: for right-or-wrong metrics the interval is the
wider, on each side, of Tango's score interval over rows and the t interval over groups. An empty or single-group sample
has no interval and raises: a width of zero would read as certainty. How many rows a bound needs stands in `design`.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

Numbers = NDArray[np.float64]
Number = TypeVar("Number", float, Numbers)

FEWEST_CLUSTERS = 30
"""Groups below which a bootstrap over them is not trusted."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its one-sided lower and upper bounds, the rows and the groups behind it."""

    estimate: float
    low: float
    high: float
    n: int
    clusters: int


# ---------------------------------------------------------------------- one rate


def clopper_pearson(successes: int, n: int, alpha: float) -> tuple[float, float]:
    """Exact bounds of a rate: each errs with a chance of at most alpha, whatever the rate is.

    low = Beta^-1(alpha; x, n - x + 1), high = Beta^-1(1 - alpha; x + 1, n - x). Source: Clopper and Pearson 1934,
    Biometrika 26:404.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"clopper_pearson: {successes} of {n}")
    low = 0.0 if successes == 0 else float(special.betaincinv(successes, n - successes + 1, alpha))
    high = 1.0 if successes == n else float(special.betaincinv(successes + 1, n - successes, 1 - alpha))
    return low, high


def unseen(n: int, alpha: float) -> float:
    """How frequent something may still be that was seen in none of n: 1 - alpha^(1/n), near 3/n for alpha 0.05.

    It is Clopper and Pearson's upper bound for 0 of n. Source: Hanley and Lippman-Hand 1983, JAMA 249:1743, "the rule
    of three".
    """
    return float(-math.expm1(math.log(alpha) / n))


# ---------------------------------------------------------------------- two arms, right or wrong


def tango_parts(better: Number, worse: Number, n: float, delta: float, root: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Distance and standard deviation of Tango's score statistic for a hypothesised difference delta.

    distance = b - c - n delta and sd = sqrt(n (2 q + delta (1 - delta))), where q is the chance of a worse pair that
    maximises the likelihood under delta: the larger root of 2n q^2 + (-b - c + (2n - b + c) delta) q - c delta (1 -
    delta). The difference is shown to be above delta where distance > z sd. Numbers or arrays of them; `root` is the
    square root for either. Source: Tango 1998, Statistics in Medicine 17:891.
    """
    slope = -better - worse + (2 * n - better + worse) * delta
    constant = -worse * delta * (1 - delta)
    # Rounding takes what is zero below it.
    q = (root(abs(slope * slope - 8 * n * constant)) - slope) / (4 * n)
    return better - worse - n * delta, root(abs(n * (2 * q + delta * (1 - delta))))


def tango(better: int, worse: int, n: int, alpha: float) -> tuple[float, float]:
    """Score bounds for the difference of two paired proportions.

    `better` and `worse` count discordant pairs, n all pairs. Source: Tango 1998, Statistics in Medicine 17:891.
    """
    if not 0 <= better + worse <= n or n < 1:
        raise ValueError(f"tango: {better} + {worse} discordant pairs of {n}")
    z = float(special.ndtri(1 - alpha))
    difference = (better - worse) / n

    def solve(target: float, low: float, high: float) -> float:
        def gap(delta: float) -> float:
            distance, deviation = tango_parts(float(better), float(worse), n, delta, math.sqrt)
            if deviation == 0:
                return math.copysign(1e9, distance) if distance else -target
            return max(min(float(distance / deviation - target), 1e9), -1e9)

        if gap(low) * gap(high) > 0:
            return low if abs(gap(low)) < abs(gap(high)) else high
        return float(optimize.brentq(gap, low, high, xtol=1e-12))

    edge = 1 - 1e-12
    low = -1.0 if difference <= -edge else solve(z, -edge, difference)
    high = 1.0 if difference >= edge else solve(-z, difference, edge)
    return low, high


def mcnemar(better: int, worse: int) -> float:
    """Exact one-sided p of as many better among the discordant pairs, if better and worse were as likely.

    P[Bin(b + c, 1/2) >= b]. For display: the verdict rests on bounds, which say how large a gain is too. Source:
    McNemar 1947, Psychometrika 12:153, in its exact form.
    """
    return float(stats.binom.sf(better - 1, better + worse, 0.5)) if better + worse else 1.0


# ---------------------------------------------------------------------- means over groups


def clustered_t(values: Sequence[float], groups: Sequence[str], alpha: float) -> Interval:
    """Mean of values with t bounds from the spread between groups.

    The variance is the jackknife's over groups, (C-1)/C sum (r_g / (n - m_g))^2, where r_g sums a group's residuals and
    m_g its rows; t has n^2 / sum m_g^2 - 1 degrees of freedom, the groups that unequal ones are worth. With groups of
    one size these are the ordinary clustered variance and C - 1. Source: CV3 in MacKinnon, Nielsen and Webb 2023,
    Journal of Econometrics 232:272; effective clusters in Carter, Schnepel and Steigerwald 2017, Review of Economics
    and Statistics 99:698; clustering for scores of models in Miller 2024, arXiv:2411.00640.

    Raises:
        ValueError: lengths differ, or fewer than two groups.
    """
    if len(values) != len(groups):
        raise ValueError("clustered_t: one group for each value")
    sums: dict[str, float] = defaultdict(float)
    sizes: dict[str, int] = defaultdict(int)
    n = len(values)
    mean = math.fsum(values) / n if n else math.nan
    for value, group in zip(values, groups, strict=True):
        sums[group] += value - mean
        sizes[group] += 1
    clusters = len(sums)
    if clusters < 2:
        raise ValueError(f"clustered_t: {clusters} groups have no spread")
    spread = math.fsum((total / (n - sizes[group])) ** 2 for group, total in sums.items())
    worth = n * n / sum(size * size for size in sizes.values())
    reach = float(special.stdtrit(worth - 1, 1 - alpha)) * math.sqrt((clusters - 1) / clusters * spread)
    return Interval(mean, mean - reach, mean + reach, n, clusters)


def paired_interval(ours: Sequence[float], theirs: Sequence[float], groups: Sequence[str], alpha: float) -> Interval:
    """Bounds for the mean of ours - theirs over the same rows; scores lie in 0..1.

    Raises:
        ValueError: lengths differ, or fewer than two groups.
    """
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    by_group = clustered_t(differences, groups, alpha)
    if all(score in (0.0, 1.0) for score in (*ours, *theirs)):
        better, worse = differences.count(1.0), differences.count(-1.0)
        low, high = tango(better, worse, len(differences), alpha)
    else:
        low, high = by_group.low, by_group.high
    if low == high:
        # One difference everywhere in C groups: a rarer, other one could still hide (the rule of three).
        hidden = unseen(by_group.clusters, alpha)
        low, high = low - hidden, high + hidden
    return Interval(
        by_group.estimate, min(low, by_group.low), max(high, by_group.high), len(differences), by_group.clusters
    )


def mean_interval(scores: Sequence[float], groups: Sequence[str], alpha: float) -> Interval:
    """Bounds for the mean of scores in 0..1, clipped to it; Wilson's at the edges, where t has no width.

    Raises:
        ValueError: fewer than two groups.
    """
    by_group = clustered_t(scores, groups, alpha)
    low, high = by_group.low, by_group.high
    if all(score in (0.0, 1.0) for score in scores):
        wilson = stats.binomtest(int(sum(scores)), len(scores)).proportion_ci(1 - 2 * alpha, method="wilson")
        low, high = min(low, wilson.low), max(high, wilson.high)
    return Interval(by_group.estimate, max(0.0, float(low)), min(1.0, float(high)), by_group.n, by_group.clusters)


def rows_needed(interval: Interval, threshold: float) -> int | None:
    """About how many rows would bring the threshold out of the interval if the estimate stayed where it is.

    The reach of a bound shrinks with the square root of the rows. None if the estimate is the threshold.
    """
    room = abs(interval.estimate - threshold)
    above = interval.estimate > threshold
    reach = interval.estimate - interval.low if above else interval.high - interval.estimate
    if room == 0:
        return None
    return max(interval.n, math.ceil(interval.n * (reach / room) ** 2))


def non_inferior(interval: Interval, margin: float) -> bool:
    """Whether an arm is shown to be worse by less than the margin: the lower bound lies above -margin.

    "No significant drop" shows nothing of the kind: few rows never show a drop. Source: the confidence-interval form of
    a non-inferiority test, as in Liu et al. 2002, Statistics in Medicine 21:231, for paired proportions.
    """
    return interval.low > -margin


# ---------------------------------------------------------------------- ratios over groups


def f1(counts: Numbers) -> Numbers:
    """F1 of counts of right, wrong and missed on the last axis: 2 r / (2 r + w + m); NaN where all are zero."""
    right, wrong, missed = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * right / (2 * right + wrong + missed))


def micro_f1(counts: Numbers) -> Numbers:
    """F1 of all fields together; counts (..., fields, 3). 0 where there is nothing at all."""
    return np.nan_to_num(f1(counts.sum(axis=-2)))


def macro_f1(counts: Numbers) -> Numbers:
    """Mean of the fields' F1, of those that occur; counts (..., fields, 3). 0 where there is nothing at all."""
    each = f1(counts)
    occur = ~np.isnan(each)
    return np.asarray(np.nan_to_num(each).sum(axis=-1) / np.maximum(occur.sum(axis=-1), 1))


def clustered_ratio(
    ours: Numbers,
    theirs: Numbers | None,
    groups: Sequence[str],
    ratio: Callable[[Numbers], Numbers],
    alpha: float,
    *,
    seed: int,
    draws: int = 10_000,
) -> Interval:
    """Bounds for a ratio of sums over rows, or for its difference between two arms, by drawing groups anew.

    `ours` and `theirs` hold counts, rows first; `ratio` maps counts (draws, ...) summed over rows to a value a draw,
    such as `micro_f1`. Groups are drawn with replacement, both arms with the same draw. Percentiles stand at
    Phi(sqrt(C/(C-1)) t^-1(alpha; C-1)) instead of alpha, where C is the groups that unequal ones are worth, as in
    `clustered_t`: a bootstrap of C groups is too narrow by these two factors.
    Repeatable by seed. Source: Efron and Tibshirani 1993, ch. 13; Hesterberg 2015, American Statistician 69:371, for
    the widening.

    Raises:
        ValueError: fewer than FEWEST_CLUSTERS groups, or lengths differ.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    clusters = len(names)
    if clusters < FEWEST_CLUSTERS:
        raise ValueError(f"clustered_ratio: {clusters} groups; a bootstrap of fewer than {FEWEST_CLUSTERS} is too sure")
    arms = [ours] if theirs is None else [ours, theirs]
    if any(len(arm) != len(groups) for arm in arms):
        raise ValueError("clustered_ratio: one group for each row")
    sums = [np.zeros((clusters, *arm.shape[1:])) for arm in arms]
    for total, arm in zip(sums, arms, strict=True):
        np.add.at(total, member, arm)

    def value(weights: Numbers) -> Numbers:
        values = [ratio(np.tensordot(weights, total, axes=1)) for total in sums]
        return values[0] if theirs is None else values[0] - values[1]

    rng = np.random.default_rng(seed)
    even = np.full(clusters, 1 / clusters)
    parts = [rng.multinomial(clusters, even, size=min(1000, draws - done)) for done in range(0, draws, 1000)]
    drawn = np.concatenate([value(part.astype(np.float64)) for part in parts])
    worth = len(groups) ** 2 / float((np.bincount(member) ** 2).sum())
    tail = float(special.ndtr(math.sqrt(worth / (worth - 1)) * special.stdtrit(worth - 1, alpha)))
    low, high = (float(bound) for bound in np.quantile(drawn, [tail, 1 - tail]))
    estimate = float(value(np.ones((1, clusters)))[0])
    if low == high:
        # The same in every draw of C groups: a rarer group, of another kind, could still hide.
        low, high = low - unseen(clusters, alpha), high + unseen(clusters, alpha)
    return Interval(estimate, min(low, estimate), max(high, estimate), len(groups), clusters)


# ---------------------------------------------------------------------- many tests, many looks


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P values adjusted for having asked several questions: the chance of any false alarm stays at the level.

    The i-th smallest of m is multiplied by m - i + 1, and none falls below one before it. For questions of which any
    answer counts ("is some slice harmed?"); terms that must all hold need no adjustment. Source: Holm 1979,
    Scandinavian Journal of Statistics 6:65.
    """
    adjusted: dict[str, float] = {}
    highest = 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda pair: pair[1])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def spent(alpha: float, look: int) -> float:
    """The level of the k-th look at one gate split: alpha 6 / (pi^2 k^2).

    Over all looks, however many, these add up to alpha, so a split that is looked at for ever ships one no better than
    the incumbent with a chance of at most alpha. For alpha 0.05: 0.0304, 0.0076, 0.0034, 0.0019, 0.0012. Source: the
    union bound with sum 1/k^2 = pi^2/6, a standard choice of weights in online testing (Foster and Stine 2008, JRSS B
    70:429).
    """
    if look < 1:
        raise ValueError(f"spent: look {look}; the first is 1")
    return alpha * 6 / (math.pi**2 * look**2)


def e_value(better: int, worse: int) -> float:
    """Evidence from live pairs that an arm is better, valid however often one looks.

    Against "better is at most as likely as worse among discordant pairs": E = 2 2^(b+c) B(b+1, c+1) P[Beta(b+1, c+1) >
    1/2], the mean likelihood ratio over chances in (1/2, 1]. Under that hypothesis E reaches 1/alpha at any time with a
    chance of at most alpha, so a canary may stop at the first such moment; swap the counts to watch for harm. Infinite
    beyond what a float holds. Source: Ville's inequality with Robbins's mixture, as in Howard et al. 2021, Annals of
    Statistics 49:1055.
    """
    log = (
        (better + worse + 1) * math.log(2)
        + float(special.betaln(better + 1, worse + 1))
        # P[Beta(b+1, c+1) > 1/2] is P[Bin(b+c+1, 1/2) <= b].
        + float(stats.binom.logcdf(better, better + worse + 1, 0.5))
    )
    return math.exp(log) if log < 709 else math.inf
