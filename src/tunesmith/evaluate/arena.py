"""Where every arm answers the same rows: one renderer, one scorer, one generation config.

An arm leaves two files: `<arm>.jsonl`, one scored row a line, and `<arm>.json`, which says exactly what answered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

from transformers import PreTrainedModel

from tunesmith.bases import Base
from tunesmith.evaluate.arms import Retriever, few_shots, with_shots
from tunesmith.evaluate.constrain import admitted, json_constraint
from tunesmith.evaluate.generate import Answer, Settings, generate, settings_for, shared_prefix
from tunesmith.evaluate.judge import judge_lines
from tunesmith.evaluate.scorers import Scorer, scorer_of, self_test
from tunesmith.evaluate.ways import ZERO_SHOT, Way
from tunesmith.files import read_jsonl, write_json, write_jsonl
from tunesmith.prompt import Rendered, Renderer
from tunesmith.recipe import Recipe
from tunesmith.rows import Dataset, Message, Row, Split


def means(scored: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each metric over scored rows."""
    return {name: mean(line["scores"][name] for line in scored) for name in scored[0]["scores"]}


class Arena:
    """Answers and scores the rows of a dataset."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        base: Base,
        schema: dict[str, Any],
        computed_on: dict[str, str],
        batch_tokens: int,
    ) -> None:
        """Take what arms share; `computed_on` names the device and dtype that answers are computed with."""
        self.recipe = recipe
        self.dataset = dataset
        self.base = base
        self.schema = schema
        self.computed_on = computed_on
        self.renderer = Renderer(base.tokenizer(), base.end_ids())
        self.settings: Settings = settings_for(self.renderer, recipe.arms.max_new_tokens, batch_tokens)
        self.scorer: Scorer = scorer_of(recipe, schema)
        self._self_tests: dict[Split, list[str]] = {}
        self.prompt_digest = self.renderer.digest(dataset.manifest()["systems"])

    @cached_property
    def train(self) -> list[Row]:
        """The rows that shots are taken from."""
        return self.dataset.rows("train")

    @cached_property
    def retriever(self) -> Retriever:
        """Finds those that are nearest to a row."""
        return Retriever(self.train)

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

    def run(
        self,
        model: PreTrainedModel,
        way: Way,
        split: Split,
        out: Path,
        *,
        weights: dict[str, str],
        free: Path | None = None,
    ) -> None:
        """Answer and score a split, and write `<way.file>.jsonl` and `<way.file>.json` into `out`.

        `weights` names by digest what answered. `free` is the file of the way's free answers, if it is constrained.
        """
        rows = self.dataset.rows(split)
        prompts = self.prompts(rows, way)
        prefix = shared_prefix(prompts)
        if free is None:
            answers = self._answer(model, prompts, label=f"{split} {way.label}", prefix=prefix)
        else:
            answers = self._constrain(model, prompts, read_jsonl(free), label=f"{split} {way.label}", prefix=prefix)
        scored = self._scored(rows, answers)
        asked = self.recipe.score.judge if split == "gate" else None
        judged = {"judge": judge_lines(asked, rows, scored)} if asked else {}
        file = out / way.file(split)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(file.with_suffix(".jsonl"), scored)
        write_json(
            file.with_suffix(".json"),
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
                "means": means(scored),
                "corpus": self.scorer.corpus(scored),
                "scorer": self.about_scorer(split),
                **judged,
            },
        )

    def about_scorer(self, split: Split) -> dict[str, Any]:
        """Which scorer scored, and what its self-test on the rows of a split found wrong with it."""
        if split not in self._self_tests:
            self._self_tests[split] = self_test(self.scorer, self.dataset.rows(split))
        return {"kind": self.scorer.kind, "digest": self.scorer.digest(), "self_test": self._self_tests[split]}

    def score(self, model: PreTrainedModel, rows: Sequence[Row]) -> dict[str, float]:
        """The means over some rows that a model answers as their messages stand; writes and shows nothing."""
        prompts = self.prompts(rows, ZERO_SHOT)
        return means(self._scored(rows, self._answer(model, prompts, label="", prefix=shared_prefix(prompts))))

    def _scored(self, rows: Sequence[Row], answers: Mapping[int, Answer]) -> list[dict[str, Any]]:
        scored = []
        for index, row in enumerate(rows):
            answer = answers[index]
            found = self.scorer.score(answer.text, answer.ended, row)
            scored.append(
                {
                    "id": row.id,
                    "group": row.group,
                    "prediction": answer.text,
                    "prediction_ids": answer.ids,
                    "reference": row.reference,
                    "ended": answer.ended,
                    "tokens_in": answer.tokens_in,
                    "tokens_out": answer.tokens_out,
                    "seconds": answer.seconds,
                    **found,
                }
            )
        return scored

    def _answer(
        self, model: PreTrainedModel, prompts: Sequence[list[int]], *, label: str, prefix: int, **options: Any
    ) -> dict[int, Answer]:
        return generate(model, self.renderer, prompts, self.settings, prefix=prefix, label=label, **options)

    def _constrain(
        self,
        model: PreTrainedModel,
        prompts: Sequence[list[int]],
        free: list[dict[str, Any]],
        *,
        label: str,
        prefix: int,
    ) -> dict[int, Answer]:
        """Constrained greedy answers, from the free ones to the same prompts.

        As long as the likeliest token of all is admitted, it is the likeliest of those admitted. So a free answer is
        the constrained one up to its first token that the grammar forbids, and only from there is a row answered anew.
        """
        constraint = json_constraint(self.renderer, self.schema, model.config.get_text_config().vocab_size)
        answers: dict[int, Answer] = {}
        begun: dict[int, list[int]] = {}
        for index, line in enumerate(free):
            ids = line["prediction_ids"]
            kept = admitted(constraint(1), ids)
            if kept == len(ids):
                answers[index] = Answer(ids, line["prediction"], line["ended"], len(prompts[index]), line["seconds"])
            else:
                begun[index] = ids[:kept]
        if not begun:
            return answers
        anew = self._answer(
            model,
            [prompts[index] for index in begun],
            label=label,
            prefix=prefix,
            constraint=constraint,
            begun=list(begun.values()),
        )
        for place, index in enumerate(begun):
            answers[index] = replace(anew[place], seconds=round(anew[place].seconds + free[index]["seconds"], 3))
        return answers
