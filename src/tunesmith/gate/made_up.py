"""Evidence of which the truth is known: made-up arms with the scores that a recipe's arms would have.

An arm that differs from another wins some of the rows that the other has wrong and loses some that it has right, so
that the mean difference and the part of rows that differ are as wanted. With a chance of sqrt(icc) a row does what its
group's prototype does, so that differences within a group correlate by icc. A metric that is not right or wrong is the
mean of four parts, each right or wrong.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.gate.evidence import Arm, Evidence
from tunesmith.gate.power import Assumed
from tunesmith.recipe import Recipe
from tunesmith.rows import Dataset

Scores = NDArray[np.float64]
"""Scores of rows: (pipelines, rows), or (pipelines, parts, prototypes) while they are drawn."""

PARTS = 4
NOT_CURATED = (2,) * 250
"""Groups that are taken where no rows are curated: 500 rows, two a group."""
DEV_NOT_CURATED = 300


@dataclass(frozen=True)
class Shape:
    """What a recipe's rows are like, as far as a verdict depends on it."""

    sizes: tuple[int, ...]
    """Rows of each group of the gate split."""
    dev_sizes: tuple[int, ...]
    majority: float
    """How frequent the commonest completion is."""
    curated: bool


def shape_of(dataset: Dataset) -> Shape:
    """The shape of the curated rows, or a stated one where there are none.

    Raises:
        UserError: a split is not what was curated.
    """
    if not dataset.exists():
        return Shape(NOT_CURATED, (1,) * DEV_NOT_CURATED, 0.2, curated=False)
    dataset.manifest()
    gate, dev = (Counter(row.group for row in dataset.rows(split)) for split in ("gate", "dev"))
    answers = Counter(row.reference for row in dataset.rows("dev"))
    majority = answers.most_common(1)[0][1] / answers.total()
    return Shape(tuple(gate.values()), tuple(dev.values()), majority, curated=True)


class Crowd:
    """Draws arms over rows in groups; `pipelines` of them at once."""

    def __init__(
        self, rng: np.random.Generator, sizes: Sequence[int], icc: float, pipelines: int, *, right_or_wrong: bool
    ) -> None:
        n, groups = sum(sizes), len(sizes)
        self.rng = rng
        self.parts = 1 if right_or_wrong else PARTS
        self.shape = (pipelines, self.parts, n + groups)
        follows = rng.random((pipelines, 1, n)) < np.sqrt(icc)
        # Which of rows and prototypes a row takes after.
        self._source = np.where(follows, n + np.repeat(np.arange(groups), sizes), np.arange(n))

    def arm(self, mean: float) -> Scores:
        """An arm that has so many of the rows right."""
        return (self.rng.random(self.shape) < mean).astype(float)

    def other(self, arm: Scores, mean: float, gain: float, discordance: float) -> Scores:
        """An arm whose mean is `gain` above that of another of this mean, and whose mean squared difference is as
        given.

        For means of parts, the parts differ as often as makes the means differ so much.
        """
        differ = discordance if self.parts == 1 else self.parts * discordance - (self.parts - 1) * gain**2
        win, lose = _chances(mean, gain, differ)
        drawn = self.rng.random(self.shape)
        return np.where(arm == 1, drawn >= lose, drawn < win).astype(float)

    def rows(self, arm: Scores) -> Scores:
        """The scores of the rows: (pipelines, rows)."""
        return np.asarray(np.take_along_axis(arm, self._source, axis=2).mean(axis=1))


def _chances(mean: float, gain: float, differ: float) -> tuple[float, float]:
    """The chances that a row which an arm of this mean has wrong is won, and that one it has right is lost.

    They differ as often as wanted, or as the mean admits: who has few right loses few.
    """
    if not 0 <= mean + gain <= 1:
        raise ValueError(f"no arm gains {gain:+.3f} over one of mean {mean:.3f}")
    worse = min((differ - gain) / 2, mean, 1 - mean - gain)
    worse = max(worse, -gain, 0.0)
    return (worse + gain) / (1 - mean) if mean < 1 else 0.0, worse / mean if mean > 0 else 0.0


# ---------------------------------------------------------------------- as the gate reads it

REST: Mapping[str, Any] = {
    "prediction": "",
    "reference": "",
    "ended": True,
    "tokens_in": 1,
    "tokens_out": 1,
    "seconds": 0.1,
    "fields": {"right": [], "wrong": [], "missed": []},
    "failure": None,
    "labels": [],
}
ABOUT: Mapping[str, Any] = {
    "split": "gate",
    "split_digest": "made up",
    "prompt_digest": "made up",
    "settings": {"decoding": "greedy"},
    "computed_on": {"device": "made up", "dtype": "float32"},
    "shots": "none",
    "k": 0,
}
INCUMBENT = "retrieval"


class Rows:
    """The rows that made-up arms answer, and evidence over them."""

    def __init__(self, recipe: Recipe, shape: Shape) -> None:
        self.recipe = recipe
        names = [f"group-{number}" for number, size in enumerate(shape.sizes) for _ in range(size)]
        scorer: dict[str, Any] = {"kind": recipe.score.kind, "digest": "made up", "self_test": []}
        self._about = {**ABOUT, "scorer": scorer}
        self._rows = [{**REST, "id": f"row-{number}", "group": name} for number, name in enumerate(names)]

    def arm(self, name: str, scores: Scores) -> Arm:
        """An arm as the arena leaves it; `scores` are of one pipeline."""
        metric = self.recipe.score.primary
        scored = [{**row, "scores": {metric: score}} for row, score in zip(self._rows, scores.tolist(), strict=True)]
        return Arm(name, {**self._about, "arm": name}, scored)

    def evidence(
        self, adapter: Scores, merged: Scores, incumbent: Scores, trivial: Scores, guards: dict[str, Any]
    ) -> Evidence:
        """What a run would lay before the gate; `guards` as guards.json holds them."""
        arms = {"adapter": adapter, "merged": merged, INCUMBENT: incumbent}
        return Evidence(
            arms={name: self.arm(name, scores) for name, scores in arms.items()},
            selection={"incumbent": INCUMBENT, "ways": [{"arm": INCUMBENT, "shots": "none", "k": 0}]},
            guards=guards,
            trivial={"majority": self.arm("majority", trivial)},
        )


@dataclass(frozen=True)
class Beside:
    """What would be measured beside the task, of pipelines drawn at once; pairs are of adapter and merged model."""

    rises: tuple[Scores, Scores]
    """How much the loss on general text rose: (pipelines, documents)."""
    shares: tuple[Scores, Scores]
    """How much more the right option gets than from the base: (pipelines, questions)."""
    sets: Sequence[str]
    """The set of each question."""

    def guards(self, pipeline: int) -> dict[str, Any]:
        """As guards.json holds them. No prompt beside the task was asked: nothing is refused, and nothing leaks."""
        rises = {name: each[pipeline] for name, each in zip(MODELS, self.rises, strict=True)}
        shares = {name: each[pipeline] for name, each in zip(MODELS, self.shares, strict=True)}
        questions = len(self.sets)
        models = {"base": np.zeros(questions)} | shares
        names = list(dict.fromkeys(self.sets))
        asked = {name: [name] for name in names} | ({"pooled": names} if names else {})
        keen = {"moves": True, "base": 1.0, "chance": 0.0, "says": ""}
        nothing: dict[str, list[bool]] = {"habit": [], "verbatim": [], "canaries": []}
        return {
            "general_nll": {"base": [2.0] * len(rises["adapter"])}
            | {name: (2.0 + rise).tolist() for name, rise in rises.items()},
            "adapter_changes_logits": 1.0,
            "replayed": {"rows": 1, "same": True, "differing": []},
            "asked": {"probes": list(self.sets), "not_assessed": [], "left_out": {}},
            "sensitivity": {name: {**keen, "sets": sets} for name, sets in asked.items()},
            "models": {
                name: {
                    "share_of_right": given.tolist(),
                    "correct": [0.0] * questions,
                    "refused": {"harmful": [], "benign": []},
                    "drift": {},
                }
                for name, given in models.items()
            },
            "told": {name: nothing for name in models},
        }


MODELS = ("adapter", "merged")


def beside(
    rng: np.random.Generator,
    recipe: Recipe,
    assumed: Assumed,
    pipelines: int,
    *,
    rise: float = 0.0,
    fall: float = 0.0,
    merged_is_base: bool = False,
) -> Beside:
    """Draws with these true means: `rise` of the loss on general text, `fall` of what right options get.

    The merged model is as the adapter, unless it is the base again.
    """
    probes = recipe.guards.probes
    sets = [name for name in probes.names for _ in range(probes.rows)]
    losses = rng.normal(0, assumed.general_sd, (pipelines, assumed.general_documents))
    shares = rng.normal(0, assumed.probe_sd, (pipelines, len(sets)))
    keeps = 0.0 if merged_is_base else 1.0
    return Beside((losses + rise, losses + keeps * rise), (shares - fall, shares - keeps * fall), sets)
