"""Where every arm answers the same rows: one renderer, one scorer, one generation config.

An arm leaves two files: `<arm>.jsonl`, one scored row a line, and `<arm>.json`, which says exactly what answered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import jsonschema
from transformers import PreTrainedModel

from tunesmith.bases import Base
from tunesmith.evaluate.arms import Retriever, few_shots, with_shots
from tunesmith.evaluate.constrain import json_constraint
from tunesmith.evaluate.generate import Settings, generate, settings_for, shared_prefix
from tunesmith.evaluate.score_json import score
from tunesmith.files import read_json, write_json, write_jsonl
from tunesmith.prompt import Rendered, Renderer
from tunesmith.recipe import Recipe
from tunesmith.rows import Dataset, Message, Row, Split

METRICS = (
    "exact_match",
    "field_f1",
    "json_strict",
    "json_lenient",
    "exact_match_lenient",
    "schema_valid",
    "hallucinated",
)


@dataclass(frozen=True)
class Way:
    """A way to answer: how many shots of which kind, and whether decoding is constrained."""

    arm: str
    shots: str = "none"
    k: int = 0

    @property
    def label(self) -> str:
        """The name of this way's files on dev, where several k stand side by side."""
        return f"{self.arm}-{self.k}" if self.k else self.arm

    def as_dict(self) -> dict[str, Any]:
        """As an arm's file holds it."""
        return {"arm": self.arm, "shots": self.shots, "k": self.k}


ZERO_SHOT = Way("zero_shot")


class Arena:
    """Answers and scores the rows of a dataset."""

    def __init__(
        self, recipe: Recipe, dataset: Dataset, base: Base, schema: dict[str, Any], computed_on: dict[str, str]
    ) -> None:
        """Take what arms share; `computed_on` names the device and dtype that answers are computed with."""
        self.recipe = recipe
        self.dataset = dataset
        self.base = base
        self.schema = schema
        self.computed_on = computed_on
        self.renderer = Renderer(base.tokenizer(), base.end_ids())
        self.settings: Settings = settings_for(self.renderer, recipe.arms.max_new_tokens)
        self.validator = jsonschema.Draft202012Validator(schema)
        self.train = dataset.rows("train")
        self.retriever = Retriever(self.train)
        self.prompt_digest = self.renderer.digest(dataset.manifest()["systems"])

    def messages(self, row: Row, way: Way) -> list[Message]:
        """What a way puts before the model for one row."""
        if way.shots == "few_shot":
            return with_shots(row, few_shots(self.train, way.k, self.recipe.seed))
        if way.shots == "retrieval":
            return with_shots(row, self.retriever.nearest(row, way.k))
        return list(row.messages)

    def prompts(self, rows: Sequence[Row], way: Way) -> list[list[int]]:
        """The rendered prompts of a way, one a row, cut from the left where base and answer would not hold them."""
        room = self.base.context() - self.settings.max_new_tokens
        whole = [self.renderer.prompt_ids(self.messages(row, way), row.tools) for row in rows]
        return [Rendered(ids, [], ends=False).fit(room).prompt_ids for ids in whole]

    def run(self, model: PreTrainedModel, way: Way, split: Split, out: Path, *, weights: dict[str, str]) -> None:
        """Answer and score a split, and write `<label>.jsonl` and `<label>.json` into `out`.

        `weights` names by digest what answered.
        """
        rows = self.dataset.rows(split)
        prompts = self.prompts(rows, way)
        prefix = shared_prefix(prompts)
        label = way.label if split == "dev" else way.arm
        constraint = None
        if way.arm == "constrained":
            constraint = json_constraint(self.renderer, self.schema, model.config.get_text_config().vocab_size)
        answers = generate(
            model,
            self.renderer,
            prompts,
            self.settings,
            prefix=prefix,
            label=f"{split} {way.label}",
            constraint=constraint,
        )
        scored = []
        for index, row in enumerate(rows):
            answer = answers[index]
            scores = score(answer.text, answer.ended, row, self.validator)
            scored.append(
                {
                    "id": row.id,
                    "group": row.group,
                    "prediction": answer.text,
                    "reference": row.reference,
                    "ended": answer.ended,
                    "tokens_in": answer.tokens_in,
                    "tokens_out": answer.tokens_out,
                    "seconds": answer.seconds,
                    "scores": {name: scores[name] for name in METRICS},
                    "fields": scores["fields"],
                    "failure": scores["failure"],
                }
            )
        write_jsonl(out / f"{label}.jsonl", scored)
        write_json(
            out / f"{label}.json",
            {
                **way.as_dict(),
                "split": split,
                "split_digest": self.dataset.digest(split),
                "rows": len(rows),
                "weights": weights,
                "computed_on": self.computed_on,
                "prompts_at_limit": sum(
                    len(ids) + self.settings.max_new_tokens == self.base.context() for ids in prompts
                ),
                "prompt_digest": self.prompt_digest,
                "settings": self.settings.as_dict(),
                "prefix_tokens": prefix,
                "tokens_in": sum(line["tokens_in"] for line in scored),
                "means": {name: mean(line["scores"][name] for line in scored) for name in METRICS},
            },
        )


def untrained_ways(recipe: Recipe) -> list[Way]:
    """The ways without training or constraint that dev compares."""
    few = [Way("few_shot", "few_shot", k) for k in recipe.arms.few_shot]
    near = [Way("retrieval", "retrieval", k) for k in recipe.arms.retrieval]
    return [ZERO_SHOT, *few, *near]


def best(ways: Sequence[Way], dev: Path, primary: str) -> Way:
    """The way with the highest primary metric on dev; of equals, field F1 decides, then the shorter prompts."""

    def rank(way: Way) -> tuple[float, float, int]:
        summary = read_json(dev / f"{way.label}.json")
        return summary["means"][primary], summary["means"]["field_f1"], -summary["tokens_in"]

    return max(ways, key=rank)
