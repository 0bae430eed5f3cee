"""The page of a training run: its curves, what was chosen and why, its memory, when it was stopped and went on.

One file with nothing outside it and no script. It is written when a run ends, and also when it stops or diverges: then
there is nothing else to look at.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.bases import Base
from tunesmith.errors import Diverged, Interrupted
from tunesmith.files import write_atomic
from tunesmith.hardware import Profile, look
from tunesmith.progress import duration, say
from tunesmith.recipe import LoadedRecipe
from tunesmith.templates import fill
from tunesmith.train.curves import Curve, Points, plain
from tunesmith.train.plan import Plan
from tunesmith.train.probe import Probe

if TYPE_CHECKING:
    from tunesmith.train.guarded import Guarded

PAGE = "train.html"
SHOWN = 200
"""Logged steps that stand in the table of numbers: of more, every so many."""

CURVES: dict[str, tuple[str, dict[str, str]]] = {
    "Loss": ("nats per completion token", {"train": "loss", "dev": "dev_nll"}),
    "Learning rate": ("", {"learning rate": "learning_rate"}),
    "Gradient norm": ("before clipping", {"gradient norm": "grad_norm"}),
    "Speed": ("tokens a second", {"of rows": "tokens_per_second", "computed": "computed_tokens_per_second"}),
    "Loss tokens": ("a second", {"loss tokens": "loss_tokens_per_second"}),
    "Memory": ("GiB at the peak since the log before", {"memory": "peak_memory_gib"}),
}
"""Each figure with its unit, and the keys of train.jsonl and pace.jsonl that it draws."""
OTHERS = ("step", "epoch", "num_tokens", "skipped", "seconds", "started", "dev_rows")


class RunPage:
    """Gathers what the page says when it is written."""

    def __init__(
        self,
        loaded: LoadedRecipe,
        base: Base,
        trainer: "Guarded",
        profile: Profile,
        forecast: Plan | None,
        probe: Probe | None,
    ) -> None:
        self.loaded = loaded
        self.base = base
        self.trainer = trainer
        self.profile = profile
        self.forecast = forecast
        self.probe = probe

    @contextmanager
    def told(self, path: Path) -> Iterator[None]:
        """Write the page where training stops or diverges in the block; the error goes on its way."""
        try:
            yield
        except (Interrupted, Diverged) as stopped:
            try:
                self.write(path, stopped)
            except OSError as error:
                # What the run ended with says more than a page that could not be written.
                say(f"  {path}: {error.strerror}; the page was not written")
            else:
                say(f"  {path}")
            raise

    def write(self, path: Path, stopped: Interrupted | Diverged | None = None) -> None:
        """Write the page as things stand."""
        facts = gathered(self.trainer.lines, self.trainer.pace.lines)
        state, plan, machine = self.trainer.state, self.forecast, look()
        steps = [line for line in facts["logged"] if "loss" in line]
        told = {
            "recipe": self.loaded.recipe.name,
            "description": self.loaded.recipe.description,
            "base": self.base.name,
            "stopped": stopped.problems[0] if stopped else None,
            "diverged": isinstance(stopped, Diverged),
            "step": state.global_step,
            "steps": state.max_steps,
            "epochs": plain(round(state.epoch or 0, 2)),
            "took": duration(self.trainer.pace.seconds()),
            "first": plain(steps[0]["loss"]) if steps else None,
            "last": plain(steps[-1]["loss"]) if steps else None,
            "skipped": self.trainer.skipped,
            "curves": facts["curves"],
            "starts": facts["starts"],
            "choices": [(name, getattr(self.profile, name), why) for name, why in self.profile.reasons.items()],
            "parts": plan.parts if plan else {},
            "total": plan.total if plan else 0.0,
            "has": machine.memory_gib,
            "machine": machine.name,
            "probe": self.probe.told if self.probe else {},
            "columns": facts["columns"],
            "table": facts["table"],
        }
        write_atomic(path, fill("tunesmith.train", "train.html.jinja", told, {"plain": shown}))


def gathered(lines: list[dict[str, Any]], pace: list[dict[str, Any]]) -> dict[str, Any]:
    """Curves, starts and the table of numbers, of the lines of train.jsonl and of pace.jsonl."""
    starts = [line for line in pace if "started" in line]
    logged = [*lines, *(line for line in pace if "started" not in line)]
    # Whatever else was measured on dev gets a figure of its own.
    drawn = {key for _, series in CURVES.values() for key in series.values()} | set(OTHERS)
    others = dict.fromkeys(
        k for line in lines for k, v in line.items() if k not in drawn and isinstance(v, int | float)
    )
    figures = CURVES | {key.replace("_", " ").capitalize(): ("", {key: key}) for key in others}
    marks = [start["step"] for start in starts[1:]]
    curves = [
        Curve(name, unit, {label: _points(logged, key) for label, key in series.items()}, marks).drawn()
        for name, (unit, series) in figures.items()
    ]
    merged: dict[int, dict[str, Any]] = {}
    for line in logged:
        merged.setdefault(line["step"], {}).update(line)
    rows = [merged[step] for step in sorted(merged)]
    every = -(-len(rows) // SHOWN)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return {
        "logged": logged,
        "curves": [curve for curve in curves if curve],
        "starts": starts,
        "columns": columns,
        "table": [row for number, row in enumerate(rows, 1) if number % every == 0 or number == len(rows)]
        if rows
        else [],
    }


def _points(lines: list[dict[str, Any]], key: str) -> Points:
    return [(line["step"], line[key]) for line in lines if key in line]


def shown(value: Any) -> str:
    """A value of the table."""
    return "none" if value is None else plain(value) if isinstance(value, int | float) else str(value)
