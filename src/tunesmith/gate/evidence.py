"""What the gate reads: scored arms, guards and integrity facts of one run, as files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.files import read_json, read_jsonl


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
    again: Sequence[Arm] = ()
    """The incumbent's answers to the same rows in batches of another size, once or, if it seemed better, twice."""
    after: str | None = None
    """The digest of the adapter that training began from, where it began from one."""
    slices: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By path in a row: each gate row's value there, by the row's id."""

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
    selection = read_json(run / "selection.json") if (run / "selection.json").exists() else {}
    after = _after(run)
    if selection:
        for name in (*(way["arm"] for way in selection["ways"]), *selection.get("trivial", ())):
            needed[run / "arms" / f"{name}.jsonl"] = "baseline"
        needed[run / again_file(selection, 1)] = "baseline"
        late = {"adapter_retrieval"} & {*selection.get("adapter_ways", ())} | {*selection.get("servers", ())}
        needed |= {run / "arms" / f"{name}.jsonl": "evaluate" for name in sorted(late)}
    if after is not None:
        needed[run / "arms" / "started_from.jsonl"] = "baseline"
    missing = [
        f"{path}: not there yet; `tunesmith {stage}` makes it" for path, stage in needed.items() if not path.exists()
    ]
    if missing:
        raise UserError(missing)
    # By name, not by listing: an arm of an earlier choice may lie there still.
    answered = [way["arm"] for way in selection["ways"]]
    answered += ["adapter", "merged"] if after is None else ["started_from", "adapter", "merged"]
    if "adapter_retrieval" in selection.get("adapter_ways", ()):
        answered.append("adapter_retrieval")
    arms = {name: read_arm(run / "arms" / f"{name}.jsonl") for name in answered}
    trivial = {name: read_arm(run / "arms" / f"{name}.jsonl") for name in selection.get("trivial", ())}
    servers = {name: read_arm(run / "arms" / f"{name}.jsonl") for name in selection.get("servers", ())}
    again = [read_arm(path) for turn in (1, 2) if (path := run / again_file(selection, turn)).is_file()]
    return Evidence(
        arms, selection, read_json(run / "guards.json"), trivial=trivial, servers=servers, again=again, after=after
    )


def read_arm(path: Path) -> Arm:
    """An arm from its two files; `path` is that of its rows."""
    return Arm(path.stem, read_json(path.with_suffix(".json")), read_jsonl(path))


def again_file(selection: Mapping[str, Any], turn: int, split: str = "gate") -> str:
    """Where a run holds the rows of its incumbent's answers in batches of another size."""
    incumbent = selection["incumbent"]
    if split == "gate":
        return f"again/gate-{turn}/{incumbent}.jsonl"
    k = next(way["k"] for way in selection["ways"] if way["arm"] == incumbent)
    return f"again/dev-{turn}/dev/{incumbent}{f'-{k}' if k else ''}.jsonl"


def _after(run: Path) -> str | None:
    manifest = run / "adapter" / "manifest.json"
    return read_json(manifest).get("after") if manifest.is_file() else None
