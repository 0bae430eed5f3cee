"""When a checkpoint is due, and what happens when somebody asks training to stop."""

import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from tunesmith.errors import Interrupted
from tunesmith.sections import CheckpointsSection
from tunesmith.train.stops import Stop

if TYPE_CHECKING:
    from tunesmith.train.guarded import Guarded


class Saver(TrainerCallback):  # type: ignore[misc]
    """Asks for a checkpoint between two steps when one is due, and ends a run that was asked to stop once it is saved.

    The last step of an epoch is saved after what is done at the epoch's end, so that nothing of it is done twice.
    """

    def __init__(self, trainer: "Guarded", section: CheckpointsSection, stop: Stop) -> None:
        self.trainer = trainer
        self.section = section
        self.stop = stop
        self._saved = time.monotonic()
        self._stopping = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save within an epoch."""
        if state.global_step % self.trainer.steps_per_epoch:
            control.should_save = self._due(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save at the end of an epoch."""
        control.should_save = self._due(state, control)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop, where that was asked for.

        Raises:
            Interrupted: says at which step.
        """
        self._saved = time.monotonic()
        if self._stopping:
            raise Interrupted(
                f"training: stopped after step {state.global_step} of {state.max_steps}, which is saved; "
                "the same command goes on from there"
            )

    def _due(self, state: Any, control: Any) -> bool:
        # What the last step leads to, be it that of an early stop, is published at once.
        if control.should_training_stop:
            return False
        steps = self.section.every_steps
        team = self.trainer.team
        waited = time.monotonic() - self._saved >= 60 * self.section.every_minutes
        # Whichever process got the signal, all stop; and the first one's clock is that of all.
        self._stopping, waited = team.any(self.stop.requested, team.leads and waited)
        if self.trainer.is_deepspeed_enabled:
            if self._stopping:
                raise Interrupted(f"training: stopped after step {state.global_step}; under DeepSpeed nothing is saved")
            return False
        return self._stopping or waited or bool(steps and state.global_step % steps == 0)
