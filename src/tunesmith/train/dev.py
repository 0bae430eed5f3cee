"""What the dev rows say of an adapter while it is trained, without a trace in the training itself."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel, TrainerCallback

from tunesmith.train import state as remembered
from tunesmith.train.guarded import Guarded
from tunesmith.train.watch import Watch

ScoreDev = Callable[[PreTrainedModel], dict[str, float]]
"""Has a model answer dev rows as every arm answers them; returns `rows`, and the mean of each metric over them."""


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Leave the modes of a model and every random generator as they were, whatever the block does with them."""
    random, modes = remembered.random_state(), [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        remembered.set_random_state(random)


class DevLooks(TrainerCallback):  # type: ignore[misc]
    """Looks at the dev rows when the recipe says so: measures their loss, has them answered, and lets the choice know.

    It stands before the Saver: a checkpoint of a step holds the look at that step.
    """

    def __init__(self, watch: Watch, rows: Sequence[Any], trainer: Guarded, score: ScoreDev | None = None) -> None:
        self.watch = watch
        self.rows = rows
        self.trainer = trainer
        self.score = score

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look within an epoch."""
        steps = self.trainer.choice.section.every_steps
        if steps and state.global_step % steps == 0:
            self._look(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the end of an epoch, or of training."""
        if self.trainer.choice.section.every_steps is None or control.should_training_stop:
            self._look(state, control)

    def _look(self, state: Any, control: Any) -> None:
        choice, trainer = self.trainer.choice, self.trainer
        if choice.looked_at(state.global_step):
            return
        model = trainer.accelerator.unwrap_model(trainer.model)
        with undisturbed(model):
            measured = {name: round(value, 6) for name, value in trainer.measured(self.rows).items()}
            look: dict[str, Any] = {"step": state.global_step, **measured}
            if self.score:
                with trainer.accelerator.autocast():
                    scores = self.score(model)
                look |= {f"dev_{name}": round(value, 6) for name, value in scores.items()}
        self.watch.look(look, choice.metric)
        choice.consider(look, lambda: remembered.trained(trainer.model))
        if choice.exhausted:
            control.should_training_stop = True
