"""Which of the adapters that training passes through is published, and when looking for a better one ends.

A look is one scoring of the dev rows. Of two looks the one with the higher score is better; of equal scores the one
with the lower dev loss, so that a model which answers nothing yet, or everything already, is still told apart; of
equals in both the earlier. All that is remembered is the looks and the best one's weights: a run that goes on from a
checkpoint chooses as the run that was never stopped.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tunesmith.sections import DevSection

Look = dict[str, Any]
"""What train.jsonl holds of a look: `step`, `dev_nll`, and where rows were answered `dev_rows` and their scores."""


@dataclass
class Choice:
    """The looks of a run, and the weights of the best one."""

    section: DevSection = field(default_factory=DevSection)
    metric: str = "exact_match"
    looks: list[Look] = field(default_factory=list)
    weights: dict[str, torch.Tensor] | None = None
    """Of the best look, where the recipe keeps the best."""

    def consider(self, look: Look, trained: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Take note of a look; `trained` gives the weights that it was at."""
        self.looks.append(look)
        if self.section.keep == "best" and self.chosen is look:
            # A copy: what `trained` gives is what training goes on to change.
            self.weights = {name: tensor.clone() for name, tensor in trained().items()}

    @property
    def chosen(self) -> Look:
        """The look whose adapter is published."""
        return max(self.looks, key=self._worth) if self.section.keep == "best" else self.looks[-1]

    @property
    def exhausted(self) -> bool:
        """Whether so many looks in a row were not better that training ends."""
        patience = self.section.patience
        return patience is not None and self.looks.index(self.chosen) + patience < len(self.looks)

    def looked_at(self, step: int) -> bool:
        """Whether the last look was at this step."""
        return bool(self.looks) and self.looks[-1]["step"] == step

    def as_dict(self) -> dict[str, Any]:
        """As choice.json holds it."""
        chosen = self.chosen
        if self.section.keep == "last":
            why = "the recipe keeps the last"
        else:
            why = f"the highest dev_{self.metric}; of equals the lowest dev_nll, then the earliest"
            if len(self.looks) > 1:
                why += f"; the best of {len(self.looks)} looks at the same rows reads higher than it is"
        return {
            "keep": self.section.keep,
            "metric": self.metric,
            "chosen": chosen["step"],
            "why": why,
            "stopped_early": self.exhausted,
            "looks": self.looks,
        }

    def _worth(self, look: Mapping[str, Any]) -> tuple[float, float]:
        # A loss that is no number is worse than any; `max` keeps the earliest of equals.
        loss = look["dev_nll"]
        return look[f"dev_{self.metric}"], -loss if math.isfinite(loss) else -math.inf
