"""Steps that a loss scale skipped: float16 gradients that overflowed, and rows that nothing was learned from."""

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from tunesmith.errors import Diverged

if TYPE_CHECKING:
    from tunesmith.train.guarded import Guarded

MOST = 0.05
"""The part of a run's steps that may be skipped."""


class Skips(TrainerCallback):  # type: ignore[misc]
    """Counts skipped steps, and stops a run as soon as more of its steps are lost than it may lose.

    A gradient that is no number looks like an overflow: without a limit such a run would skip to its end, at a loss
    that looks healthy, and publish an adapter that learned from next to nothing.
    """

    def __init__(self, trainer: "Guarded") -> None:
        self.trainer = trainer
        self._scale = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the scale that the run begins with."""
        scaler = self.trainer.accelerator.scaler
        self._scale = scaler.get_scale() if scaler is not None else 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count.

        Raises:
            Diverged: more than one step in twenty of the whole run was skipped.
        """
        scaler = self.trainer.accelerator.scaler
        if scaler is None:
            return
        # A scale falls when a step overflows, and only then. accelerate's own `optimizer_step_was_skipped` stays false
        # with fused optimizers, the default: these are called all the same and skip inside.
        before, self._scale = self._scale, scaler.get_scale()
        if self._scale >= before and not self.trainer.accelerator.optimizer_step_was_skipped:
            return
        self.trainer.skipped += 1
        if self.trainer.skipped > MOST * state.max_steps:
            raise Diverged(
                f"training: {self.trainer.skipped} of {state.global_step} steps were skipped, because their gradients "
                f"overflowed; at most {MOST:.0%} of the run's {state.max_steps} may be; "
                "nothing was written",
                hint="lower trainer.learning_rate or trainer.max_grad_norm, or set hardware.dtype to float32 (bfloat16 "
                "where the GPU has it); the first steps also search for the scale: a very short run needs more",
            )
