"""Before the evidence: how many rows a bound needs, and what so many rows can show.

All levels are one-sided, as the bounds in `stats` are. Formulas are for independent rows; rows in groups need
`design_effect` times as many.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special


def _z(level: float) -> float:
    """The normal quantile that a chance of `level` lies above."""
    return -float(special.ndtri(level))


def rows_for_gain(gain: float, discordance: float, alpha: float, power: float) -> int | None:
    """Rows on which a true gain of a right-or-wrong metric is shown to be above 0, with this power.

    n = (z_alpha sqrt(q) + z_beta sqrt(q - gain^2))^2 / gain^2, where q is the part of pairs that differ. None if so few
    pairs differ that there can be no such gain. Source: Connor 1987, Biometrics 43:207.
    """
    if not 0 < gain <= discordance:
        return None
    root = _z(alpha) * math.sqrt(discordance) + _z(1 - power) * math.sqrt(discordance - gain**2)
    return math.ceil((root / gain) ** 2)


def detectable_gain(n: float, discordance: float, alpha: float, power: float) -> float | None:
    """The smallest true gain that n rows show to be above 0 with this power; None if pairs differ too seldom.

    `rows_for_gain` solved for the gain.
    """

    def lacking(gain: float) -> float:
        root = _z(alpha) * math.sqrt(discordance) + _z(1 - power) * math.sqrt(max(0.0, discordance - gain**2))
        return root - gain * math.sqrt(n)

    if discordance <= 0 or lacking(discordance) > 0:
        return None
    return float(optimize.brentq(lacking, 0.0, discordance))


def rows_for_margin(margin: float, variance: float, alpha: float, power: float, effect: float = 0.0) -> int | None:
    """Rows on which an arm is shown to be worse by less than the margin, with this power.

    n = (z_alpha + z_beta)^2 v / (margin + effect)^2, where v is the variance of a row's difference: for right-or-wrong
    metrics, the part of pairs that differ. `effect` is the true difference that is planned for, 0 for no harm. None if
    it lies beyond the margin. Source: the normal form for paired non-inferiority, as in Liu et al. 2002, Statistics in
    Medicine 21:231.
    """
    if margin + effect <= 0:
        return None
    return max(2, math.ceil((_z(alpha) + _z(1 - power)) ** 2 * variance / (margin + effect) ** 2))


def smallest_margin(n: float, variance: float, alpha: float, power: float) -> float:
    """The smallest margin within which n rows certify an arm that is truly no worse: `rows_for_margin` solved for
    it."""
    return (_z(alpha) + _z(1 - power)) * math.sqrt(variance / n)


def rows_for_mean(
    difference: float,
    variance: float,
    alpha: float,
    power: float,
    *,
    noise: tuple[float, float] = (0.0, 0.0),
    answers: tuple[int, int] = (1, 1),
) -> int:
    """Rows on which a true difference of means is shown to be above 0, with this power.

    n = (z_alpha + z_beta)^2 (w^2 + s_A^2 / K_A + s_B^2 / K_B) / difference^2. `variance` is w^2, that of a row's
    difference between the arms' expected scores; `noise` is s^2, the mean variance among answers of one arm to one row;
    `answers` is K, how many are drawn and averaged. Greedy answers have no noise. A two-sided test at 5 % is alpha
    0.025 here. Source: Miller 2024, arXiv:2411.00640.
    """
    spread = variance + sum(each / count for each, count in zip(noise, answers, strict=True))
    return math.ceil((_z(alpha) + _z(1 - power)) ** 2 * spread / difference**2)


def intraclass_correlation(values: Sequence[float], groups: Sequence[str]) -> float:
    """How alike rows of one group are: the part of the variance that lies between groups.

    (MSB - MSW) / (MSB + (m - 1) MSW) with m = (n - sum m_g^2 / n) / (C - 1), from the analysis of variance of groups of
    unequal size; below 0 it is 0. Source: Donner 1986, International Statistical Review 54:67.

    Raises:
        ValueError: fewer than two groups, or none of them has two rows.
    """
    data = np.asarray(values, dtype=float)
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(member)
    n, clusters = len(data), len(sizes)
    if clusters < 2 or n == clusters:
        raise ValueError(f"intraclass_correlation: {n} rows in {clusters} groups do not tell it")
    means = np.bincount(member, data) / sizes
    between = float((sizes * (means - data.mean()) ** 2).sum()) / (clusters - 1)
    within = float(((data - means[member]) ** 2).sum()) / (n - clusters)
    size = (n - float((sizes**2).sum()) / n) / (clusters - 1)
    total = between + (size - 1) * within
    return max(0.0, (between - within) / total) if total > 0 else 0.0


def design_effect(sizes: Sequence[int], correlation: float) -> float:
    """How many times as many rows are needed because they come in groups of these sizes.

    1 + (sum m^2 / sum m - 1) icc; for equal sizes 1 + (m - 1) icc. Source: Kish 1965, Survey Sampling.
    """
    return 1 + (sum(size * size for size in sizes) / sum(sizes) - 1) * correlation
