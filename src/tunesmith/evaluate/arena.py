"""Where every arm answers the same rows: one renderer, one scorer, one generation config.

An arm leaves two files: `<arm>.jsonl`, one scored row a line, and `<arm>.json`, which says exactly what answered.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

from transformers import PreTrainedModel

from tunesmith.bases import Base
from tunesmith.evaluate.arms import Retriever, few_shots, with_documents, with_shots
from tunesmith.evaluate.cache import Constrained, Predictions, together
from tunesmith.evaluate.constrain import admitted, json_constraint
from tunesmith.evaluate.engines import Engine, TransformersEngine
from tunesmith.evaluate.generate import Answer, Settings, generate, settings_for, shared_prefix
from tunesmith.evaluate.judge import judge_lines
from tunesmith.evaluate.knowledge import Chunk, knowledge_digest, read_knowledge
from tunesmith.evaluate.library import Library
from tunesmith.evaluate.retrieve import search_of
from tunesmith.evaluate.scorers import Scorer, scorer_of, self_test
from tunesmith.evaluate.trivial import trivial_answers
from tunesmith.evaluate.ways import ZERO_SHOT, Way
from tunesmith.files import read_jsonl, sha256_json, write_json, write_jsonl
from tunesmith.packages import cache_dir
from tunesmith.prompt import Rendered, Renderer
from tunesmith.recipe import Recipe
from tunesmith.rows import Dataset, Message, Row, Split
from tunesmith.store import Store


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
        schema: dict[str, Any] | None,
        computed_on: dict[str, str],
        batch_tokens: int,
        knowledge: Path | None = None,
    ) -> None:
        """Take what arms share.

        `computed_on` names the device and dtype that answers are computed with, `knowledge` the recipe's documents.
        """
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
        self.knowledge = knowledge
        kept = Store(cache_dir() / "predictions") if recipe.arms.cache else None
        self.predictions = Predictions(kept, self.prompt_digest)

    @cached_property
    def train(self) -> list[Row]:
        """The rows that shots are taken from."""
        return self.dataset.rows("train")

    @cached_property
    def retriever(self) -> Retriever:
        """Finds those that are nearest to a row."""
        return Retriever(self.train, search_of(self.recipe.arms.retriever))

    @cached_property
    def library(self) -> Library:
        """The recipe's knowledge base."""
        section = self.recipe.arms.knowledge
        if section is None or self.knowledge is None:
            raise ValueError("the recipe has no arms.knowledge")
        library = Library(read_knowledge(self.knowledge), search_of(self.recipe.arms.retriever))
        if section.rerank:
            library.fit(self.dataset.rows("dev"))
        return library

    def engine(self, model: PreTrainedModel, weights: dict[str, str]) -> Engine:
        """A model that was loaded here, as what answers; `weights` names it by digest."""
        return TransformersEngine(model, self.renderer, weights, self.computed_on)

    def chunks(self, row: Row, way: Way) -> list[Chunk]:
        """The chunks of documents that a way puts before the model for one row."""
        if way.shots == "gold_context":
            return self.library.gold(row)
        return self.library.nearest(row, way.k) if way.shots == "documents" else []

    def messages(self, row: Row, way: Way) -> list[Message]:
        """What a way puts before the model for one row."""
        if way.shots == "few_shot":
            return with_shots(row, few_shots(self.train, way.k, self.recipe.seed))
        if way.shots == "retrieval":
            return with_shots(row, self.retriever.nearest(row, way.k))
        return with_documents(row, self.chunks(row, way)) if way.knows else list(row.messages)

    def found_by(self, way: Way) -> dict[str, Any] | None:
        """How a way finds what it puts beside a question, as could be done here; None where it finds nothing."""
        return search_of(self.recipe.arms.retriever).as_dict() if way.searches else None

    def prompts(self, rows: Sequence[Row], way: Way) -> list[list[int]]:
        """The rendered prompts of a way, one a row, cut from the left where base and answer would not hold them."""
        room = self.base.context() - self.settings.max_new_tokens
        whole = [self.renderer.prompt_ids(self.messages(row, way), row.tools) for row in rows]
        return [Rendered(ids, [], ends=False).fit(room).prompt_ids for ids in whole]

    def run(self, engine: Engine, way: Way, split: Split, out: Path, *, free: Path | None = None) -> None:
        """Answer and score a split, and write `<way.file>.jsonl` and `<way.file>.json` into `out`.

        `free` is the file of the way's free answers, if it is constrained.
        """
        rows = self.dataset.rows(split)
        self._expect(rows, way, split)
        prompts = self.prompts(rows, way)
        prefix = shared_prefix(prompts)
        label = f"{split} {way.label}"
        if free is None:
            answers = self.predictions.answer(engine, prompts, self.settings, prefix=prefix, label=label)
        else:
            answers = self._constrain(engine, prompts, read_jsonl(free), label=label, prefix=prefix)
        scored = self._scored(rows, answers)
        about: dict[str, Any] = {
            "weights": engine.weights,
            "computed_on": engine.computed_on,
            "prompts_at_limit": sum(len(ids) + self.settings.max_new_tokens == self.base.context() for ids in prompts),
            "settings": self.settings.as_dict(),
            "prefix_tokens": prefix,
            "replayed": sum(answer.replayed for answer in answers.values()),
        }
        if self.recipe.score.judge and split == "gate":
            about["judge"] = judge_lines(self.recipe.score.judge, rows, scored)
        if way.searches:
            about["retriever"] = self.found_by(way)
        if way.knows and self.knowledge:
            about["knowledge"] = {"digest": knowledge_digest(self.knowledge), **self.library.as_dict()}
            about["retrieval"] = self.library.measured(rows, way.k if way.shots == "documents" else 0)
            for line, row in zip(scored, rows, strict=True):
                line["passages"] = [chunk.id for chunk in self.chunks(row, way)]
        self._write(way, split, out, scored, about)

    def run_trivial(self, split: Split, out: Path) -> None:
        """Score what can be said of a split without a model, and write it as arms are written."""
        rows = self.dataset.rows(split)
        for name, texts in trivial_answers(self.recipe.arms.trivial, self.train, rows).items():
            scored = self._scored(rows, {i: Answer([], text, True, 0, 0.0) for i, text in enumerate(texts)})
            self._write(Way(name), split, out, scored, {"weights": {"none": self.dataset.digest("train")}})

    def _expect(self, rows: Sequence[Row], way: Way, split: Split) -> None:
        """Have all questions of a split embedded at once."""
        if way.searches:
            index = self.retriever.index if way.shots == "retrieval" else self.library.index
            index.expect([row.source for row in rows], f"{split} questions")

    def _write(self, way: Way, split: Split, out: Path, scored: list[dict[str, Any]], about: Mapping[str, Any]) -> None:
        file = out / way.file(split)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(file.with_suffix(".jsonl"), scored)
        write_json(
            file.with_suffix(".json"),
            {
                **way.as_dict(),
                "split": split,
                "split_digest": self.dataset.digest(split),
                "rows": len(scored),
                "prompt_digest": self.prompt_digest,
                **about,
                "tokens_in": sum(line["tokens_in"] for line in scored),
                "means": means(scored),
                "corpus": self.scorer.corpus(scored),
                "scorer": self.about_scorer(split),
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
        answers = generate(model, self.renderer, prompts, self.settings, prefix=shared_prefix(prompts), label="")
        return means(self._scored(rows, answers))

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
                    "replayed": answer.replayed,
                    **found,
                }
            )
        return scored

    def _constrain(
        self,
        engine: Engine,
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
        assert self.schema is not None, "a recipe without a schema has no constrained arm"
        constraint = json_constraint(self.renderer, self.schema, self.base.vocabulary())
        answers: dict[int, Answer] = {}
        begun: dict[int, list[int]] = {}
        for index, line in enumerate(free):
            ids = line["prediction_ids"]
            kept = admitted(constraint(1), ids)
            if kept == len(ids):
                replayed = bool(line.get("replayed"))
                answers[index] = Answer(
                    ids, line["prediction"], line["ended"], len(prompts[index]), line["seconds"], replayed
                )
            else:
                begun[index] = ids[:kept]
        if not begun:
            return answers
        anew = self.predictions.answer(
            engine,
            [prompts[index] for index in begun],
            self.settings,
            label=label,
            prefix=prefix,
            # As text: what is written follows the order of the schema's keys.
            constrained=Constrained(constraint, sha256_json(json.dumps(self.schema))),
            begun=list(begun.values()),
        )
        for place, index in enumerate(begun):
            answers[index] = together(anew[place], free[index])
        return answers
