"""Intervals for shares and effects over rows that stand for different amounts of traffic and are not independent.

The variance is that of a ratio, linearised, with the residuals of a group summed before they are squared. For a share
it is turned into the number of independent rows that would be as certain, and Wilson's interval is taken at that
number; at 0 and 1, where there is no spread, the groups are counted. Source: Korn and Graubard 1998 (effective numbers
in a score interval); Kish 1965 (weights).
"""

import math
from collections import defaultdict
from collections.abc import Sequence

from scipy import stats

from tunesmith.stats import Interval


def share(hits: Sequence[bool], weights: Sequence[float], groups: Sequence[str], alpha: float) -> Interval:
    """The weighted share of hits, with one-sided bounds at `alpha`; 0 to 1 where there is only one group."""
    whole = math.fsum(weights)
    if not hits:
        raise ValueError("share: no rows")
    estimate = math.fsum(w for hit, w in zip(hits, weights, strict=True) if hit) / whole
    clusters = len(set(groups))
    if clusters < 2:
        return Interval(estimate, 0.0, 1.0, len(hits), clusters)
    rows = effective_rows(hits, weights, groups, alpha)
    z = float(stats.norm.ppf(1 - alpha))
    low, high = wilson(estimate, rows, z)
    return Interval(estimate, low, high, len(hits), clusters)


def effective_rows(hits: Sequence[bool], weights: Sequence[float], groups: Sequence[str], alpha: float) -> float:
    """How many independent rows of equal weight would tell a share as well; never more than there are."""
    whole = math.fsum(weights)
    estimate = math.fsum(w for hit, w in zip(hits, weights, strict=True) if hit) / whole
    by_weight = whole**2 / math.fsum(w * w for w in weights)
    clusters = len(set(groups))
    variance = _variance([float(hit) for hit in hits], weights, groups)
    rows = estimate * (1 - estimate) / variance if variance > 0 else min(by_weight, clusters)
    fewer = float(stats.norm.ppf(1 - alpha) / stats.t.ppf(1 - alpha, clusters - 1)) ** 2
    return max(1.0, min(rows, by_weight) * fewer)


def wilson(estimate: float, rows: float, z: float) -> tuple[float, float]:
    """Wilson's score bounds of a share of so many rows, which need not be a whole number."""
    middle = (estimate + z * z / (2 * rows)) / (1 + z * z / rows)
    reach = z / (1 + z * z / rows) * math.sqrt(estimate * (1 - estimate) / rows + z * z / (4 * rows * rows))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def weighted_mean(values: Sequence[float], weights: Sequence[float], groups: Sequence[str], alpha: float) -> Interval:
    """The weighted mean with t bounds from the spread between groups.

    Raises:
        ValueError: fewer than two groups.
    """
    clusters = len(set(groups))
    if clusters < 2:
        raise ValueError(f"weighted_mean: {clusters} groups have no spread")
    whole = math.fsum(weights)
    estimate = math.fsum(v * w for v, w in zip(values, weights, strict=True)) / whole
    reach = float(stats.t.ppf(1 - alpha, clusters - 1)) * math.sqrt(_variance(values, weights, groups))
    return Interval(estimate, estimate - reach, estimate + reach, len(values), clusters)


def _variance(values: Sequence[float], weights: Sequence[float], groups: Sequence[str]) -> float:
    """Variance of a weighted mean, by group."""
    whole = math.fsum(weights)
    mean = math.fsum(v * w for v, w in zip(values, weights, strict=True)) / whole
    sums: dict[str, float] = defaultdict(float)
    for value, weight, group in zip(values, weights, groups, strict=True):
        sums[group] += weight * (value - mean) / whole
    return len(sums) / (len(sums) - 1) * math.fsum(s * s for s in sums.values())


def rows_to_part(larger: Interval, smaller: Interval) -> int | None:
    """About how many rows would part two shares, the lower bound of one above the upper bound of the other.

    Both shrink with the square root of the rows; None where the estimates are one.
    """
    gap = larger.estimate - smaller.estimate
    if gap <= 0:
        return None
    reach = (larger.estimate - larger.low) + (smaller.high - smaller.estimate)
    return max(larger.n, math.ceil(larger.n * (reach / gap) ** 2))
