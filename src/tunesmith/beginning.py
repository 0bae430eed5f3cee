"""The run whose adapter another training begins from, and the rows that it has seen already."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith import adapters
from tunesmith.bases import Base
from tunesmith.errors import UserError
from tunesmith.recipe import Recipe
from tunesmith.rows import Dataset, Row
from tunesmith.yaml_source import read_yaml

NOT_COMPARED = {"lora_dropout"}
"""Keys of `lora:` that are no part of an adapter."""


@dataclass(frozen=True)
class Beginning:
    """A run with a finished adapter; `root` is the project that it was made in."""

    run: Path
    root: Path

    def __post_init__(self) -> None:
        if not self.adapter.is_dir():
            raise UserError(f"after: {self.run} holds no adapter; `tunesmith train` of that recipe makes it")

    @property
    def adapter(self) -> Path:
        """Its directory."""
        return self.run / "adapter"

    @cached_property
    def digest(self) -> str:
        """What tells it from any other: the digest of its weights."""
        return adapters.digest(self.adapter)

    def verify(self, recipe: Recipe, base: Base, prompt_digest: str) -> dict[str, Any]:
        """Check that training by a recipe may begin from it; return its manifest.

        Raises:
            UserError: it is not whole, belongs to another base or prompt, or was trained as another kind of adapter.
        """
        manifest = adapters.verify(self.adapter, base=base, prompt_digest=prompt_digest)
        problems = []
        if "after" in manifest:
            problems.append(f"{self.adapter}: was itself tuned by preferences; what its own beginning saw is not told")
        if manifest["quantization"] != recipe.quantization:
            problems.append(
                f"{self.adapter}: was trained on the base with quantization {manifest['quantization']}, "
                f"the recipe says {recipe.quantization}"
            )
        theirs, ours = manifest["lora"], recipe.lora
        problems += [
            f"{self.adapter}: was trained with lora.{key} = {theirs.get(key)!r}, the recipe says {ours.get(key)!r}"
            for key in sorted((theirs.keys() | ours.keys()) - NOT_COMPARED)
            if theirs.get(key) != ours.get(key)
        ]
        if problems:
            raise UserError(problems, hint="an adapter goes on as it is: state what it was trained with, or begin anew")
        return manifest

    def rows(self) -> list[Row]:
        """The rows that it was trained on.

        Raises:
            UserError: they do not lie where its recipe says, or are others now.
        """
        lock = self.run / "recipe.lock.yaml"
        if not lock.is_file():
            raise UserError(f"{lock}: missing; it says what the adapter was trained on")
        dataset = Dataset(self.root / read_yaml(lock, str(lock)).values["recipe"]["data"]["directory"])
        trained = adapters.manifest(self.adapter)["train_digest"]
        if dataset.digest("train") != trained:
            raise UserError(
                f"{dataset.directory}: holds other rows than {self.run} was trained on; whether held-out rows were "
                "among those cannot be told",
                hint="train that recipe anew on the rows that there are now",
            )
        return dataset.rows("train")
