"""What the gate reads: scored arms, guards and integrity facts of one run, as files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.files import read_json


@dataclass(frozen=True)
class Arm:
    """One arm's scored gate rows and the statement of what answered."""

    name: str
    about: dict[str, Any]
    rows: list[dict[str, Any]]

    def scores(self, metric: str) -> list[float]:
        """A metric of every row, in file order."""
        return [float(row["scores"][metric]) for row in self.rows]

    @property
    def scorer(self) -> dict[str, Any]:
        """Which scorer scored the rows: `kind`, `digest`, and what its `self_test` found wrong with it."""
        found: dict[str, Any] = self.about.get("scorer", {})
        return found

    @property
    def groups(self) -> list[str]:
        """The group of every row, in file order."""
        return [row["group"] for row in self.rows]

    @property
    def ids(self) -> list[str]:
        """The id of every row, in file order."""
        return [row["id"] for row in self.rows]


@dataclass(frozen=True)
class Evidence:
    """Everything that a verdict rests on."""

    arms: dict[str, Arm]
    selection: dict[str, Any]
    guards: dict[str, Any]
    leaks: Mapping[str, int] = field(default_factory=dict)
    """Gate rows that stand in train too, by kind of leak."""
    trivial: Mapping[str, Arm] = field(default_factory=dict)
    """What was said of the gate rows without a model."""
    servers: Mapping[str, Arm] = field(default_factory=dict)
    """Exported forms that answered behind a server: shown beside the arms, of no part in a verdict."""

    @property
    def incumbent(self) -> Arm:
        """The arm that needs no training and was best on dev."""
        return self.arms[self.selection["incumbent"]]


def read_evidence(run: Path) -> Evidence:
    """Read a run's arms, selection and guards.

    Raises:
        UserError: something is not there yet.
    """
    needed = {
        run / "selection.json": "baseline",
        run / "guards.json": "evaluate",
        run / "arms" / "adapter.jsonl": "evaluate",
        run / "arms" / "merged.jsonl": "evaluate",
    }
    if (run / "selection.json").exists():
        told = read_json(run / "selection.json")
        for name in (*(way["arm"] for way in told["ways"]), *told.get("trivial", ())):
            needed[run / "arms" / f"{name}.jsonl"] = "baseline"
        late = {"adapter_retrieval"} & {*told.get("adapter_ways", ())} | {*told.get("servers", ())}
        needed |= {run / "arms" / f"{name}.jsonl": "evaluate" for name in sorted(late)}
    missing = [
        f"{path}: not there yet; `tunesmith {stage}` makes it" for path, stage in needed.items() if not path.exists()
    ]
    if missing:
        raise UserError(missing)
    selection = read_json(run / "selection.json")
    # By name, not by listing: an arm of an earlier choice may lie there still.
    answered = [*(way["arm"] for way in selection["ways"]), "adapter", "merged"]
    if "adapter_retrieval" in selection.get("adapter_ways", ()):
        answered.append("adapter_retrieval")
    arms = {name: read_arm(run / "arms" / f"{name}.jsonl") for name in answered}
    trivial = {name: read_arm(run / "arms" / f"{name}.jsonl") for name in selection.get("trivial", ())}
    servers = {name: read_arm(run / "arms" / f"{name}.jsonl") for name in selection.get("servers", ())}
    return Evidence(arms, selection, read_json(run / "guards.json"), trivial=trivial, servers=servers)


def read_arm(path: Path) -> Arm:
    """An arm's scored rows and the statement beside them."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return Arm(path.stem, read_json(path.with_suffix(".json")), lines)
