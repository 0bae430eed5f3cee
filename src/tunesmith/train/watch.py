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

    def write(self, line: dict[str, Any]) -> None:
        """Append one line to train.jsonl."""
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Stop the bar."""
        self._stack.close()


def plot_loss(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw the loss curve of train.jsonl as PNG: training loss by step, dev loss where it was scored."""
    of_pairs = any("rewards/margins" in line for line in lines)
    held_out, unit = ("dev_loss", "pair") if of_pairs else ("dev_nll", "completion token")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    train = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    dev = [(line["step"], line[held_out]) for line in lines if held_out in line]
    if train:
        axes.plot(*zip(*train, strict=True), label="train", linewidth=1.5)
    if dev:
        axes.plot(*zip(*dev, strict=True), label="dev", marker="o", linewidth=1.5)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(f"loss per {unit} (nats)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
