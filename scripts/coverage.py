"""How often intervals miss the truth: simulated, for docs/GATE.md.

    python scripts/coverage.py [--draws 4000]

Each line draws paired right-or-wrong scores of two arms over rows in groups and counts how often the truth lies below
the lower bound (the error that ships an adapter), how often it lies between the bounds, and how wide they are. Bounds
are one-sided at 0.05, so both together should hold the truth in 90 % of the draws, and each should err in at most 5 %.
"""

import argparse
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from tunesmith.gate.made_up import Crowd
from tunesmith.progress import say
from tunesmith.stats import clustered_ratio, clustered_t, micro_f1, paired_interval, tango

ALPHA = 0.05
Bounds = tuple[float, float]
Paired = Callable[[Sequence[float], Sequence[float], Sequence[str]], Bounds]


def wald(ours: Sequence[float], theirs: Sequence[float], groups: Sequence[str]) -> Bounds:
    """The textbook interval: estimate and 1.645 standard errors."""
    n, (better, worse) = len(ours), discordant(ours, theirs)
    estimate = (better - worse) / n
    reach = 1.6449 * math.sqrt(((better + worse) / n - estimate**2) / n)
    return estimate - reach, estimate + reach


def discordant(ours: Sequence[float], theirs: Sequence[float]) -> tuple[int, int]:
    """How many rows only the first has right, and only the second."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    return differences.count(1.0), differences.count(-1.0)


def by_rows(ours: Sequence[float], theirs: Sequence[float], groups: Sequence[str]) -> Bounds:
    """Tango's score interval, which takes rows for independent."""
    return tango(*discordant(ours, theirs), len(ours), ALPHA)


def ordinary(ours: Sequence[float], theirs: Sequence[float], groups: Sequence[str]) -> Bounds:
    """The usual clustered variance, and one degree of freedom fewer than groups, whatever their sizes."""
    n, differences = len(ours), np.subtract(ours, theirs)
    _, member = np.unique(groups, return_inverse=True)
    sums = np.bincount(member, differences - differences.mean())
    clusters = len(sums)
    reach = stats.t.ppf(1 - ALPHA, clusters - 1) * math.sqrt(clusters / (clusters - 1) * (sums**2).sum()) / n
    return differences.mean() - reach, differences.mean() + reach


def by_groups(ours: Sequence[float], theirs: Sequence[float], groups: Sequence[str]) -> Bounds:
    """The t interval over groups."""
    interval = clustered_t([a - b for a, b in zip(ours, theirs, strict=True)], groups, ALPHA)
    return interval.low, interval.high


def gates(ours: Sequence[float], theirs: Sequence[float], groups: Sequence[str]) -> Bounds:
    """The gate's: the wider of the two, on each side."""
    interval = paired_interval(ours, theirs, groups, ALPHA)
    return interval.low, interval.high


INTERVALS: dict[str, Paired] = {
    "Wald": wald,
    "Tango": by_rows,
    "ordinary clustered t": ordinary,
    "t over groups": by_groups,
    "the gate's": gates,
}

UNEVEN = (20, 20, 11, 9, 8, 7, 6, 6, *(4,) * 6, *(2,) * 10, *(1,) * 13)
"""Groups as those of bank-answers: two of them hold a quarter of the rows."""
SETTINGS: list[tuple[str, tuple[int, ...], float, float, float]] = [
    # Which groups, their sizes, discordance, correlation within groups, true difference.
    ("50 of 1", (1,) * 50, 0.05, 0.0, 0.0),
    ("50 of 1", (1,) * 50, 0.05, 0.0, -0.03),
    ("50 of 1", (1,) * 50, 0.20, 0.0, 0.0),
    ("250 of 1", (1,) * 250, 0.02, 0.0, -0.02),
    ("250 of 1", (1,) * 250, 0.05, 0.0, 0.0),
    ("250 of 1", (1,) * 250, 0.20, 0.0, 0.0),
    ("250 of 1", (1,) * 250, 0.20, 0.0, 0.10),
    ("40 of 5", (5,) * 40, 0.20, 0.1, 0.0),
    ("40 of 5", (5,) * 40, 0.20, 0.3, 0.0),
    ("10 of 20", (20,) * 10, 0.20, 0.3, 0.0),
    ("uneven", UNEVEN, 0.20, 0.3, 0.0),
    ("uneven", UNEVEN, 0.40, 0.3, 0.0),
    ("uneven", UNEVEN, 0.40, 0.6, 0.0),
]
RATIOS = [("30 of 4", (4,) * 30), ("60 of 4", (4,) * 60), ("uneven", UNEVEN)]


def paired_lines(draws: int) -> list[str]:
    """One line an interval and a setting."""
    lines = []
    for place, (label, sizes, q, icc, truth) in enumerate(SETTINGS):
        say(f"  {place + 1} of {len(SETTINGS)}: {label}, q {q}, icc {icc}, truth {truth:+}")
        crowd = Crowd(np.random.default_rng(place), sizes, icc, draws, right_or_wrong=True)
        mean = 0.5 - truth / 2
        base = crowd.arm(mean)
        ours, theirs = crowd.rows(crowd.other(base, mean, truth, q)).tolist(), crowd.rows(base).tolist()
        groups = [str(group) for group, size in enumerate(sizes) for _ in range(size)]
        for name, interval in INTERVALS.items():
            bounds = np.array([interval(a, b, groups) for a, b in zip(ours, theirs, strict=True)])
            lines.append(line([name, label, f"{q:.2f}", f"{icc:.1f}", f"{truth:+.2f}"], bounds, truth))
    return lines


def line(labels: list[str], bounds: np.ndarray, truth: float) -> str:
    """A line of the table."""
    above, below = (bounds[:, 0] > truth).mean(), (bounds[:, 1] < truth).mean()
    width = (bounds[:, 1] - bounds[:, 0]).mean()
    return "| " + " | ".join([*labels, f"{1 - above - below:.3f}", f"{above:.3f}", f"{width:.3f}"]) + " |"


def ratio_lines(draws: int) -> list[str]:
    """The bootstrap over groups of the difference of two arms' micro F1; a row has five fields."""
    lines = []
    for place, (label, sizes) in enumerate(RATIOS):
        say(f"  F1, {label}")
        groups = [str(group) for group, size in enumerate(sizes) for _ in range(size)]
        rng = np.random.default_rng(100 + place)
        large = f1_arms(rng, (1,) * 40_000)
        truth = float(micro_f1(large[0].sum(axis=0)[None])[0] - micro_f1(large[1].sum(axis=0)[None])[0])
        found = []
        for seed in range(draws):
            ours, theirs = f1_arms(rng, sizes)
            interval = clustered_ratio(ours, theirs, groups, micro_f1, ALPHA, seed=seed, draws=1000)
            found.append((interval.low, interval.high))
        lines.append(line(["bootstrap, F1", label, "", "", f"{truth:+.2f}"], np.array(found), truth))
    return lines


def f1_arms(rng: np.random.Generator, sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Counts of two arms, (rows, fields, 3): groups are easy or hard for both."""
    ease = np.repeat(rng.normal(0, 0.15, len(sizes)), sizes)[:, None]
    arms = []
    for skill in (0.7, 0.6):
        right = rng.random((len(ease), 5)) < skill + ease
        wrong = ~right & (rng.random(right.shape) < 0.6)
        arms.append(np.stack([right, wrong, ~right], axis=-1).astype(float))
    return arms[0], arms[1]


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000)
    draws = parser.parse_args().draws
    print("| interval | groups | q | icc | truth | coverage | lower bound above the truth | width |")
    print("|---|---|---|---|---|---|---|---|")
    for text in [*paired_lines(draws), *ratio_lines(draws // 4)]:
        print(text, flush=True)


if __name__ == "__main__":
    main()
