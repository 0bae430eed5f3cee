"""From the scores of a few sizes to a statement about more rows, and how far it can be trusted.

Every size is scored on the same dev rows, so their errors hang together: a hard row is hard for all. All that is said
here takes that into account, and that rows of one group are not independent: the covariance of the sizes' means is
summed by group, as the gate's standard errors are.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import curve_fit

from tunesmith.stats import Interval, paired_interval

FEWEST = 3
"""Sizes below which nothing is said: a curve has three parameters."""
REFITS = 400

Numbers = NDArray[np.float64]

# score = ceiling - gap * (rows / most rows) ** -rate, with gap the distance to the ceiling at the most rows.
LOWEST, HIGHEST = (0.0, 0.0, 0.05), (1.0, 1.0, 3.0)


@dataclass(frozen=True)
class Projection:
    """What the fitted curve says of some sizes, with bounds."""

    rows: list[int]
    estimate: list[float]
    low: list[float]
    high: list[float]
    ceiling: float
    gap: float
    rate: float
    refits: int
    failed: int
    """Refits that found no curve; the bounds are of the others."""


def trend(rows: Sequence[int], scores: Sequence[Sequence[float]], groups: Sequence[str], alpha: float) -> Interval:
    """What each doubling of the rows brought: the slope of the least-squares line over log2(rows), with bounds.

    `scores` holds for each size the score of every dev row, in one order, `groups` each dev row's group. The slope
    weighs the larger sizes with plus and the smaller with minus; so it is a paired difference of two weighted means,
    and has the bounds that the gate gives to one.
    """
    doublings = np.log2(np.asarray(rows, dtype=float))
    centred = doublings - doublings.mean()
    weights = centred / np.square(centred).sum()
    total = float(weights[weights > 0].sum())
    later = np.clip(weights, 0, None) @ np.asarray(scores) / total
    earlier = -np.clip(weights, None, 0) @ np.asarray(scores) / total
    found = paired_interval(later.tolist(), earlier.tolist(), groups, alpha)
    return Interval(found.estimate * total, found.low * total, found.high * total, found.n, found.clusters)


def covariance(scores: Sequence[Sequence[float]], groups: Sequence[str]) -> Numbers:
    """The covariance of the sizes' mean scores, (sizes, sizes), from the spread between groups of dev rows.

    On its diagonal stands the variance of two rows more, one right and one wrong, that no two sizes share: where all
    answers are right, or those of two sizes equal, there is noise all the same.
    """
    values = np.asarray(scores, dtype=float)
    residuals = values - values.mean(axis=1, keepdims=True)
    sums: dict[str, Numbers] = defaultdict(lambda: np.zeros(len(values)))
    for column, group in enumerate(groups):
        sums[group] = sums[group] + residuals[:, column]
    by_group = np.stack(list(sums.values()))
    count, clusters = values.shape[1], len(by_group)
    spread: Numbers = clusters / (clusters - 1) * by_group.T @ by_group / count**2
    floor: Numbers = np.eye(len(values)) * 0.5 / (count + 2) ** 2
    return spread + floor


def project(
    rows: Sequence[int],
    means: Sequence[float],
    noise: Numbers,
    at: Sequence[int],
    alpha: float,
    refits: int = REFITS,
) -> Projection:
    """Fit an inverse power law to the means and follow it to the sizes `at`; bounds by a parametric bootstrap.

    Scores are drawn anew around the fitted curve, with the covariance `noise`, and fitted again. Where the means lie
    further from the curve than dev's noise explains, as training has noise of its own, the covariance is scaled up by
    what is too much (the ratio of Birge 1932).

    Raises:
        RuntimeError: no curve was found.
    """
    most = max(rows)
    sizes, there = np.asarray(rows, dtype=float) / most, np.asarray(at, dtype=float) / most
    seen = np.asarray(means, dtype=float)
    begin = (min(float(seen.max()) + 0.05, 1.0), max(float(seen[-1] - seen[0]), 0.05), 0.5)
    found = _fit(sizes, seen, noise, begin)
    fitted = _power(sizes, *found)
    misfit = float((seen - fitted) @ np.linalg.solve(noise, seen - fitted))
    scale = max(1.0, misfit / max(1, len(rows) - len(LOWEST)))
    rng = np.random.default_rng(0)
    drawn = rng.multivariate_normal(fitted, noise * scale, size=refits, method="cholesky").clip(0, 1)
    curves: list[Numbers] = []
    for scores in drawn:
        try:
            curves.append(_power(there, *_fit(sizes, scores, noise, found)))
        except RuntimeError:
            continue
    if not curves:
        raise RuntimeError("no refit found a curve")
    low, high = np.quantile(np.stack(curves), [alpha, 1 - alpha], axis=0)
    estimate = _power(there, *found)
    return Projection(
        list(at),
        estimate.tolist(),
        np.minimum(low, estimate).tolist(),
        np.maximum(high, estimate).tolist(),
        *found,
        refits,
        refits - len(curves),
    )


def _power(sizes: Numbers, ceiling: float, gap: float, rate: float) -> Numbers:
    curve: Numbers = ceiling - gap * sizes**-rate
    return curve


def _slopes(sizes: Numbers, ceiling: float, gap: float, rate: float) -> Numbers:
    """The curve's derivatives by its parameters, (sizes, parameters)."""
    powers = sizes**-rate
    return np.stack([np.ones_like(sizes), -powers, gap * powers * np.log(sizes)], axis=1)


def _fit(sizes: Numbers, scores: Numbers, noise: Numbers, begin: Any) -> tuple[float, float, float]:
    inside = np.clip(begin, np.add(LOWEST, 1e-6), np.subtract(HIGHEST, 1e-6))
    found, _ = curve_fit(
        _power, sizes, scores, p0=inside, sigma=noise, absolute_sigma=True, bounds=(LOWEST, HIGHEST), jac=_slopes
    )
    ceiling, gap, rate = (float(value) for value in found)
    return ceiling, gap, rate
