"""The curve over the size of the data: what each nested part of the training rows reached on dev, and what follows.

Reads scored dev answers of one adapter a size. Writes `curve.json` and `curve.png`. A number for more rows is given
only where more rows have shown an effect so far.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tunesmith.curve.fit import FEWEST, covariance, project, trend
from tunesmith.curve.picture import draw
from tunesmith.errors import UserError
from tunesmith.files import write_json
from tunesmith.recipe import Recipe
from tunesmith.stats import mean_interval

SCHEMA = 1
AHEAD = (2, 4)
"""How many times all rows the curve is followed to."""

NO_EFFECT = "more rows do not show an effect"


@dataclass(frozen=True)
class Point:
    """One size: an adapter and its scored answers to the dev rows."""

    rows: int
    steps: int
    """Optimizer steps that were trained."""
    run: str
    scored: Sequence[Mapping[str, Any]]

    def scores(self, metric: str) -> list[float]:
        """A metric of every dev row, in order of their ids."""
        return [float(line["scores"][metric]) for line in sorted(self.scored, key=lambda line: str(line["id"]))]

    @property
    def groups(self) -> list[str]:
        """The group of every dev row, in order of their ids."""
        return [str(line["group"]) for line in sorted(self.scored, key=lambda line: str(line["id"]))]


def curve(points: Sequence[Point], incumbent: Point | None, name: str | None, recipe: Recipe, out: Path) -> None:
    """Write curve.json and curve.png; `name` is the incumbent's.

    Raises:
        UserError: there are too few sizes, or dev rows of one group only.
    """
    told = examine(points, incumbent, name, recipe)
    write_json(out / "curve.json", told)
    draw(told, out / "curve.png")


def examine(points: Sequence[Point], incumbent: Point | None, name: str | None, recipe: Recipe) -> dict[str, Any]:
    """What curve.json holds.

    Raises:
        UserError: there are too few sizes, or dev rows of one group only.
    """
    metric, alpha = recipe.score.primary, recipe.gate.alpha
    points = sorted(points, key=lambda point: point.rows)
    if len({point.rows for point in points}) < FEWEST:
        raise UserError(f"curve: {len(points)} sizes are too few for a curve; it takes {FEWEST}, and more rows")
    groups, scores = points[0].groups, [point.scores(metric) for point in points]
    if len(set(groups)) < 2:
        raise UserError("curve: all dev rows are of one group, so nothing tells their spread; cut more groups to dev")
    assert all(point.groups == groups for point in points), "every size answered the same dev rows"
    rows = [point.rows for point in points]
    slope = trend(rows, scores, groups, alpha)
    projection = None
    if slope.low > 0:
        try:
            means, ahead = [sum(one) / len(one) for one in scores], [rows[-1] * times for times in AHEAD]
            between = np.geomspace(rows[0], ahead[-1], 41).round().astype(int).tolist()
            grid = sorted({*rows, *ahead, *between})
            projection = asdict(project(rows, means, covariance(scores, groups), grid, alpha))
        except RuntimeError:
            projection = None
    return {
        "schema": SCHEMA,
        "metric": metric,
        "dev_rows": len(groups),
        "dev_groups": len(set(groups)),
        "level": round(1 - 2 * alpha, 6),
        "points": [
            {"rows": point.rows, "steps": point.steps, "run": point.run, **_interval(one, groups, alpha)}
            for point, one in zip(points, scores, strict=True)
        ],
        "equal": equal(recipe),
        "trend": {"gain_per_doubling": slope.estimate, "low": slope.low, "high": slope.high},
        "projection": projection,
        "ahead": [rows[-1] * times for times in AHEAD],
        "incumbent": {"arm": name, **_interval(incumbent.scores(metric), groups, alpha)} if incumbent else None,
        "says": _says(slope.low, slope.high, projection, len(points)),
    }


def _interval(scores: Sequence[float], groups: Sequence[str], alpha: float) -> dict[str, float]:
    found = mean_interval(scores, groups, alpha)
    return {"score": found.estimate, "low": found.low, "high": found.high}


def equal(recipe: Recipe) -> str:
    """What is equal between the sizes: what the recipe says of the length of training."""
    steps = recipe.trainer.get("max_steps", -1)
    if steps > 0:
        return f"the recipe's {steps} steps for every size: fewer rows are seen more often"
    return f"the recipe's {recipe.trainer['num_train_epochs']:g} epochs for every size: fewer rows take fewer steps"


def _says(low: float, high: float, projection: Mapping[str, Any] | None, points: int) -> str:
    if high < 0:
        return "scores fall with more rows: something is wrong with the rows or the recipe; no projection"
    if low <= 0:
        return f"{NO_EFFECT}: each doubling changed the score by {low:+.3f} to {high:+.3f}; no projection"
    if projection is None:
        return "scores rise with more rows, but no curve was found through them; no projection"
    return (
        f"scores rise with more rows; a projection from {points} points is a guess, and its interval holds only if the "
        f"scores go on along an inverse power law ({projection['failed']} of {projection['refits']} refits failed)"
    )


def show(told: Mapping[str, Any], console: Console) -> None:
    """Print the table of sizes, with what is projected below."""
    level = f"{told['level']:.0%}"
    table = Table("rows", "steps", f"dev {told['metric']}", f"{level} interval", "run", box=None, pad_edge=False)
    for column in table.columns[:4]:
        column.justify = "right"
    for point in told["points"]:
        cells = (f"{point['rows']}", f"{point['steps']}", f"{point['score']:.3f}", _bounds(point), point["run"])
        table.add_row(*cells)
    if projection := told["projection"]:
        keys = ("rows", "estimate", "low", "high")
        for rows, estimate, low, high in zip(*(projection[key] for key in keys), strict=True):
            if rows in told["ahead"]:
                bounds = _bounds({"low": low, "high": high})
                table.add_row(f"{rows}", "", f"{estimate:.3f}", bounds, "projected", style="dim")
    if incumbent := told["incumbent"]:
        cells = ("0", "", f"{incumbent['score']:.3f}", _bounds(incumbent), f"{incumbent['arm']}, the incumbent")
        table.add_row(*cells)
    console.print(table)
    console.print(f"{told['dev_rows']} dev rows in {told['dev_groups']} groups; {told['equal']}")
    gain = told["trend"]
    console.print(f"each doubling: {gain['gain_per_doubling']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})")
    console.print(told["says"], soft_wrap=True)


def _bounds(interval: Mapping[str, float]) -> str:
    return f"{interval['low']:.3f} to {interval['high']:.3f}"
