"""Bounds for a paired difference of two arms on the same rows.

All bounds are one-sided at level alpha; `interval` gives both, so it covers 1 - 2 alpha. Rows of one group are not
independent, and few discordant pairs are less certain than they look: for right-or-wrong metrics the interval is the
wider, on each side, of Tango's score interval over rows and the t interval over groups. An empty or single-group sample
has no interval and raises: a width of zero would read as certainty.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import optimize, stats


@dataclass(frozen=True)
class Interval:
    """An estimate with its one-sided lower and upper bounds, the rows and the groups behind it."""

    estimate: float
    low: float
    high: float
    n: int
    clusters: int


def tango(better: int, worse: int, n: int, alpha: float) -> tuple[float, float]:
    """Score bounds for the difference of two paired proportions.

    `better` and `worse` count discordant pairs, n all pairs. Inverts Tango's score test with its restricted maximum
    likelihood estimate. Source: Tango 1998, Statistics in Medicine 17:891.
    """
    if not 0 <= better + worse <= n or n < 1:
        raise ValueError(f"tango: {better} + {worse} discordant pairs of {n}")
    z = stats.norm.ppf(1 - alpha)
    difference = (better - worse) / n

    def statistic(delta: float) -> float:
        a = 2 * n
        b = -better - worse + (2 * n - better + worse) * delta
        c = -worse * delta * (1 - delta)
        q21 = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = n * (2 * q21 + delta * (1 - delta))
        distance = better - worse - n * delta
        return math.copysign(math.inf, distance) if variance <= 0 and distance else distance / math.sqrt(variance or 1)

    def solve(target: float, low: float, high: float) -> float:
        def gap(delta: float) -> float:
            return max(min(statistic(delta) - target, 1e9), -1e9)

        if gap(low) * gap(high) > 0:
            return low if abs(gap(low)) < abs(gap(high)) else high
        return float(optimize.brentq(gap, low, high, xtol=1e-12))

    edge = 1 - 1e-12
    low = -1.0 if difference <= -edge else solve(z, -edge, difference)
    high = 1.0 if difference >= edge else solve(-z, difference, edge)
    return low, high


def clustered_t(values: Sequence[float], groups: Sequence[str], alpha: float) -> Interval:
    """Mean of values with t bounds from the spread between groups.

    The standard error sums residuals within a group before squaring them, with the factor C/(C-1) and C-1 degrees of
    freedom. Source: cluster-robust variance as in Miller 2024, arXiv:2411.00640.

    Raises:
        ValueError: lengths differ, or fewer than two groups.
    """
    if len(values) != len(groups):
        raise ValueError("clustered_t: one group for each value")
    sums: dict[str, float] = defaultdict(float)
    n = len(values)
    mean = math.fsum(values) / n if n else math.nan
    for value, group in zip(values, groups, strict=True):
        sums[group] += value - mean
    clusters = len(sums)
    if clusters < 2:
        raise ValueError(f"clustered_t: {clusters} groups have no spread")
    error = math.sqrt(clusters / (clusters - 1) * math.fsum(s * s for s in sums.values())) / n
    reach = float(stats.t.ppf(1 - alpha, clusters - 1)) * error
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
        unseen = 1 - alpha ** (1 / by_group.clusters)
        low, high = low - unseen, high + unseen
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
