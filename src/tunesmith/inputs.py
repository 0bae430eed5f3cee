"""What a recipe's stages stand on: its rows, its base, its run, and the inputs by which a stage knows that it is done.

A stage whose inputs are what they were is skipped; so they name all that decides its outcome, and nothing else.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith import adapters, bases, trackers
from tunesmith.bases import Base
from tunesmith.beginning import Beginning
from tunesmith.errors import UserError
from tunesmith.evaluate.knowledge import knowledge_digest
from tunesmith.evaluate.ways import STARTED_FROM, Way, adapter_ways
from tunesmith.files import read_json, sha256_file
from tunesmith.gate.ledger import Ledger
from tunesmith.prices import read_prices
from tunesmith.progress import say
from tunesmith.recipe import LoadedRecipe, find_recipe, load_recipe
from tunesmith.rows import SPLITS, Dataset, Split
from tunesmith.runs import Run, versions


class Inputs:
    """One recipe's base, rows and run."""

    def __init__(
        self,
        recipe: str,
        *,
        base: str | None = None,
        sets: Sequence[str] = (),
        root: Path | None = None,
        runs: Path = Path("runs"),
        dist: Path = Path("dist"),
    ) -> None:
        override = [f"base={base}"] if base else []
        self.asked = [recipe, "--runs", str(runs), *(part for text in (*sets, *override) for part in ("--set", text))]
        """This line as a command's arguments."""
        self.loaded: LoadedRecipe = load_recipe(recipe, root=root, sets=[*sets, *override])
        self.recipe = self.loaded.recipe
        self.dataset = Dataset(self.loaded.data_directory)
        self.runs = runs
        self.dist = dist
        self.times: dict[str, float] = {}
        bases.check_name(self.recipe.base, self.loaded.root)
        if self.recipe.after is not None and "/" not in self.recipe.after:
            find_recipe(self.recipe.after, self.loaded.root)

    @cached_property
    def base(self) -> Base:
        """The base, fetched and verified."""
        return bases.resolve(self.recipe.base, self.loaded.root)

    @cached_property
    def run(self) -> Run:
        """This recipe's run: one directory for everything that decides what is trained on what."""
        return Run.of(self.runs, self.recipe.name, self._trained_on())

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger of all runs beside this one."""
        return Ledger(self.runs / "ledger.jsonl")

    @cached_property
    def beginning(self) -> Beginning | None:
        """The run whose adapter training begins from, under `trainer.kind: dpo`."""
        after, root = self.recipe.after, self.loaded.root
        if after is None:
            return None
        if "/" in after:
            return Beginning(root / after, root)
        other = Inputs(after, base=self.recipe.base, root=root, runs=self.runs)
        if other.recipe.after is not None:
            raise UserError(f"after: {after} begins from an adapter itself; name the recipe that begins from the base")
        return Beginning(other.run.directory, root)

    def _skip(self, stage: str, inputs: Mapping[str, Any], product: str) -> bool:
        if self.run.is_done(stage, inputs):
            say(f"  unchanged: {self.run.path(product)}")
            return True
        return False

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        say(f"{stage}")
        began = time.monotonic()
        try:
            yield
        finally:
            self.times[stage] = time.monotonic() - began

    def _common(self) -> dict[str, Any]:
        files = self.dataset.manifest()["files"]
        return {
            "base": self.base.digest,
            "data": {split: files[self.dataset.file(split)]["sha256"] for split in SPLITS},
            "schema": self.loaded.schema_path and sha256_file(self.loaded.schema_path),
            "hardware": self.recipe.hardware.model_dump(),
            "versions": versions(),
        }

    def _trained_on(self) -> dict[str, Any]:
        recipe = self.recipe.as_dict()
        keys = ("name", "base", "seed", "quantization", "data", "lora", "lora_plus_ratio", "trainer", "dev")
        # Who is told of a run decides nothing of it.
        recipe["trainer"] = {key: value for key, value in recipe["trainer"].items() if key not in trackers.KEYS}
        # Under a name of its own: the recipe, too, calls something `base` and something `data`.
        trained_on = self._common() | {"recipe": {key: recipe[key] for key in keys}}
        if self.beginning:
            trained_on["after"] = self.beginning.digest
        if self.recipe.dev.rows:
            trained_on["answered"] = {"score": recipe["score"], "max_new_tokens": self.recipe.arms.max_new_tokens}
        return trained_on

    def _answered_by(self, *ways: Mapping[str, Any]) -> dict[str, Any]:
        return self._common() | {
            "ways": [dict(way) for way in ways],
            **self._found_by(*ways),
            "seed": self.recipe.seed,
            "score": self.recipe.score.decides(),
            "judge": self.recipe.score.judge and self.recipe.score.judge.model_dump(),
            "max_new_tokens": self.recipe.arms.max_new_tokens,
        }

    def _found_by(self, *ways: Mapping[str, Any]) -> dict[str, Any]:
        """What decides which rows or passages stand beside a question, if any of some ways puts them there."""
        kinds, knowledge = {way.get("shots") for way in ways}, self.recipe.arms.knowledge
        found: dict[str, Any] = {}
        if kinds & {"retrieval", "documents"}:
            found["retriever"] = self.recipe.arms.retriever
        if kinds & {"documents", "gold_context"} and knowledge and self.loaded.knowledge_path:
            found |= {"knowledge": knowledge_digest(self.loaded.knowledge_path), "rerank": knowledge.rerank}
        return found

    def _trivial_inputs(self) -> dict[str, Any]:
        return self._common() | {"score": self.recipe.score.kind, "trivial": self.recipe.arms.trivial}

    def _arm_inputs(self, way: Way, split: Split) -> dict[str, Any]:
        inputs = self._answered_by(way.as_dict())
        if way.free:
            free = self.run.path(f"arms/{way.free.file(split)}.jsonl")
            inputs["free"] = sha256_file(free) if free.is_file() else None
        return inputs

    def _selection_inputs(self) -> dict[str, Any]:
        started_from = STARTED_FROM.file("dev").removeprefix("dev/")
        dev = sorted(path for path in self.run.path("arms/dev").glob("*.json") if path.stem != started_from)
        return self._common() | {
            "arms": self.recipe.arms.model_dump(),
            "score": self.recipe.score.model_dump(),
            "dev": {path.name: sha256_file(path) for path in dev},
        }

    def _started_from_inputs(self, beginning: Beginning) -> dict[str, Any]:
        return self._answered_by({"started_from": beginning.digest}) | {"quantization": self.recipe.quantization}

    def _pilot_inputs(self) -> dict[str, Any]:
        files = [*self.run.path("again").glob("dev-*/dev/*.jsonl"), *self.run.path("arms/dev").glob("*.jsonl")]
        return {str(path.relative_to(self.run.directory)): sha256_file(path) for path in sorted(files)}

    def _scorer_digest(self) -> str:
        """What tells how answers are scored: the code, the settings and the schema."""
        from tunesmith.evaluate.scorers import scorer_of

        return scorer_of(self.recipe, self.loaded.schema()).digest()

    def _adapter_arm_inputs(self) -> dict[str, Any]:
        selection = self.run.path("selection.json")
        ways = adapter_ways(self.recipe, read_json(selection)) if selection.is_file() else []
        return self._answered_by(*(way.as_dict() for way in ways)) | {
            "adapter": adapters.digest(self.run.path("adapter")),
            "quantization": self.recipe.quantization,
            "guards": self.recipe.guards.measured(),
            "baseline": sha256_file(self.run.path("arms/zero_shot.jsonl")),
        }

    def _server_inputs(self, name: str) -> dict[str, Any]:
        return self._answered_by({"arm": name, "server": self.recipe.arms.servers[name]})

    def _merged_arm_inputs(self) -> dict[str, Any]:
        return self._answered_by({"merged": read_json(self.run.path("merged/manifest.json"))["digest"]}) | {
            "guards": sha256_file(self.run.path("guards-adapter.json"))
        }

    def _gate_inputs(self) -> dict[str, Any]:
        evidence = [
            *self.run.path("arms").glob("*.json*"),
            *self.run.path("again").rglob("*.json*"),
            self.run.path("selection.json"),
            self.run.path("guards.json"),
            self.run.path("gate.lock"),
            self.run.path("diagnosis.json"),
        ]
        adapter = self.run.path("adapter")
        manifest = adapters.manifest(adapter) if (adapter / adapters.MANIFEST).is_file() else {}
        return self._common() | {
            # Of a ledger that does not hold a verdict says so, and of one that holds again another.
            "ledger": self.ledger.problems(),
            "scorer": self._scorer_digest(),
            "bound": {key: manifest.get(key) for key in ("lock_digest", "drift", "after")},
            "gate": self.recipe.gate.model_dump(),
            "guards": self.recipe.guards.model_dump(),
            "cost": self.recipe.cost.model_dump(),
            "prices": read_prices(self.loaded.prices_path).about,
            "score": self.recipe.score.model_dump(),
            "evidence": {
                str(path.relative_to(self.run.directory)): sha256_file(path)
                for path in sorted(evidence)
                if path.is_file()
            },
            "set": [text for text in self.loaded.overrides() if not text.startswith("export.")],
        }

    def _adapter_ways(self) -> list[Way]:
        selection = self.run.path("selection.json")
        if not selection.is_file():
            raise UserError(f"{selection}: not there yet; `tunesmith baseline` makes it")
        return adapter_ways(self.recipe, read_json(selection))
