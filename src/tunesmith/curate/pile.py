"""Rows on disk while they are curated: their lines, the text they are compared by, and their keys.

Text is never held: a row in memory is its columns of 8 bytes, and one band of its signature at a time. So a pile may be
larger than memory; about 150 bytes a row is what it takes.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.curate.work import COLUMNS, Dropped, Part
from tunesmith.near import SLOTS, Hashes, Pairs, banding, candidates, similarities

Numbers = NDArray[np.int64]


class Pile:
    """The rows that came through cleaning, in the order of their sources."""

    def __init__(self, scratch: Path) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.scratch = scratch
        self.dropped_path = scratch / "dropped.jsonl"
        self.dropped_path.touch()
        self.strata: dict[int, str] = {}
        self.labels: dict[int, str] = {}
        self.read: Counter[str] = Counter()
        self.made: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.shown: dict[str, list[tuple[str, str, str]]] = {}
        self.dropped: Counter[tuple[str, str]] = Counter()
        self.dropped_shown: dict[tuple[str, str], list[Dropped]] = {}
        self.findings: list[tuple[str, str, str]] = []
        self.problems: list[str] = []
        self.columns: dict[str, Numbers] = {}
        self.crowded = 0
        """Rows of which so many are about alike that not every pair was compared."""

    def __len__(self) -> int:
        return len(self.columns["exact"])

    def fill(self, parts: Iterable[Part]) -> None:
        """Take in all parts, in order."""
        columns: dict[str, list[Numbers]] = {name: [] for name in COLUMNS}
        lengths: dict[str, list[Numbers]] = {"rows": [], "forms": []}
        with ExitStack() as stack:
            rows, forms, marks = (
                stack.enter_context((self.scratch / name).open("wb")) for name in ("rows", "forms", "marks")
            )
            bands: list[IO[bytes]] = []
            for part in parts:
                self._note(part)
                rows.write(part.rows)
                forms.write(part.forms)
                marks.write(part.marks.tobytes())
                for name, values in part.columns.items():
                    columns[name].append(values)
                for name, values in part.lengths.items():
                    lengths[name].append(values)
                for index, keys in enumerate(part.bands.T if part.bands is not None else ()):
                    if index == len(bands):
                        bands.append(stack.enter_context((self.scratch / f"band-{index}").open("wb")))
                    bands[index].write(keys.tobytes())
        none = [np.zeros(0, dtype=np.int64)]
        self.columns = {name: np.concatenate(values or none) for name, values in columns.items()}
        self._offsets = {
            name: np.concatenate([[0], np.cumsum(np.concatenate(values or none))]) for name, values in lengths.items()
        }

    def _note(self, part: Part) -> None:
        self.strata |= part.strata
        self.labels |= part.labels
        self.read += part.read
        self.made += part.made
        self.changed += part.changed
        for step, row, before, after in part.shown:
            shown = self.shown.setdefault(step, [])
            if len(shown) < SHOWN:
                shown.append((row, before, after))
        self.drop(part.dropped)
        self.findings += part.findings
        self.problems += part.problems

    def place(self, index: int) -> str:
        """The file and line that a row came from."""
        return f"{self.labels[int(self.columns['file'][index])]}:{self.columns['line'][index]}"

    def values(self, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The rows at some indices, as JSON values."""
        return (json.loads(raw) for raw in self._read("rows", indices))

    def forms(self, indices: Iterable[int]) -> list[str]:
        """The texts by which rows are compared."""
        return [raw.decode() for raw in self._read("forms", indices)]

    def _read(self, name: str, indices: Iterable[int]) -> Iterator[bytes]:
        offsets = self._offsets[name]
        with (self.scratch / name).open("rb") as stream:
            for index in indices:
                stream.seek(int(offsets[index]))
                yield stream.read(int(offsets[index + 1] - offsets[index]))

    def near_pairs(self, among: Numbers, threshold: float) -> tuple[Pairs, NDArray[np.float64]]:
        """Pairs of rows, of those at some indices, whose similarity is at least the threshold; and the similarities."""
        if not len(among):
            return np.zeros((0, 2), dtype=np.int64), np.zeros(0)
        bands: Iterator[Hashes] = (
            np.fromfile(self.scratch / f"band-{index}", dtype=np.uint64)[among]
            for index in range(banding(threshold)[0])
        )
        marks = np.memmap(self.scratch / "marks", dtype=np.uint8, mode="r").reshape(-1, SLOTS)
        met, self.crowded = candidates(bands, marks[among], threshold)
        pairs = among[met]
        alike = similarities(pairs, lambda indices: self.forms(indices.tolist()))
        return pairs[alike >= threshold], alike[alike >= threshold]

    def drop(self, rows: Iterable[Dropped]) -> None:
        """Note rows that are left out: in `dropped.jsonl`, and in the counts."""
        with self.dropped_path.open("a", encoding="utf-8", newline="\n") as stream:
            for dropped in rows:
                key = (dropped.step, dropped.reason)
                self.dropped[key] += 1
                shown = self.dropped_shown.setdefault(key, [])
                if len(shown) < SHOWN:
                    shown.append(dropped)
                stream.write(json.dumps(asdict(dropped), ensure_ascii=False) + "\n")

    def drop_rows(self, indices: Iterable[int], step: str, reason: str, twins: Iterable[int] | None = None) -> None:
        """Note rows of the pile that are left out, each because of a twin where it has one."""
        told = list(indices)
        details = self.values(twins) if twins is not None else iter([{"id": ""}] * len(told))
        self.drop(
            Dropped(value["id"], self.place(index), step, reason, twin["id"])
            for index, value, twin in zip(told, self.values(told), details, strict=True)
        )


SHOWN = 3
"""Changes that are shown of each step."""
