"""What holds for every training, whatever its loss: the order of rows, checkpoints, and when a run must stop.

A mixin over a trainer of trl: each method stands where transformers leaves room for a subclass. Checkpoints are our own
(`checkpoints`, `state`), batches hold rows in a seeded order (`sampler`), a loss or a gradient that is not a number
stops the run before it reaches the weights, and several processes end in the same step (`tunesmith.team`).
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from peft.optimizers import create_loraplus_optimizer
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer

from tunesmith.adapters import leading, refuse_asleep
from tunesmith.errors import Diverged
from tunesmith.prompt import IGNORE, Rendered
from tunesmith.team import Team
from tunesmith.train import state
from tunesmith.train.checkpoints import Checkpoints
from tunesmith.train.choice import Choice
from tunesmith.train.loss import nll_sum, row_nll
from tunesmith.train.pace import Pace
from tunesmith.train.sampler import FamilySampler
from tunesmith.train.shards import cut_optimizer, whole
from tunesmith.train.start import Start
from tunesmith.train.tree import Limits, lay_out


class Guarded(Trainer):  # type: ignore[misc]
    """Stands before a trainer of trl among the parents of a class, which sets these."""

    LOWERED = "nats a token"
    """What `losses` are in."""
    rows: Sequence[Rendered]
    """Those that are trained on, in the order of the data set."""
    ids: Sequence[str]
    """The rows' names in messages."""
    checkpoints: Checkpoints | None
    lines: list[dict[str, Any]]
    """Of train.jsonl; a checkpoint remembers them."""
    pace: Pace
    skipped = 0
    """Optimizer steps that a loss scale (float16) skipped."""
    choice: Choice
    """The looks at dev, and which one's adapter is published."""
    limits: Limits | None
    team: Team = Team()
    """The processes that train together."""
    start: Start | None = None
    """The weights that a fresh adapter begins with."""
    lora_plus_ratio: float | None
    optimizer: Any
    _own_loss: bool
    _blank: Rendered
    _lost = False
    """Whether the loss of a pass was no number."""
    _sampler: FamilySampler
    _log_of_before: dict[str, Any] | None

    def _get_train_sampler(self, train_dataset: Any = None) -> FamilySampler:
        return self._sampler

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The passes of the next step."""
        self.pace.step_begins()
        return super().get_batch_samples(*args, **kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Upstream's optimizer, or peft's for LoRA+ (arXiv:2402.12354): lora_B's learning rate is a multiple."""
        if self.optimizer is None and self.lora_plus_ratio is not None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = create_loraplus_optimizer(
                self.model,
                kind,
                loraplus_lr_ratio=self.lora_plus_ratio,
                loraplus_weight_decay=self.args.weight_decay,
                **settings,
            )
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass; a loss that is not finite stops here, or at `_get_grad_norm` all processes."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            self._lost = True
            if self.team.size == 1:
                raise self._diverged(f"the loss became {loss.item()}")
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm of the step's gradients; one that is not finite stops here, before the optimizer."""
        # All processes stop in the same step, whichever of them has met it.
        (lost,) = self.team.any(self._lost)
        if lost:
            raise self._diverged("the loss became no number")
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        norm = whole(norm) if isinstance(norm, torch.Tensor) else norm
        if not math.isfinite(float(norm)):
            # With a loss scale (float16) an overflow is met by a skipped step and a smaller scale.
            if self.accelerator.scaler is None:
                raise self._diverged(f"the gradient became {float(norm)}")
        elif self.state.global_step == self.skipped and not self.is_deepspeed_enabled:
            # The first step that is taken. lora_A's gradient is zero as long as lora_B is: lora_B's own is what tells a
            # module that takes no part.
            held = {name: weight.grad for name, weight in leading(self.model).items()}
            asleep = {name for name, grad in held.items() if grad is None or not bool(whole(grad).any())}
            refuse_asleep(self.model, asleep)
        return norm

    def _diverged(self, says: str) -> Diverged:
        rows = self.rows_of_step(self.state.global_step)
        with torch.no_grad(), self.accelerator.autocast():
            bad = [row for row in rows if not math.isfinite(self.alone(row))]
        alone = f"alone not finite: {self._named(bad)}" if bad else "each of them alone has a finite loss"
        where = f"step {self.state.global_step + 1}, rows {self._named(rows)}"
        return Diverged(
            f"training: {says} at {where}; {alone}; nothing was written",
            hint="look at these rows; if they are sound, lower trainer.learning_rate",
        )

    def alone(self, row: int) -> float:
        """Summed negative log-likelihood of a row's loss tokens, the row by itself."""
        return float(row_nll(self.accelerator.unwrap_model(self.model), self.rows[row]))

    @property
    def learned_from(self) -> Sequence[Any]:
        """What is trained on, in the order of the data set."""
        return self.rows

    def completions(self, row: Any) -> list[int]:
        """The tokens of a row of `learned_from` that are to carry loss."""
        found: list[int] = row.completion_ids
        return found

    def collated(self, rows: Sequence[Any]) -> list[int]:
        """The tokens of a pass that carry loss as the model gets them."""
        labels = self.data_collator([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])["labels"]
        found: list[int] = labels[labels != IGNORE].tolist()
        return found

    def passes(self) -> list[list[int]]:
        """The rows of each pass of the first epoch, by their place among all rows."""
        size = self.args.per_device_train_batch_size
        return [rows[i : i + size] for rows in self._sampler.batches() for i in range(0, len(rows), size)]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return len(self._sampler.batches())

    def rows_of_step(self, step: int) -> list[int]:
        """The rows of an optimizer step, counted from 0, by their place among all rows."""
        batches = self._sampler.batches()
        return batches[step % len(batches)]

    def _named(self, rows: Sequence[int]) -> str:
        return ", ".join(self.ids[row] for row in rows)

    # ------------------------------------------------------------------ several processes

    @property
    def is_cut(self) -> bool:
        """Whether each process holds parts of the weights only."""
        return self.team.size > 1 and bool(self.args.fsdp or self.args.deepspeed)

    def create_accelerator_and_postprocess(self) -> None:
        """Also on a CPU let FSDP2 be FSDP2: there accelerate drops its plugin without a word, and trains by DDP."""
        super().create_accelerator_and_postprocess()
        held = self.accelerator.state
        if self.args.fsdp_plugin_args and held.distributed_type != DistributedType.FSDP:
            held.distributed_type = DistributedType.FSDP
            held.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            self.is_fsdp_enabled = True

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """The model as it trains; what was asked for and is not there would go wrong in silence."""
        model, loader = super()._prepare_for_training(*args, **kwargs)
        if self.team.size > 1:
            assert isinstance(model, FSDPModule) == bool(self.args.fsdp), "FSDP2 was asked for"
            assert self.accelerator.num_processes == self.team.size, "all processes train together"
            # Dropout is each process's own, or rows at the same place of two processes would lose the same numbers.
            torch.manual_seed(self.args.seed + self.team.rank)
        return model, loader

    # ------------------------------------------------------------------ checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        weights, values = state.trained(self.model), state.remembered(self)

        def publish() -> None:
            assert self.checkpoints is not None
            self.checkpoints.publish(
                self.state.global_step, lambda directory: state.write(self, directory, weights, values)
            )

        self.team.lead(publish)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        state.restore_weights(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            held = state.read(Path(checkpoint))
            self.optimizer.load_state_dict(cut_optimizer(self.optimizer, held["optimizer"]))
            self.lr_scheduler.load_state_dict(held["scheduler"])
            if held["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(held["scaler"])
            self._log_of_before = held["log"]
            self.lines[:] = held["log"]["lines"]
            self.pace.restore(held["pace"])
            self.skipped = held["skipped"]
            self.choice.looks[:] = held["looks"]
            self.choice.weights = state.best_weights(Path(checkpoint))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """It comes with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            states = state.read(Path(checkpoint))["random"]
            state.set_random_state(states if self.team.size == 1 else states[self.team.rank])

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        # Where an epoch is entered in its middle, accelerate tells the sampler of several processes no epoch.
        self._sampler.set_epoch(kwargs["epoch"])
        # The trainer has just reset its counters: what was not logged yet when the checkpoint was written comes back.
        if log := self._log_of_before:
            own = log["loss"] if self.team.size == 1 else log["loss"][self.team.rank]
            self._tr_loss = own.to(self.args.device)
            self._total_loss_scalar, self._globalstep_last_logged = log["total"], log["step"]
            self._total_train_tokens = log["tokens"]
            for mode, values in log["metrics"].items():
                self._metrics[mode].update(values)
            self._log_of_before = None
        return super()._run_epoch(*args, **kwargs)

    # ------------------------------------------------------------------ measuring

    def measured(self, rows: Sequence[Any]) -> dict[str, float]:
        """What train.jsonl says of held-out rows."""
        return {"dev_nll": self.token_nll(rows)}

    def losses(self, rows: Sequence[Any]) -> list[float]:
        """What training lowers, of each row by itself: its nats a loss token, by the model's own logits."""
        return [nll / len(row.completion_ids) for nll, row in zip(self.row_nlls(rows), rows, strict=True)]

    def row_nlls(self, rows: Sequence[Rendered]) -> list[float]:
        """Summed negative log-likelihood of each row's loss tokens, in nats, by the model's own logits."""
        was_training = self.model.training
        self.model.eval()
        model = self.accelerator.unwrap_model(self.model)
        with torch.no_grad(), self.accelerator.autocast():
            found = [float(row_nll(model, row)) for row in rows]
        self.model.train(was_training)
        return found

    def token_nll(self, rows: Sequence[Rendered]) -> float:
        """Negative log-likelihood per loss token over some rows, in nats, weighted by token, whatever the batch."""
        was_training = self.model.training
        self.model.eval()
        model = self.accelerator.unwrap_model(self.model)
        # Each process reads its part, and as many rows as any other: of a base that is cut all must compute at once.
        own = [*rows, *[self._blank] * (-len(rows) % self.team.size)][self.team.rank :: self.team.size]
        with torch.no_grad(), self.accelerator.autocast():
            if self._own_loss:
                total = sum(float(nll_sum(model, **inputs)) for inputs in self._laid_out(own))
            else:
                total = sum(float(row_nll(model, row)) for row in own)
        self.model.train(was_training)
        return self.team.sum(total) / sum(len(row.completion_ids) for row in rows)

    def _laid_out(self, rows: Sequence[Rendered]) -> Iterator[dict[str, Any]]:
        ordered = sorted(rows, key=lambda r: len(r.input_ids))
        size = self.args.per_device_train_batch_size
        for start in range(0, len(ordered), size):
            layout = lay_out(ordered[start : start + size], self.limits)
            yield self._prepare_inputs({"levels": layout.levels, "targets": layout.targets})
