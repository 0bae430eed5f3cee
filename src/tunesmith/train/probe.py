"""One pass before the first step: what the longest pass takes, measured, and how long the run will be.

The pass is the trainer's own loss, forward and backward, on the rows that compute most. Nothing remains of it: the run
is, bit for bit, the one without it.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from tunesmith.bases import Base
from tunesmith.errors import EnvironmentFault, is_out_of_memory
from tunesmith.files import write_json
from tunesmith.progress import duration, say
from tunesmith.prompt import IGNORE
from tunesmith.recipe import Recipe
from tunesmith.train import state as run_state
from tunesmith.train.memory import forget_peak, give_back, peak_gib
from tunesmith.train.plan import USABLE, Plan, advice, what_would_fit

if TYPE_CHECKING:
    from tunesmith.train.trainer import AdapterTrainer

LESS = 0.8
"""What did not fit, although the formula said so, is told settings that take so much less by the same formula."""


class Probe(TrainerCallback):  # type: ignore[misc]
    """Runs the longest pass once, when the trainer is ready for its first step."""

    def __init__(self, trainer: "AdapterTrainer", recipe: Recipe, base: Base, plan: Plan, path: Path) -> None:
        self.trainer = trainer
        self.recipe = recipe
        self.base = base
        self.plan = plan
        self.path = path
        self.told: dict[str, Any] = {}
        """What probe.json holds."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure, say and write.

        Raises:
            EnvironmentFault: the pass, or the pass and the optimizer's states, do not fit; nothing was trained.
        """
        work, device = self.plan.work, args.device.type
        try:
            with nothing_happened(self.trainer):
                give_back()
                forget_peak(device)
                began = time.monotonic()
                one_pass(self.trainer, work.longest.rows)
                seconds, peak = time.monotonic() - began, peak_gib(device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise self._too_much("ran out of memory") from None
        self.told = {
            "schema": 1,
            "rows": len(work.longest.rows),
            "computed_tokens": work.longest.computed,
            "seconds": round(seconds, 3),
            "estimated_gib": round(self.plan.before_the_optimizer, 4),
        }
        told = f"  the longest pass, {work.longest.computed} tokens: {duration(seconds)}"
        if peak is not None:
            ratio = self.plan.before_the_optimizer / peak
            self.told |= {"measured_gib": round(peak, 4), "estimated_to_measured": round(ratio, 3)}
            told += f", {peak:.2f} GiB at the peak ({self.plan.before_the_optimizer:.2f} by the formula)"
            whole = peak + self.plan.total - self.plan.before_the_optimizer
            if device == "cuda" and whole > USABLE * self.plan.machine.memory_gib:
                raise self._too_much(f"took {peak:.1f} GiB, {whole:.1f} with the optimizer's states")
        write_json(self.path, self.told)
        left = work.computed * (state.max_steps - state.global_step) / self.trainer.steps_per_epoch
        say(f"{told}; about {duration(seconds * left / work.longest.computed)} left")

    def _too_much(self, what: str) -> EnvironmentFault:
        limit = LESS * min(self.plan.total, USABLE * self.plan.machine.memory_gib)
        settings = what_would_fit(self.recipe, self.trainer.rows, self.base, self.plan, limit)
        return EnvironmentFault(
            f"memory: the longest pass, {len(self.plan.work.longest.rows)} rows with {self.plan.work.longest.computed} "
            f"tokens, {what}; {self.plan.machine.name} has {self.plan.machine.memory_gib:.1f} GiB; nothing was trained",
            hint=advice(settings),
        )


def one_pass(trainer: "AdapterTrainer", rows: Sequence[int]) -> None:
    """The trainer's own loss of some rows, forward and backward, without a loss scale and without the optimizer."""
    batch = trainer.data_collator([trainer.train_dataset[row] for row in rows])
    inputs = trainer._prepare_inputs(batch)
    items = (inputs["labels"][..., 1:] != IGNORE).sum()
    trainer.model.train()
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=items)
    loss.backward()
    if loss.device.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def nothing_happened(trainer: "AdapterTrainer") -> Iterator[None]:
    """Put back whatever a pass changes: gradients, random generators, mode, and what the trainer counts."""
    model = trainer.model
    gradients = [(parameter, parameter.grad) for parameter in model.parameters() if parameter.requires_grad]
    random, was_training = run_state.random_state(), model.training
    tokens, metrics = trainer._total_train_tokens, {mode: dict(held) for mode, held in trainer._metrics.items()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        run_state.set_random_state(random)
        model.train(was_training)
        trainer._total_train_tokens = tokens
        for mode, held in trainer._metrics.items():
            held.clear()
            held.update(metrics.get(mode, {}))
