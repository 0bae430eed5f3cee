"""trl's SFTTrainer, fed with our token ids and labels.

Three things differ from upstream, each where upstream leaves room for a subclass: the loss reads only the tokens that
carry it where Triton is absent, batches hold rows of like length in a seeded order, and a loss that is not a number
stops the run before it reaches the weights.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset as HFDataset
from peft import PeftModel
from torch.utils.data import Sampler
from trl import SFTTrainer

from tunesmith.errors import Diverged
from tunesmith.prompt import IGNORE, Rendered

MAX_LOGITS = 64 * 2**20
"""Most logits held at once: 64 Mi float32, 256 MiB."""

BUCKET = 16
"""Batches whose rows are sorted among themselves: long enough to even out lengths, short enough to stay random."""


def features(rows: Sequence[Rendered]) -> HFDataset:
    """Rendered rows as the data set that trl's collator takes: `input_ids` and `labels`."""
    return HFDataset.from_dict({"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]})


class BucketSampler(Sampler[int]):
    """All rows once an epoch, rows of like length next to each other, in an order fixed by seed and epoch."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths = lengths
        self.batch = batch
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order: list[int] = torch.randperm(len(self.lengths), generator=generator).tolist()
        width = self.batch * BUCKET
        batches: list[list[int]] = []
        for start in range(0, len(order), width):
            bucket = sorted(order[start : start + width], key=lambda index: self.lengths[index])
            batches += [bucket[i : i + self.batch] for i in range(0, len(bucket), self.batch)]
        # A short batch stays last: the data loader cuts batches by count.
        short = [batch for batch in batches if len(batch) < self.batch]
        full = [batch for batch in batches if len(batch) == self.batch]
        for index in torch.randperm(len(full), generator=generator).tolist():
            yield from full[index]
        for batch in short:
            yield from batch


class AdapterTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer on rows that are rendered already."""

    def __init__(self, *args: Any, lengths: Sequence[int], effective_batch: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sampler = BucketSampler(lengths, effective_batch, self.args.seed)
        self._reads_loss_tokens_only = reads_loss_tokens_only(self.model)
        # trl casts the adapters of a quantised base to bfloat16. In it AdamW's late, small updates round to nothing.
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def _get_train_sampler(self, train_dataset: Any = None) -> BucketSampler:
        return self._sampler

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean negative log-likelihood of the loss tokens, by upstream's fused head or by ours."""
        plain = self.args.loss_type == "nll" and self.label_smoother is None and not self.aux_loss_enabled
        if return_outputs or not plain or not self._reads_loss_tokens_only:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        total, count = loss_token_nll(self.accelerator.unwrap_model(model), inputs)
        self._metrics["train" if self.model.training else "eval"]["num_tokens"] = [self._count_tokens(inputs)]
        tokens = count if num_items_in_batch is None else num_items_in_batch
        loss = total / torch.as_tensor(tokens, device=total.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass; a loss that is not finite stops here, before the optimizer."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise Diverged(
                f"training: the loss became {loss.item()} at step {self.state.global_step + 1}; nothing was written",
                hint="lower trainer.learning_rate, or look for a damaged row near that step",
            )
        return loss

    def token_nll(self, rows: Sequence[Rendered]) -> float:
        """Negative log-likelihood per loss token over some rows, in nats, weighted by token, whatever the batch."""
        was_training = self.model.training
        self.model.eval()
        total, count = 0.0, 0
        ordered = sorted(rows, key=lambda r: len(r.input_ids))
        size = self.args.per_device_train_batch_size
        with torch.no_grad():
            for start in range(0, len(ordered), size):
                batch = ordered[start : start + size]
                collated = self.data_collator([{"input_ids": r.input_ids, "labels": r.labels} for r in batch])
                inputs = self._prepare_inputs(collated)
                with self.compute_loss_context_manager():
                    nll, tokens = loss_token_nll(self.accelerator.unwrap_model(self.model), inputs)
                total += float(nll)
                count += int(tokens)
        self.model.train(was_training)
        return total / count

    def _count_tokens(self, inputs: dict[str, Any]) -> int:
        if self.model.training:
            self._total_train_tokens += int(inputs["attention_mask"].sum())
        return int(self._total_train_tokens)


def reads_loss_tokens_only(model: Any) -> bool:
    """Whether the loss may be computed by `loss_token_nll`.

    With Triton, trl's own head drops the other tokens already. A head that scales or caps its logits is left to trl.
    """
    from trl.trainer.utils import _use_triton

    config = model.config.get_text_config()
    scaled = any(getattr(config, key, None) for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"))
    return not scaled and not _use_triton(next(model.parameters()).device)


def loss_token_nll(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed negative log-likelihood of the tokens that carry loss, and their number.

    The head, by far the widest matrix of a small model, is applied to the positions before loss tokens and no others.
    `inputs`: `input_ids`, `attention_mask`, `labels`, each of shape (rows, tokens).
    """
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    hidden = causal.base_model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
    ).last_hidden_state
    labels = inputs["labels"][:, 1:]
    carries = labels != IGNORE
    hidden, targets = hidden[:, :-1][carries], labels[carries]
    head = causal.get_output_embeddings()
    rows = max(1, MAX_LOGITS // head.weight.shape[0])
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(targets), rows):
        logits = head(hidden[start : start + rows]).float()
        total = total + F.cross_entropy(logits, targets[start : start + rows], reduction="sum")
    return total, carries.sum()
