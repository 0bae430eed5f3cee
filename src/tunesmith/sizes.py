"""One recipe over nested parts of its training rows: what more of them would bring.

Every part is a line of its own with a run of its own, so each is trained, stopped, gone on with and skipped like any
other run; the part that is all rows is the recipe's own run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith import adapters
from tunesmith.curve.stage import Point
from tunesmith.errors import UserError
from tunesmith.evaluate.ways import Way, selected_ways
from tunesmith.files import read_json, read_jsonl, sha256_file
from tunesmith.line import Line
from tunesmith.progress import say
from tunesmith.rows import Dataset

PARTS = (8, 4, 2, 1)
"""One row in so many of all training rows, as curation cuts them."""
ANSWERS = "dev/adapter.jsonl"


class Part(Line):
    """The line on a nested part of the training rows."""

    def __init__(self, recipe: str, part: int, **options: Any) -> None:
        super().__init__(recipe, **options)
        self.dataset = Dataset(self.dataset.directory, part)

    def answer_dev(self) -> None:
        """Answer all dev rows with the adapter that is published."""
        from tunesmith.evaluate.stage import run_on_dev

        adapter = self.run.path("adapter")
        inputs = self._answered_by({"dev": adapters.digest(adapter)}) | {"quantization": self.recipe.quantization}
        with self._timed("dev"):
            if self._is_answered("dev", inputs, {"dev/adapter": Way("adapter")}):
                say(f"  unchanged: {self.run.path(ANSWERS)}")
            else:
                with self.run.stage("dev", inputs) as out:
                    run_on_dev(self.arena, adapter, out)

    def point(self) -> Point:
        """What this part reached."""
        files = self.dataset.manifest()["files"]
        steps = read_json(self.run.path("choice.json"))["looks"][-1]["step"]
        rows = files[self.dataset.file("train")]["rows"]
        return Point(rows, steps, str(self.run.directory), read_jsonl(self.run.path(ANSWERS)))

    def incumbent(self) -> tuple[str, Path] | None:
        """The best arm without training and its scored dev rows, where `baseline` has run with these settings."""
        if not self.run.is_done("selection", self._selection_inputs()):
            return None
        selection = read_json(self.run.path("selection.json"))
        (way,) = (way for way in selected_ways(selection) if way.arm == selection["incumbent"])
        return way.arm, self.run.path(f"arms/{way.file('dev')}.jsonl")

    def draw(self, parts: Sequence["Part"]) -> dict[str, Any]:
        """Write the curve over all parts into this run; returns curve.json."""
        from tunesmith.curve.stage import curve

        best = self.incumbent()
        inputs = self._common() | {
            "answers": {str(part.dataset.part): sha256_file(part.run.path(ANSWERS)) for part in parts},
            "incumbent": sha256_file(best[1]) if best else None,
            "score": self.recipe.score.model_dump(),
            "alpha": self.recipe.gate.alpha,
        }
        with self._timed("curve"):
            if not self._skip("curve", inputs, "curve.json"):
                name, scored = (best[0], Point(0, 0, "", read_jsonl(best[1]))) if best else (None, None)
                with self.run.stage("curve", inputs) as out:
                    curve([part.point() for part in parts], scored, name, self.recipe, out)
        if best is None:
            say("  without the incumbent: `tunesmith baseline` answers dev without training; then ask again")
        told: dict[str, Any] = read_json(self.run.path("curve.json"))
        return told


def train_curve(recipe: str, options: Mapping[str, Any]) -> tuple[Part, dict[str, Any]]:
    """Check all rows, then train and score an adapter on each nested part of them; returns the whole and curve.json.

    Raises:
        UserError: the nested parts are not there.
    """
    parts = [Part(recipe, part, **options) for part in PARTS]
    whole = parts[-1]
    missing = sorted({part.dataset.file("train") for part in parts} - whole.dataset.manifest()["files"].keys())
    if missing:
        raise UserError(
            f"{whole.dataset.directory}: holds no {', '.join(missing)}; `tunesmith curate {recipe} --curve` writes them"
        )
    with whole.run.locked():
        whole.check()
    for part in parts:
        say(f"\n1/{part.dataset.part} of the training rows")
        with part.run.locked():
            part.train()
            part.answer_dev()
    with whole.run.locked():
        return whole, whole.draw(parts)
