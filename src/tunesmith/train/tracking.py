"""Telling trackers of a run, by transformers' own callbacks.

A tracker that fails before the first step stops the run, so that nobody waits for curves that never come; one that
fails later is said and let go, for the run is worth more than its curves.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from tunesmith.errors import EnvironmentFault, UserError
from tunesmith.progress import say
from tunesmith.trackers import named, uploads

if TYPE_CHECKING:
    from tunesmith.train.guarded import Guarded


class Trackers(TrainerCallback):  # type: ignore[misc]
    """The trackers that a recipe names, told what `Watch` writes down."""

    def __init__(self, trainer: "Guarded", report_to: Any, run: Path) -> None:
        names = named(report_to)
        if problems := uploads(names):
            raise UserError(problems)
        self.trainer = trainer
        self._callbacks: dict[str, Any] = {}
        if not names:
            return
        trainer.args.run_name = run.name
        for name in names:
            (kind,) = get_reporting_integration_callbacks([name])
            self._callbacks[name] = self._or_fault(name, kind)
        board = self._callbacks.get("tensorboard")
        if board is not None and "TENSORBOARD_LOGGING_DIR" not in os.environ:
            # By itself it would write into the trainer's directory, which is scratch.
            board.logging_dir = str(run / "tensorboard")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open them.

        Raises:
            EnvironmentFault: one cannot be opened; nothing was trained.
        """
        for name, callback in self._callbacks.items():
            self._or_fault(name, partial(callback.on_train_begin, args, state, control, **kwargs))

    def report(self, values: dict[str, Any]) -> None:
        """Tell them numbers of the step that the trainer has come to."""
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        trainer = self.trainer
        for name, callback in list(self._callbacks.items()):
            try:
                callback.on_log(trainer.args, trainer.state, trainer.control, logs=dict(numbers), model=trainer.model)
            except Exception as error:
                self._let_go(name, error)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close them."""
        for name, callback in list(self._callbacks.items()):
            try:
                callback.on_train_end(args, state, control, **kwargs)
            except Exception as error:
                self._let_go(name, error)

    def _let_go(self, name: str, error: Exception) -> None:
        del self._callbacks[name]
        say(f"\n  {name} is told nothing more: {_first_line(error)}; training goes on, all numbers are in train.jsonl")

    @staticmethod
    def _or_fault(name: str, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except Exception as error:
            raise EnvironmentFault(
                f"trainer.report_to: {name} cannot be opened: {_first_line(error)}; nothing was trained",
                hint=f"mend what {name} says, or leave it out: --set trainer.report_to=none",
            ) from None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
