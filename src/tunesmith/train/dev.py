"""What the dev rows say of an adapter while it is trained."""

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from tunesmith.train.guarded import Guarded
from tunesmith.train.watch import Watch


class DevLoss(TrainerCallback):  # type: ignore[misc]
    """Scores the dev rows, in the trainer's own form, after each epoch."""

    def __init__(self, watch: Watch, rows: Sequence[Any], trainer: Guarded) -> None:
        self.watch = watch
        self.rows = rows
        self.trainer = trainer

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the dev loss."""
        measured = {name: round(value, 6) for name, value in self.trainer.measured(self.rows).items()}
        self.watch.write({"step": state.global_step, **measured})
