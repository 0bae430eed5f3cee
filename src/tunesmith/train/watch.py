"""What a person sees of training: the bar, train.jsonl, and the loss curve."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tunesmith.files import write_jsonl
from tunesmith.progress import Bar, bar

OF_PAIRS = tuple(f"{what}/{of}" for what in ("rewards", "logps") for of in ("chosen", "rejected"))
OF_PAIRS += ("rewards/accuracies", "rewards/margins")
"""What trl logs of preference tuning beside the loss."""


class Watch(TrainerCallback):  # type: ignore[misc]
    """Draws the bar and writes one line of train.jsonl for each log of the trainer and each scored epoch."""

    def __init__(self, path: Path, lines: list[dict[str, Any]]) -> None:
        self.path = path
        self.lines = lines
        """Those of train.jsonl; at the beginning what a checkpoint remembers of them."""
        self._stack = ExitStack()
        self._bar: Bar | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar, and train.jsonl with what was written before."""
        write_jsonl(self.path, self.lines)
        self._bar = self._stack.enter_context(bar("training", state.max_steps))
        self._bar.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self._bar:
            self._bar.advance()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write the trainer's numbers."""
        if logs and "loss" in logs:
            keep = ("loss", "grad_norm", "learning_rate", "epoch", "num_tokens", *OF_PAIRS)
            self.write({"step": state.global_step} | {key: logs[key] for key in keep if key in logs})
            if self._bar:
                self._bar.advance(0, note=f"loss {float(logs['loss']):.3f}")

    def look(self, line: dict[str, Any], metric: str) -> None:
        """Write what a look at dev found, and show it beside the bar."""
        self.write(line)
        key = f"dev_{metric}" if "dev_rows" in line else "dev_nll"
        if self._bar:
            self._bar.advance(0, note=f"{key} {line[key]:.3f}")

    def write(self, line: dict[str, Any]) -> None:
        """Append one line to train.jsonl."""
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Stop the bar."""
        self._stack.close()


def plot_loss(lines: list[dict[str, Any]], path: Path, chosen: int) -> None:
    """Draw train.jsonl as PNG: losses by step, and below them the dev scores where rows were answered.

    `chosen` is the step whose adapter is published.
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
        for key, label, style in (("dev_exact_match", "exact match", "-o"), ("dev_field_f1", "field F1", ":s")):
            axes[1, 0].plot(steps, [line[key] for line in scored], style, label=label, linewidth=1.5)
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
