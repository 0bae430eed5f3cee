"""Looks at a training run from outside: did it train what was meant, on what was meant, and did it learn.

The loss of a run can be healthy while its end tokens are masked, its updates round to nothing or its rows come in
another order. What can be looked at is: the batches as the model gets them, the adapter's numbers late in the run, and
the rows' loss before and after, computed by the model's own logits and not by the loss that was trained with.
"""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from scipy.stats import ttest_rel
from transformers import TrainerCallback

from tunesmith.files import sha256_json
from tunesmith.findings import Finding, seen
from tunesmith.train import state
from tunesmith.train.guarded import Guarded
from tunesmith.train.skips import MOST
from tunesmith.train.trainer import AdapterTrainer

LATE = 0.9
"""The part of the steps after which every weight must still be able to move."""
MOVED = 0.5
"""Least part of the adapter's weights that moves late in a run."""
LOOKED_AT = 64
"""Rows of a split whose loss is compared."""
SURE = 0.01
"""Error rate at which a fall of the loss over rows counts as one."""
ORDERED = 50
"""Steps whose rows name the order of a run."""


class Witness(TrainerCallback):  # type: ignore[misc]
    """Takes the losses before training, the weights late in it, and compares at the end."""

    def __init__(self, trainer: Guarded, dev: Sequence[Any], tolerance: float) -> None:
        self.trainer = trainer
        self.tolerance = tolerance
        self.slices = {"train": _spread(trainer.learned_from), "dev": _spread(dev)}
        # What is cut among processes can only be read once it is: at the beginning, where the run has one.
        self.before = {} if trainer.is_cut else self._losses()
        self.order = order_digest(trainer)
        """Taken now: the sampler stands at the first epoch."""
        self.late: dict[str, torch.Tensor] = {}
        self.late_from = 0
        self.last: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the losses before training where that had to wait."""
        if self.trainer.is_cut and state.global_step == 0:
            self.before = self._losses()

    def _losses(self) -> dict[str, list[float]]:
        return {name: self.trainer.losses(rows) for name, rows in self.slices.items()}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember the weights once, late in the run, with at least one step to come."""
        if not self.late and state.global_step >= min(LATE * state.max_steps, state.max_steps - 2):
            self.late, self.late_from = _weights(self.trainer), state.global_step

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember the weights that the last step left, whichever step's are published."""
        self.last = _weights(self.trainer)

    def beforehand(self) -> list[Finding]:
        """What can be seen before the first step: of all batches of the first epoch, and of one pass."""
        looked = [self._batches(), self._order()]
        return [*looked, self._apart(self.trainer)] if isinstance(self.trainer, AdapterTrainer) else looked

    def afterwards(self) -> list[Finding]:
        """What was seen, at the end of training."""
        looked = [self._moved(), *self._learned(), self._skipped()]
        return [*looked, self._weighed(self.trainer)] if isinstance(self.trainer, AdapterTrainer) else looked

    def _batches(self) -> Finding:
        """Whether what the collator hands to the model carries loss where the rows do, end tokens included."""
        meant, got, ends = Counter[int](), Counter[int](), 0
        for places in self.trainer.passes():
            rows = [self.trainer.learned_from[place] for place in places]
            got.update(self.trainer.collated(rows))
            meant.update(token for row in rows for token in self.trainer.completions(row))
            ends += sum(self.trainer.rows[place].ends for place in places)
        return seen(
            "batches as trained",
            (1, 3),
            got == meant,
            "in every batch the loss falls on the rows' completions and end tokens",
            f"{got.total()} loss tokens in the epoch's batches, {meant.total()} in its rows, {ends} of them end a turn",
            "the collator masks tokens by their id, or cuts; the installed trl does not fit: install the pinned set",
        )

    def _apart(self, trainer: AdapterTrainer) -> Finding:
        error = trainer.error()
        return seen(
            "rows apart",
            (6,),
            error <= self.tolerance,
            "rows of a pass do not see each other: gradients are those of each row alone",
            f"gradients of a pass differ from those of its rows alone by {error:.1e} of their norm"
            if trainer.weighs
            else "left to trl, which pads rows and packs none",
            "set hardware.share_prefixes: false",
        )

    def _weighed(self, trainer: AdapterTrainer) -> Finding:
        return seen(
            "steps weighed by loss tokens",
            (7,),
            trainer.weighed > 0 or not trainer.weighs,
            "each step's loss is a mean over the loss tokens of all its passes",
            f"{trainer.weighed} passes, each divided by the loss tokens of its whole step"
            if trainer.weighs
            else "left to trl, with the loss of its own",
        )

    def _moved(self) -> Finding:
        now = self.last
        narrow = sorted({str(tensor.dtype) for tensor in now.values() if tensor.dtype != torch.float32})
        shares = self._shares(now)
        told = ", ".join(f"{share:.1%} of {kind}" for kind, share in shares.items()) or "no late step to look at"
        return seen(
            "late updates arrive",
            (14,),
            not narrow and all(share >= MOVED for share in shares.values()),
            "the adapter is float32, and its weights still move at the end",
            f"in {', '.join(narrow)}" if narrow else f"after step {self.late_from} there moved {told}",
            "raise trainer.learning_rate, or take a schedule that does not end so early",
        )

    def _shares(self, now: dict[str, torch.Tensor]) -> dict[str, float]:
        """The part of the weights of each kind that moved late; lora_B alone always does, from zero."""
        moved, all_of = Counter[str](), Counter[str]()
        if self.late_from == self.trainer.state.global_step:
            # Training was stopped in the step at which it was to be looked at.
            return {}
        for name, before in self.late.items():
            kind = next((part for part in name.split(".") if part.startswith("lora_")), "the others")
            moved[kind] += int((now[name] != before).sum())
            all_of[kind] += before.numel()
        return {kind: moved[kind] / number for kind, number in all_of.items()}

    def _skipped(self) -> Finding:
        steps, skipped = self.trainer.state.global_step, self.trainer.skipped
        return seen(
            "steps taken",
            (30,),
            skipped <= MOST * steps,
            f"a loss scale skips at most {MOST:.0%} of the steps",
            f"{skipped} of {steps} steps skipped",
            "set hardware.dtype: float32, or bfloat16 where the GPU has it",
        )

    def _learned(self) -> list[Finding]:
        """Whether the rows' loss fell by more than it differs between rows; of dev rows that is not asked."""
        found = []
        for name, before in self.before.items():
            after = self.trainer.losses(self.slices[name])
            if len(before) < 2:
                continue
            fell = fmean(before) - fmean(after)
            sure = before != after and float(ttest_rel(before, after, alternative="greater").pvalue) < SURE
            told = f"{fmean(before):.3f} to {fmean(after):.3f} {self.trainer.LOWERED}, n = {len(before)}"
            trained = name == "train"
            found.append(
                seen(
                    f"{name} loss falls",
                    (17,),
                    sure and fell > 0,
                    f"the loss of {'trained' if trained else name} rows falls by more than noise",
                    f"loss of {name} rows: {told}",
                    "raise trainer.learning_rate or trainer.num_train_epochs"
                    if trained
                    else "what was learned does not carry over: more, or more varied, rows; fewer epochs",
                    grave=trained,
                )
            )
        return found

    def _order(self) -> Finding:
        with torch.random.fork_rng():
            torch.manual_seed(self.trainer.args.seed + 1)
            again = order_digest(self.trainer)
        return seen(
            "order of rows",
            (19,),
            again == self.order,
            "the seed alone fixes which rows make a step, whatever else draws random numbers",
            f"order {self.order[:12]} of the first {ORDERED} steps; {again[:12]} after other random numbers",
            "the sampler draws from the random numbers that all share; give it a generator of its own",
        )


def order_digest(trainer: Guarded) -> str:
    """Digest of the ids of the rows of the first steps, in their order."""
    steps = [trainer.rows_of_step(step) for step in range(min(ORDERED, trainer.steps_per_epoch))]
    return sha256_json([[trainer.ids[row] for row in rows] for rows in steps])


def _spread(rows: Sequence[Any]) -> list[Any]:
    """Some rows, taken at even distances."""
    stride = max(1, len(rows) // LOOKED_AT)
    return list(rows[::stride][:LOOKED_AT])


def _weights(trainer: Guarded) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.trained(trainer.model).items()}
