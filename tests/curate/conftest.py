"""A project with a recipe and a file of rows, curated in this process."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tunesmith.curate.stage import Options, curate
from tunesmith.recipe import load_recipe
from tunesmith.rows import SPLITS, Row, read_rows

STEPS = ["normalise", "empty", "contradictions"]


class Project:
    """A directory with recipes/task.yaml; `curate` section and sources as the test sets them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "recipes").mkdir()
        (root / "schema.json").write_text('{"type": "object"}')
        self.section: dict[str, Any] = {
            "sources": [{"name": "pile", "licence": "CC0-1.0", "path": "pile.jsonl"}],
            "steps": list(STEPS),
        }
        self.base = "./no-base"
        (root / "no-base").mkdir()

    @property
    def data(self) -> Path:
        return self.root / "data" / "task"

    def write(self, values: Sequence[Any], name: str = "pile.jsonl") -> None:
        text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        (self.root / name).write_text(text, encoding="utf-8")

    def loaded(self) -> Any:
        recipe = {
            "name": "task",
            "base": self.base,
            "data": {"directory": "data/task", "schema": "schema.json", "max_tokens": 64},
            "curate": self.section,
            "lora": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
            "trainer": {"learning_rate": 1e-3, "num_train_epochs": 1, "per_device_train_batch_size": 2},
            "arms": {"max_new_tokens": 16},
            "gate": {"min_gain": 0.1},
        }
        with (self.root / "recipes" / "task.yaml").open("w") as stream:
            YAML().dump(recipe, stream)
        return load_recipe("task", root=self.root)

    def curate(self, **options: Any) -> dict[str, list[Row]]:
        """Curate, and read the splits."""
        curate(self.loaded(), None, Options(**{"workers": 1} | options))
        return self.splits()

    def splits(self) -> dict[str, list[Row]]:
        paths = {split: self.data / f"{split}.jsonl" for split in SPLITS}
        return {split: read_rows(path) if path.stat().st_size else [] for split, path in paths.items()}

    def manifest(self) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads((self.data / "manifest.json").read_text())
        return manifest


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    # Where a row is shown as tokens is not what these tests are about, and loading a tokenizer is slow.
    monkeypatch.setattr("tunesmith.curate.stage._renderer", lambda loaded: None)
    return Project(tmp_path)


def pair(prompt: str, completion: str = "yes", **more: Any) -> Mapping[str, Any]:
    """A line of prompt and completion."""
    return {"prompt": prompt, "completion": completion, **more}


Pair = Callable[..., Mapping[str, Any]]
