"""trl's DPOTrainer, fed with our token ids of two answers to each prompt.

It begins from a trained adapter, whose frozen copy is the reference. Beside what holds for every training (`guarded`)
three things differ from upstream: no row is rendered again, the copy is exact, and a step is the mean over its pairs
however it is cut into passes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset as HFDataset
from trl import DPOTrainer
from trl.trainer.utils import use_adapter

from tunesmith.prompt import Rendered
from tunesmith.tokens import Pair
from tunesmith.train.checkpoints import Checkpoints
from tunesmith.train.choice import Choice
from tunesmith.train.guarded import Guarded
from tunesmith.train.loss import row_nll
from tunesmith.train.pace import Pace
from tunesmith.train.sampler import FamilySampler
from tunesmith.train.tree import Limits

TRAINED, REFERENCE = "default", "ref"
"""What peft and trl call the two adapters."""


def features(pairs: Sequence[Pair]) -> HFDataset:
    """Pairs as the data set that trl makes of rows by itself: the token ids of a prompt and of its two answers."""
    return HFDataset.from_list([_feature(pair) for pair in pairs])


def _feature(pair: Pair) -> dict[str, list[int]]:
    chosen, rejected = pair
    assert rejected is not None
    return {
        "prompt_ids": chosen.prompt_ids,
        "chosen_ids": chosen.completion_ids,
        "rejected_ids": rejected.completion_ids,
    }


class PreferenceTrainer(Guarded, DPOTrainer):  # type: ignore[misc]
    """DPOTrainer on pairs that are rendered already; `model` carries the adapter that it begins from.

    `ids` name the rows in messages. `by_family` batches rows that begin alike together.
    """

    LOWERED = "nats by which the rejected answer is likelier"

    def __init__(
        self,
        *args: Any,
        model: Any,
        pairs: Sequence[Pair],
        ids: Sequence[str] = (),
        by_family: bool = True,
        checkpoints: Checkpoints | None = None,
        lora_plus_ratio: float | None = None,
        **kwargs: Any,
    ) -> None:
        began = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        with _no_new_beginning(model.peft_config[TRAINED]):
            super().__init__(*args, model=model, train_dataset=features(pairs), **kwargs)
        # trl rounds the adapters of a quantised base to bfloat16, and its reference is no copy where a parameter's
        # name ends in the adapter's (an embedding's): the policy would not begin where SFT left it, nor the reference.
        for name, weight in began.items():
            self.model.get_parameter(name).data = weight.float()
            self.model.get_parameter(_of_reference(name)).data = weight.float().clone()
        self.pairs = pairs
        self.rows = [max(_both(pair), key=lambda row: len(row.input_ids)) for pair in pairs]
        self.ids = ids or [f"number {number}" for number in range(1, len(pairs) + 1)]
        self.checkpoints = checkpoints
        self.lora_plus_ratio = lora_plus_ratio
        self.lines: list[dict[str, Any]] = []
        self.pace = Pace()
        self.choice = Choice()
        self.limits, self._own_loss = None, False
        self._blank = Rendered(self.rows[0].input_ids[:1], [], ends=False)
        self._log_of_before: dict[str, Any] | None = None
        batch = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        self._sampler = FamilySampler(self.rows, batch, self.args.seed, Limits() if by_family else None)
        self._pairs_of_step = 0

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """The data set as it is: rendered by us."""
        return dataset

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The passes of one optimizer step, counted."""
        passes, items = super().get_batch_samples(*args, **kwargs)
        self._pairs_of_step = sum(_size(inputs) for inputs in passes)
        return passes, items

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss of the pairs; in training such that the passes of a step add up to the mean over all its pairs."""
        if self.model.training:
            self.pace.count(inputs)
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.model.training and self._pairs_of_step:
            # The trainer divides by the number of passes, of which the last of an epoch may be smaller.
            loss = loss * (_size(inputs) * self.current_gradient_accumulation_steps / self._pairs_of_step)
        return loss

    def alone(self, row: int) -> float:
        """Summed negative log-likelihood of both answers of a row."""
        model = self.accelerator.unwrap_model(self.model)
        return sum(float(row_nll(model, answer)) for answer in _both(self.pairs[row]))

    # ------------------------------------------------------------------ measuring

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """The model with the adapter that it began from, while the block runs."""
        with use_adapter(self.accelerator.unwrap_model(self.model), REFERENCE):
            yield

    def losses(self, rows: Sequence[Any]) -> list[float]:
        """By how many nats the rejected answer of each pair is likelier than its completion."""
        pairs = [pair for pair in rows if pair[1] is not None]
        chosen = self.row_nlls([chosen for chosen, _ in pairs])
        return [a - b for a, b in zip(chosen, self.row_nlls([rejected for _, rejected in pairs]), strict=True)]

    @property
    def learned_from(self) -> Sequence[Pair]:
        """The pairs."""
        return self.pairs

    def completions(self, row: Pair) -> list[int]:
        """The tokens of both answers."""
        return [token for answer in _both(row) for token in answer.completion_ids]

    def collated(self, rows: Sequence[Pair]) -> list[int]:
        """The tokens of a pass that carry loss as the model gets them."""
        inputs = self.data_collator([_feature(pair) for pair in rows])
        found: list[int] = inputs["input_ids"][inputs["completion_mask"].bool()].tolist()
        return found

    def measured(self, rows: Sequence[Any]) -> dict[str, float]:
        """Of held-out rows the loss of their completions; of their pairs, trl's loss and how often and far it prefers.

        `dev_accuracy` is the share of pairs whose completion gained more on the reference than its rejected answer,
        `dev_margin` how much more, in nats times beta.
        """
        found = {"dev_nll": self.token_nll([chosen for chosen, _ in rows])}
        pairs = [pair for pair in rows if pair[1] is not None]
        totals = dict.fromkeys(("dev_loss", "dev_accuracy", "dev_margin"), 0.0)
        was_training = self.model.training
        self.model.eval()
        size = self.args.per_device_train_batch_size
        for part in (pairs[start : start + size] for start in range(0, len(pairs), size)):
            inputs = self._prepare_inputs(self.data_collator([_feature(pair) for pair in part]))
            with torch.no_grad(), self.compute_loss_context_manager():
                totals["dev_loss"] += len(part) * float(self.compute_loss(self.model, inputs))
            metrics = self._metrics["eval"]
            totals["dev_accuracy"] += len(part) * metrics["rewards/accuracies"][-1]
            totals["dev_margin"] += len(part) * metrics["rewards/margins"][-1]
            metrics.clear()
        self.model.train(was_training)
        return found | ({name: total / len(pairs) for name, total in totals.items()} if pairs else {})


@contextmanager
def _no_new_beginning(config: Any) -> Iterator[None]:
    """Let peft add the reference as a plain adapter: some methods take what they begin from out of the base."""
    stated = config.init_lora_weights
    config.init_lora_weights = True
    try:
        yield
    finally:
        config.init_lora_weights = stated


def _of_reference(name: str) -> str:
    """The reference's parameter for one of the trained adapter's."""
    head, _, tail = name.rpartition(f".{TRAINED}")
    return f"{head}.{REFERENCE}{tail}"


def _both(pair: Pair) -> list[Rendered]:
    return [answer for answer in pair if answer is not None]


def _size(inputs: dict[str, Any]) -> int:
    """Pairs of a collated pass: completions stand in its first half, rejected answers in its second."""
    return int(inputs["input_ids"].shape[0]) // 2
