"""What a person sees of training: the bar, train.jsonl and pace.jsonl, and the loss curve."""

import json
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from tunesmith.files import write_jsonl
from tunesmith.progress import Bar, bar, duration, say, stderr

if TYPE_CHECKING:
    from tunesmith.train.guarded import Guarded
    from tunesmith.train.tracking import Trackers

SAY_EVERY = 60.0
"""Seconds between two lines of progress where there is no terminal to draw a bar on."""

OF_PAIRS = tuple(f"{what}/{of}" for what in ("rewards", "logps") for of in ("chosen", "rejected"))
OF_PAIRS += ("rewards/accuracies", "rewards/margins")
"""What trl logs of preference tuning beside the loss."""


class Watch(TrainerCallback):  # type: ignore[misc]
    """Draws the bar, writes one line of train.jsonl for each log of the trainer and each scored epoch, and tells the
    trackers.

    train.jsonl holds what training learned, pace.jsonl what it took; see `pace` for why they are two.
    """

    def __init__(self, directory: Path, trainer: "Guarded", trackers: "Trackers") -> None:
        self.directory = directory
        self.trainer = trainer
        self.trackers = trackers
        self.lines = trainer.lines
        """Those of train.jsonl; at the beginning what a checkpoint remembers of them."""
        self._stack = ExitStack()
        self._bar: Bar | None = None
        self._said = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar, and both files with what was written before."""
        self.trainer.pace.starts(state.global_step, args.device.type)
        write_jsonl(self.directory / "train.jsonl", self.lines)
        write_jsonl(self.directory / "pace.jsonl", self.trainer.pace.lines)
        self._bar = self._stack.enter_context(bar("training", state.max_steps))
        self._bar.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        self.trainer.pace.step_ends()
        if self._bar:
            self._bar.advance()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write the trainer's numbers, and those of the clock beside them."""
        if not logs or "loss" not in logs:
            return
        keep = ("loss", "grad_norm", "learning_rate", "epoch", "num_tokens", *OF_PAIRS)
        line = {"step": state.global_step} | {key: _finite(logs[key]) for key in keep if key in logs}
        if self.trainer.accelerator.scaler is not None:
            line["skipped"] = self.trainer.skipped
        self.write(line)
        pace = self.trainer.pace.log(state.global_step)
        _append(self.directory / "pace.jsonl", self.trainer.pace.lines[-1])
        self.trackers.report({**{key: value for key, value in line.items() if key != "step"}, **pace})
        note = f"loss {float(logs['loss']):.3f}, {pace['tokens_per_second']:.0f} tokens/s"
        if self._bar:
            self._bar.advance(0, note=note)
            self._say(state, note)

    def look(self, line: dict[str, Any], metric: str) -> None:
        """Write what a look at dev found, and show it beside the bar."""
        self.write(line)
        key = f"dev_{metric}" if "dev_rows" in line else "dev_nll"
        if self._bar:
            self._bar.advance(0, note=f"{key} {line[key]:.3f}")

    def write(self, line: dict[str, Any]) -> None:
        """Append one line to train.jsonl; the trackers are told what no log of the trainer says."""
        self.lines.append(line)
        _append(self.directory / "train.jsonl", line)
        if "loss" not in line:
            self.trackers.report({f"eval_{key}": value for key, value in line.items() if key != "step"})

    def close(self) -> None:
        """Stop the bar."""
        self._stack.close()

    def _say(self, state: Any, note: str) -> None:
        """One line from time to time where no bar is drawn: a log file of an hour is not empty."""
        now = time.monotonic()
        if stderr.is_terminal or now - self._said < SAY_EVERY or state.global_step >= state.max_steps:
            return
        self._said = now
        left = self._bar.left() if self._bar else None
        rest = f", about {duration(left)} left" if left is not None else ""
        say(f"  step {state.global_step} of {state.max_steps}: {note}{rest}")


def _finite(value: Any) -> Any:
    # The norm of a step that a loss scale skipped is infinite, which JSON has no word for.
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line, allow_nan=False) + "\n")


def plot_loss(lines: list[dict[str, Any]], path: Path, chosen: int, metrics: Sequence[str]) -> None:
    """Draw train.jsonl as PNG: losses by step, and below them the dev scores where rows were answered.

    `chosen` is the step whose adapter is published, `metrics` are the scores that are drawn.
    """
    of_pairs = any("rewards/margins" in line for line in lines)
    held_out, unit = ("dev_loss", "pair") if of_pairs else ("dev_nll", "completion token")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    scored = [line for line in lines if "dev_rows" in line]
    panels = 2 if scored else 1
    figure, axes = pyplot.subplots(
        panels, figsize=(7, 1 + 3 * panels), sharex=True, squeeze=False, layout="constrained"
    )
    losses = axes[0, 0]
    for key, label, style in (("loss", "train", "-"), (held_out, "dev", "--o")):
        if points := [(line["step"], line[key]) for line in lines if key in line]:
            losses.plot(*zip(*points, strict=True), style, label=label, linewidth=1.5)
    losses.set_ylabel(f"loss per {unit} (nats)")
    losses.set_ylim(bottom=0)
    if scored:
        steps = [line["step"] for line in scored]
        for metric, style in zip(dict.fromkeys(metrics), ("-o", ":s"), strict=False):
            values = [line[f"dev_{metric}"] for line in scored]
            axes[1, 0].plot(steps, values, style, label=metric.replace("_", " "), linewidth=1.5)
        axes[1, 0].set_ylabel(f"mean score of {scored[-1]['dev_rows']} dev rows")
        axes[1, 0].set_ylim(-0.03, 1.03)
        for panel in axes[:, 0]:
            panel.axvline(chosen, color="black", linewidth=0.8, label="published")
    for panel in axes[:, 0]:
        panel.grid(alpha=0.3)
        panel.legend()
    axes[-1, 0].set_xlabel("optimizer step")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
