"""What the dev rows say of an adapter while it is trained."""

from typing import Any

from transformers import TrainerCallback

from tunesmith.prompt import Rendered
from tunesmith.train.guarded import Guarded
from tunesmith.train.watch import Watch


class DevLoss(TrainerCallback):  # type: ignore[misc]
    """Scores the dev rows after each epoch."""

    def __init__(self, watch: Watch, rows: list[Rendered], trainer: Guarded) -> None:
        self.watch = watch
        self.rows = rows
        self.trainer = trainer

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the dev loss."""
        self.watch.write({"step": state.global_step, "dev_nll": round(self.trainer.token_nll(self.rows), 6)})
