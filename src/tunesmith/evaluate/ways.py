"""The ways to answer: which there are, where their files lie, and which of those without training is best on dev."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.files import read_json
from tunesmith.recipe import Recipe
from tunesmith.rows import Split
from tunesmith.scoring import ScoreSection

ORACLES = ("gold_context",)
"""Arms that are told what nobody knows when it counts: shown beside the others, never the incumbent."""


@dataclass(frozen=True)
class Way:
    """A way to answer: what stands beside the question, how much of it, and whether decoding is constrained."""

    arm: str
    shots: str = "none"
    """`few_shot`, `retrieval` (training rows), `documents`, `gold_context` (chunks of a knowledge base), or `none`."""
    k: int = 0
    """How many rows or chunks."""

    @property
    def label(self) -> str:
        """The name of this way's files on dev, where several k stand side by side."""
        return f"{self.arm}-{self.k}" if self.k else self.arm

    @property
    def free(self) -> "Way | None":
        """The way with the same prompts whose decoding is free, if this one's is constrained."""
        if self.arm != "constrained":
            return None
        return Way(self.shots, self.shots, self.k) if self.k else ZERO_SHOT

    @property
    def searches(self) -> bool:
        """Whether what stands beside a question is found by it."""
        return self.shots in {"retrieval", "documents"}

    @property
    def knows(self) -> bool:
        """Whether a knowledge base is read."""
        return self.shots in {"documents", "gold_context"}

    def file(self, split: Split) -> str:
        """The name of this way's files under `arms/`, without suffix."""
        return f"dev/{self.label}" if split == "dev" else self.arm

    def as_dict(self) -> dict[str, Any]:
        """As an arm's file holds it."""
        return {"arm": self.arm, "shots": self.shots, "k": self.k}


ZERO_SHOT = Way("zero_shot")
STARTED_FROM = Way("started_from")
"""The adapter that training begins from, where it begins from one."""


def untrained_ways(recipe: Recipe) -> list[Way]:
    """The ways without training or constraint that dev compares."""
    few = [Way("few_shot", "few_shot", k) for k in recipe.arms.few_shot]
    near = [Way("retrieval", "retrieval", k) for k in recipe.arms.retrieval]
    knowledge = recipe.arms.knowledge
    documents = [Way("documents", "documents", k) for k in knowledge.k] if knowledge else []
    return [ZERO_SHOT, *few, *near, *documents]


def best(ways: Sequence[Way], dev: Path, score: ScoreSection) -> Way:
    """The way with the highest primary metric on dev; of equals, the kind's second one, then the shorter prompts."""

    def rank(way: Way) -> tuple[float, float, int]:
        summary = read_json(dev / f"{way.label}.json")
        return summary["means"][score.primary], summary["means"][score.tie_break], -summary["tokens_in"]

    return max((way for way in ways if way.arm not in ORACLES), key=rank)


def selected_ways(selection: dict[str, Any]) -> list[Way]:
    """The ways that selection.json names, for the gate rows."""
    return [Way(**way) for way in selection["ways"]]


def adapter_ways(recipe: Recipe, selection: dict[str, Any]) -> list[Way]:
    """How the adapter answers: alone, and with what retrieval put before the base, as dev chose it."""
    ways = [Way("adapter")]
    if recipe.arms.adapter_retrieval:
        for shots in ("documents", "retrieval"):
            if found := next((way for way in selected_ways(selection) if way.arm == shots), None):
                return [*ways, Way("adapter_retrieval", found.shots, found.k)]
    return ways
