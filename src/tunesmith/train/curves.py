"""Curves as a page draws them: points in percent of the plot, ticks at round numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

MOST = 600
"""Points of a line that are drawn; of more, the lowest and the highest of each few are."""

Points = list[tuple[float, float | None]]
"""Step and value; a value that is none leaves a gap."""


@dataclass(frozen=True)
class Curve:
    """What one figure shows."""

    name: str
    unit: str
    series: dict[str, Points]
    """By its name."""
    marks: list[float] = field(default_factory=list)
    """Steps at which the run was started again."""

    def drawn(self) -> dict[str, Any] | None:
        """Everything that the page needs; none where there is no value at all."""
        held = {name: thinned(points) for name, points in self.series.items() if any(y is not None for _, y in points)}
        if not held:
            return None
        right = max(x for points in held.values() for x, _ in points)
        highest = max(y for points in held.values() for _, y in points if y is not None)
        ticks = round_ticks(highest)
        top = ticks[-1]
        return {
            "name": self.name,
            "unit": self.unit,
            "lines": [
                {"name": name, "paths": [_path(part, right, top) for part in unbroken(points)], "last": last(points)}
                for name, points in held.items()
            ],
            "ticks": [{"at": 100 - 100 * tick / top, "says": plain(tick)} for tick in ticks],
            "steps": [{"at": 100 * tick / right, "says": plain(tick)} for tick in round_ticks(right) if tick <= right],
            "marks": [100 * step / right for step in self.marks if 0 < step < right],
        }


def thinned(points: Points) -> Points:
    """At most about `MOST` points, with every peak and every gap."""
    if len(points) <= MOST:
        return points
    size = math.ceil(2 * len(points) / MOST)
    kept: Points = []
    for start in range(0, len(points), size):
        few = points[start : start + size]
        values = [point for point in few if point[1] is not None]
        chosen = [min(values, key=_value), max(values, key=_value)] if values else []
        chosen += [point for point in few if point[1] is None][:1]
        kept += sorted(set(chosen), key=lambda point: point[0])
    return kept


def _value(point: tuple[float, float | None]) -> float:
    assert point[1] is not None
    return point[1]


def unbroken(points: Points) -> list[list[tuple[float, float]]]:
    """The line in its parts between gaps."""
    parts = groupby(points, key=lambda point: point[1] is not None)
    return [[(x, y) for x, y in part if y is not None] for whole, part in parts if whole]


def last(points: Points) -> str:
    """The last value."""
    return plain([y for _, y in points if y is not None][-1])


def round_ticks(highest: float) -> list[float]:
    """From 0 to at least `highest` in three to six round steps."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * unit for unit in (1, 2, 2.5, 5, 10) if power * unit >= rough * (1 - 1e-9))
    return [step * number for number in range(math.ceil(highest / step * (1 - 1e-9)) + 1)]


def plain(value: float) -> str:
    """A number in few signs."""
    if value == 0 or 0.001 <= abs(value) < 1_000_000:
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.2g}"


def _path(points: Sequence[tuple[float, float]], right: float, top: float) -> str:
    drawn = [f"{100 * x / max(right, 1e-9):.2f},{100 - 100 * y / top:.2f}" for x, y in points]
    # A single point is drawn as a dot: a line of no length with round ends.
    return " ".join(drawn * 2 if len(drawn) == 1 else drawn)
