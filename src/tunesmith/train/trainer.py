"""trl's SFTTrainer, fed with our token ids and labels.

Four things differ from upstream, each where upstream leaves room for a subclass: beginnings that rows of a batch share
are computed once and the head reads only what predicts a loss token (`loss`), batches hold rows that share a beginning
or a length in a seeded order (`sampler`), checkpoints are our own (`checkpoints`, `state`), and a loss or a gradient
that is not a number stops the run before it reaches the weights.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset as HFDataset
from trl import SFTTrainer

from tunesmith.adapters import refuse_asleep
from tunesmith.errors import Diverged
from tunesmith.prompt import IGNORE, Rendered
from tunesmith.train import state
from tunesmith.train.checkpoints import Checkpoints
from tunesmith.train.loss import gradient_error, nll_sum, row_nll
from tunesmith.train.pace import Pace
from tunesmith.train.sampler import FamilySampler
from tunesmith.train.tree import Limits, lay_out
from tunesmith.train.work import Work, work_of


def features(rows: Sequence[Rendered]) -> HFDataset:
    """Rendered rows as the data set that trl takes: `input_ids` and `labels`."""
    return HFDataset.from_dict({"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]})


def reads_loss_tokens_only(model: Any, args: Any) -> bool:
    """Whether the loss may be computed by `loss.nll_sum`: plain cross-entropy behind a plain head.

    A head that scales or caps its logits, label smoothing, another loss, a router's own loss, recurrent models, and
    models that are compiled or given other kernels as a whole are left to trl.
    """
    config = model.config.get_text_config()
    plain = args.loss_type == "nll" and not args.label_smoothing_factor
    whole = not args.torch_compile and not args.use_liger_kernel
    scaled = any(getattr(config, key, None) for key in SCALES) or getattr(config, "output_router_logits", False)
    return plain and whole and not scaled and not model._is_stateful


PROBED = 32
"""Passes among which the one that shares most deeply is probed before training."""
PROBED_ROWS = 4
"""Rows of that pass that are: each is also read alone."""

# What the text configs of transformers' models call a scale or cap of their logits.
SCALES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")


class Collator:
    """Makes a batch of rows into the levels of a `Layout`."""

    def __init__(self, limits: Limits | None) -> None:
        self.limits = limits

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`levels` and `tokens` of the layout, and its targets as `labels`, whose first is never a prediction."""
        layout = lay_out([_rendered(row) for row in rows], self.limits)
        labels = torch.cat([torch.tensor([IGNORE]), layout.targets])
        return {"levels": layout.levels, "labels": labels, "tokens": layout.tokens}


class AdapterTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer on rows that are rendered already.

    `ids` name the rows in messages.
    `limits` say what rows of a batch may share; none keeps them apart. `by_family` batches rows that begin alike
    together, by limits that no machine decides: what is learned does not depend on whether sharing pays here. Without
    `own_loss` trl computes the loss.
    """

    def __init__(
        self,
        *args: Any,
        rows: Sequence[Rendered],
        ids: Sequence[str] = (),
        limits: Limits | None,
        by_family: bool = True,
        own_loss: bool = True,
        checkpoints: Checkpoints | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, train_dataset=features(rows), **kwargs)
        self.rows = rows
        self.ids = ids or [f"number {number}" for number in range(1, len(rows) + 1)]
        self.checkpoints = checkpoints
        self.lines: list[dict[str, Any]] = []
        """Of train.jsonl; a checkpoint remembers them, and the two that follow."""
        self.pace = Pace()
        self.skipped = 0
        """Optimizer steps that a loss scale (float16) skipped."""
        plain = reads_loss_tokens_only(self.model, self.args) and not self.aux_loss_enabled
        self._own_loss = own_loss and plain
        # Noise on embeddings is scaled by the length of what is read at once: parts of rows are other lengths.
        self.limits = limits if self._own_loss and not self.args.neftune_noise_alpha else None
        if self._own_loss:
            self.data_collator = Collator(self.limits)
        batch = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        self._log_of_before: dict[str, Any] | None = None
        self._sampler = FamilySampler(rows, batch, self.args.seed, Limits() if by_family else None)
        # trl casts the adapters of a quantised base to bfloat16. In it AdamW's late, small updates round to nothing.
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def work(self) -> Work:
        """The tokens of the first epoch."""
        return work_of(self.rows, self._passes(), self.limits)

    def error(self) -> float:
        """How far our gradients are from those of rows alone through the model's own logits, relative to their norm.

        From one pass of the first epoch, of those whose rows share most deeply; 0 where the loss is left to trl.
        """
        if not self._own_loss:
            return 0.0
        passes = [[self.rows[i] for i in rows[:PROBED_ROWS]] for rows in self._passes()[:PROBED]]
        rows = max(passes, key=lambda rows: len(lay_out(rows, self.limits).levels))
        with self.accelerator.autocast():
            return gradient_error(self.accelerator.unwrap_model(self.model), rows, self.limits)

    def _passes(self) -> list[list[int]]:
        size = self.args.per_device_train_batch_size
        return [rows[start : start + size] for rows in self._sampler.batches() for start in range(0, len(rows), size)]

    def _get_train_sampler(self, train_dataset: Any = None) -> FamilySampler:
        return self._sampler

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The passes of the next step."""
        self.pace.step_begins()
        return super().get_batch_samples(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean negative log-likelihood of the loss tokens; `num_items_in_batch` counts those of the whole step."""
        if self.model.training:
            self.pace.count(inputs)
        if not self._own_loss:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        targets = inputs["labels"][1:]
        with self.accelerator.autocast():
            total = nll_sum(self.accelerator.unwrap_model(model), inputs["levels"], targets)
        if self.model.training:
            self._total_train_tokens += inputs["tokens"]
        self._metrics["train" if self.model.training else "eval"]["num_tokens"] = [self._total_train_tokens]
        tokens = len(targets) if num_items_in_batch is None else num_items_in_batch
        loss = total / torch.as_tensor(tokens, device=total.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass; a loss that is not finite stops here, before the optimizer."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss became {loss.item()}")
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm of the step's gradients; one that is not finite stops here, before the optimizer."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if not math.isfinite(float(norm)):
            # With a loss scale (float16) an overflow is met by a skipped step and a smaller scale.
            if self.accelerator.scaler is None:
                raise self._diverged(f"the gradient became {float(norm)}")
        elif self.state.global_step == self.skipped:
            # The first step that is taken. lora_A's gradient is zero as long as lora_B is: lora_B's own is what tells a
            # module that takes no part.
            held = [(name, p.grad) for name, p in self.model.named_parameters() if "lora_B" in name]
            refuse_asleep(self.model, {name for name, grad in held if grad is None or not bool(grad.any())})
        return norm

    def _diverged(self, says: str) -> Diverged:
        rows = self.rows_of_step(self.state.global_step)
        model = self.accelerator.unwrap_model(self.model)
        with torch.no_grad(), self.accelerator.autocast():
            bad = [row for row in rows if not math.isfinite(float(row_nll(model, self.rows[row])))]
        alone = f"alone not finite: {self._named(bad)}" if bad else "each of them alone has a finite loss"
        where = f"step {self.state.global_step + 1}, rows {self._named(rows)}"
        return Diverged(
            f"training: {says} at {where}; {alone}; nothing was written",
            hint="look at these rows; if they are sound, lower trainer.learning_rate",
        )

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

    # ------------------------------------------------------------------ checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        assert self.checkpoints is not None
        self.checkpoints.publish(self.state.global_step, lambda directory: state.write(self, directory))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        state.restore_weights(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            held = state.read(Path(checkpoint))
            self.optimizer.load_state_dict(held["optimizer"])
            self.lr_scheduler.load_state_dict(held["scheduler"])
            if held["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(held["scaler"])
            self._log_of_before = held["log"]
            self.lines[:] = held["log"]["lines"]
            self.pace.restore(held["pace"])
            self.skipped = held["skipped"]

    def _load_scaler(self, checkpoint: str | None) -> None:
        """It comes with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state.set_random_state(state.read(Path(checkpoint))["random"])

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        # The trainer has just reset its counters: what was not logged yet when the checkpoint was written comes back.
        if log := self._log_of_before:
            self._tr_loss = log["loss"].to(self.args.device)
            self._total_loss_scalar, self._globalstep_last_logged = log["total"], log["step"]
            self._total_train_tokens = log["tokens"]
            for mode, values in log["metrics"].items():
                self._metrics[mode].update(values)
            self._log_of_before = None
        return super()._run_epoch(*args, **kwargs)

    # ------------------------------------------------------------------ measuring

    def changes_nothing(self, rows: Sequence[Rendered]) -> bool:
        """Whether the base answers some rows as the base with the adapter does."""
        model = self.accelerator.unwrap_model(self.model)
        with model.disable_adapter():
            without = self.token_nll(rows)
        return self.token_nll(rows) == without

    def token_nll(self, rows: Sequence[Rendered]) -> float:
        """Negative log-likelihood per loss token over some rows, in nats, weighted by token, whatever the batch."""
        was_training = self.model.training
        self.model.eval()
        model = self.accelerator.unwrap_model(self.model)
        with torch.no_grad(), self.accelerator.autocast():
            if self._own_loss:
                total = sum(float(nll_sum(model, **inputs)) for inputs in self._laid_out(rows))
            else:
                total = sum(float(row_nll(model, row)) for row in rows)
        self.model.train(was_training)
        return total / sum(len(row.completion_ids) for row in rows)

    def _laid_out(self, rows: Sequence[Rendered]) -> Iterator[dict[str, Any]]:
        ordered = sorted(rows, key=lambda r: len(r.input_ids))
        size = self.args.per_device_train_batch_size
        for start in range(0, len(ordered), size):
            layout = lay_out(ordered[start : start + size], self.limits)
            yield self._prepare_inputs({"levels": layout.levels, "targets": layout.targets})


def _rendered(row: dict[str, Any]) -> Rendered:
    """A row of `features` as it was: its labels begin with those of the prompt."""
    prompt = sum(label == IGNORE for label in row["labels"])
    return Rendered(row["input_ids"][:prompt], row["input_ids"][prompt:], ends=True)
