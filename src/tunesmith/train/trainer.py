"""trl's SFTTrainer, fed with our token ids and labels.

Beside what holds for every training (`guarded`) one thing differs from upstream: beginnings that rows of a batch share
are computed once and the head reads only what predicts a loss token (`loss`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset as HFDataset
from trl import SFTTrainer
from trl.models.utils import _ForwardRedirection

from tunesmith.errors import EnvironmentFault
from tunesmith.prompt import IGNORE, Rendered
from tunesmith.team import Team
from tunesmith.train.checkpoints import Checkpoints
from tunesmith.train.choice import Choice
from tunesmith.train.guarded import Guarded
from tunesmith.train.loss import gradient_error, nll_sum
from tunesmith.train.pace import Pace
from tunesmith.train.sampler import FamilySampler
from tunesmith.train.start import widen
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


class AdapterTrainer(Guarded, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer on rows that are rendered already.

    `ids` name the rows in messages.
    `limits` say what rows of a batch may share; none keeps them apart. `by_family` batches rows that begin alike
    together, by limits that no machine decides: what is learned does not depend on whether sharing pays here. Without
    `own_loss` trl computes the loss. `lora_plus_ratio` says by how much more lora_B learns than lora_A.
    `team` are the processes that train together.
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
        lora_plus_ratio: float | None = None,
        team: Team = Team(),  # noqa: B008 - frozen
        **kwargs: Any,
    ) -> None:
        self.team = team
        # What fills up the last batch: a token, and no loss.
        self._blank = Rendered(rows[0].input_ids[:1], [], ends=False)
        super().__init__(*args, train_dataset=features([*rows, self._blank] if team.size > 1 else rows), **kwargs)
        self.rows = rows
        self.ids = ids or [f"number {number}" for number in range(1, len(rows) + 1)]
        self.checkpoints = checkpoints
        self.lora_plus_ratio = lora_plus_ratio
        self.lines: list[dict[str, Any]] = []
        """Of train.jsonl; a checkpoint remembers them, and the two that follow."""
        self.pace = Pace()
        self.choice = Choice()
        plain = reads_loss_tokens_only(self.model, self.args) and not self.aux_loss_enabled
        self._own_loss = own_loss and plain
        # Noise on embeddings is scaled by the length of what is read at once: parts of rows are other lengths.
        self.limits = limits if self._own_loss and not self.args.neftune_noise_alpha else None
        if self._own_loss:
            self.data_collator = Collator(self.limits)
        at_once = self.args.per_device_train_batch_size * team.size
        batch = at_once * self.args.gradient_accumulation_steps
        self._log_of_before: dict[str, Any] | None = None
        self.weighed = 0
        """Passes whose count of loss tokens was held against the rows."""
        self._sampler = FamilySampler(
            rows, batch, self.args.seed, Limits() if by_family else None, multiple=at_once if team.size > 1 else 1
        )
        widen(self.model)

    def work(self) -> Work:
        """The tokens of the first epoch."""
        return work_of(self.rows, self.passes(), self.limits)

    def error(self) -> float:
        """How far our gradients are from those of rows alone through the model's own logits, relative to their norm.

        From one pass of the first epoch, of those whose rows share most deeply; 0 where the loss is left to trl.
        """
        if not self._own_loss:
            return 0.0
        passes = [[self.rows[i] for i in rows[:PROBED_ROWS]] for rows in self.passes()[:PROBED]]
        rows = max(passes, key=lambda rows: len(lay_out(rows, self.limits).levels))
        # One process's word for all: they must go the same way.
        with self.accelerator.autocast():
            model = self.accelerator.unwrap_model(self.model)
            return self.team.lead(lambda: gradient_error(model, rows, self.limits))

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
            total = self._through(model, inputs["levels"], targets)
        if self.model.training:
            self._total_train_tokens += inputs["tokens"]
        self._metrics["train" if self.model.training else "eval"]["num_tokens"] = [self._total_train_tokens]
        tokens = len(targets) if num_items_in_batch is None else num_items_in_batch
        loss = total / torch.as_tensor(tokens, device=total.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return loss

    def _through(self, model: Any, levels: Any, targets: torch.Tensor) -> torch.Tensor:
        """Our loss; under DDP by way of its `forward`, which then sums the gradients of all processes."""
        inner = self.accelerator.unwrap_model(model)
        if inner is model:
            return nll_sum(inner, levels, targets)
        redirected = _ForwardRedirection()(model, inner, lambda: nll_sum(inner, levels, targets))
        total: torch.Tensor = redirected
        return total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Of several processes each has counted its own tokens only, and what fills up the last batch."""
        if self.team.size > 1 and "num_tokens" in self._metrics["train"]:
            self._metrics["train"]["num_tokens"] = [self._tokens_until(self.state.global_step)]
        super().log(logs, start_time)

    def _tokens_until(self, step: int) -> int:
        epochs, within = divmod(step, self.steps_per_epoch)
        lengths = self._sampler.lengths
        # After the last step of an epoch the sampler still stands at that epoch; none of it is counted then.
        read = [row for batch in self._sampler.batches()[:within] for row in batch]
        return epochs * sum(lengths) + sum(lengths[row] for row in read)

    @property
    def weighs(self) -> bool:
        """Whether the loss of a step is divided here, and not by trl."""
        return self._own_loss

    def _weigh(self, counted: Any) -> None:
        """Hold upstream's count of a step's loss tokens against the rows: a wrong one weighs short rows too much.

        Raises:
            EnvironmentFault: they differ.
        """
        rows = self.rows_of_step(self.state.global_step)
        held = sum(len(self.rows[row].completion_ids) for row in rows)
        if counted is None or int(counted) != held:
            raise EnvironmentFault(
                f"training: step {self.state.global_step + 1} counts {counted} loss tokens, its rows hold {held}",
                hint="the installed trl, transformers and accelerate do not fit together: install constraints.txt",
            )
        self.weighed += 1

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward and backward pass, of a step whose loss tokens were counted right."""
        if self._own_loss:
            self._weigh(num_items_in_batch)
        return super().training_step(model, inputs, num_items_in_batch)


def _rendered(row: dict[str, Any]) -> Rendered:
    """A row of `features` as it was: its labels begin with those of the prompt."""
    prompt = sum(label == IGNORE for label in row["labels"])
    return Rendered(row["input_ids"][:prompt], row["input_ids"][prompt:], ends=True)
