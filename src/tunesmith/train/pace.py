"""How fast training goes and what it holds, by the clock: the lines of pace.jsonl.

They stand in a file of their own because two runs of one recipe give the same train.jsonl, byte for byte, and that is
held by tests. No clock and no other process on the machine may say anything in it.
"""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from tunesmith.prompt import IGNORE
from tunesmith.train.memory import forget_peak, peak_gib


class Pace:
    """Counts tokens and time between two logs; a step's time is from fetching its rows to the end of the optimizer."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        """Of pace.jsonl: one for each start, one for each log."""
        self._device = "cpu"
        self._spent = 0.0
        """Seconds of the starts before this one."""
        self._started = self._step_began = time.monotonic()
        self._forget()

    def _forget(self) -> None:
        self._tokens = self._computed = self._loss_tokens = 0
        self._seconds = 0.0
        forget_peak(self._device)

    def starts(self, step: int, device: str) -> None:
        """Training starts, or goes on, after a step."""
        self._device = device
        self._started = time.monotonic()
        # A start of its own between two logs is told like any: that is what a curve over time has to know.
        self.lines.append({"step": step, "started": datetime.now(UTC).isoformat(timespec="seconds")})
        self._forget()

    def step_begins(self) -> None:
        """The rows of a step are about to be fetched."""
        self._step_began = time.monotonic()

    def count(self, inputs: Mapping[str, Any]) -> None:
        """Take the tokens of one pass into account, as our collator or trl's gives them."""
        if "levels" in inputs:
            self._tokens += inputs["tokens"]
            self._computed += sum(level["input_ids"].numel() for level in inputs["levels"])
            self._loss_tokens += len(inputs["labels"]) - 1
        else:
            mask = inputs.get("attention_mask")
            self._tokens += inputs["input_ids"].numel() if mask is None else int(mask.sum())
            self._computed += inputs["input_ids"].numel()
            carry = inputs["completion_mask"] if "completion_mask" in inputs else inputs["labels"][:, 1:] != IGNORE
            self._loss_tokens += int(carry.sum())

    def step_ends(self) -> None:
        """The optimizer has done its step."""
        if self._device == "cuda":
            torch.cuda.synchronize()
        self._seconds += time.monotonic() - self._step_began

    def log(self, step: int) -> dict[str, float]:
        """What was measured since the log before; a line of pace.jsonl is made of it.

        Tokens are those of the rows, each counted whole and without padding; computed ones are those that passed
        through the model, padding included and what rows share counted once. `seconds` are since the run's first
        start, without the time between a stop and the next start.
        """
        seconds = max(self._seconds, 1e-9)
        peak = peak_gib(self._device)
        measured = {
            "tokens_per_second": round(self._tokens / seconds, 1),
            "loss_tokens_per_second": round(self._loss_tokens / seconds, 1),
            "computed_tokens_per_second": round(self._computed / seconds, 1),
            "seconds": round(self.seconds(), 1),
        }
        if peak is not None:
            measured["peak_memory_gib"] = round(peak, 3)
        self.lines.append({"step": step} | measured)
        self._forget()
        return measured

    def seconds(self) -> float:
        """Spent on this run so far, in all its starts."""
        return self._spent + time.monotonic() - self._started

    def remembered(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"lines": self.lines, "seconds": self.seconds()}

    def restore(self, remembered: Mapping[str, Any]) -> None:
        """Take up what a checkpoint kept."""
        self.lines[:] = remembered["lines"]
        self._spent = remembered["seconds"]
