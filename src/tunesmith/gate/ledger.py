"""The ledger: a line for every lock, every look at held-out rows, every verdict and every promotion, in a chain.

Looking often at one split finds a winner by chance, so each look is counted and costs alpha. Each line holds its
number and the sha256 of the line before it; an anchor beside the file holds how many lines there are and the digest of
the last. So a line that was edited, deleted, added, moved or cut off at the end is found. Who owns the disk can still
forge the whole: docs/LEDGER.md says what that leaves.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from tunesmith.errors import Invalid
from tunesmith.files import read_json, sync_directory, write_atomic, write_json

CHAIN = ("n", "before", "at")
"""Keys of a line that are the chain's own."""
NOTHING = "0" * 64
"""What stands before the first line."""
COUNTED = ("look", "verdict")
"""Kinds of lines that witness a look; a verdict of before looks had lines of their own does, too."""


class Ledger:
    """One file of looks, `runs/ledger.jsonl`, shared by all runs beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.anchor = path.with_suffix(".anchor.json")

    # ------------------------------------------------------------------ reading

    def lines(self) -> list[dict[str, Any]]:
        """The lines that can be read, in order, whether or not their chain holds."""
        return [line for raw in self._raw() if (line := _parsed(raw)) is not None]

    @property
    def id(self) -> str | None:
        """What tells this ledger from one that was begun anew."""
        lines = self.lines()
        return lines[0].get("id") if lines else None

    def looks(self, gate_digest: str) -> list[str]:
        """The candidates that were looked at on a split, by digest, in order of their first look."""
        seen: dict[str, None] = {}
        for line in self.lines():
            if line.get("kind", "verdict") in COUNTED and line.get("gate_digest") == gate_digest:
                seen.setdefault(str(line.get("candidate")))
        return list(seen)

    def look_number(self, gate_digest: str, candidate: str) -> int:
        """Which look at this split a candidate's is, or would be: 1 for the first; again is the same look."""
        seen = self.looks(gate_digest)
        return seen.index(candidate) + 1 if candidate in seen else len(seen) + 1

    def problems(self) -> list[str]:
        """Where the file is not what was written, each with its line; nothing where it is whole or not begun."""
        raw = self._raw()
        if not raw and not self.path.exists() and not self.anchor.exists():
            return []
        try:
            anchor = read_json(self.anchor)
            anchored, head = int(anchor["lines"]), str(anchor["head"])
        except FileNotFoundError:
            # Kept before there was a chain, or killed between the first line and its anchor.
            return _unchained_problems(self.path, raw) if _is_unchained(raw) else _without_anchor(self, raw)
        except (ValueError, KeyError, TypeError, OSError):
            return [f"{self.anchor}: not what was written there"]
        found = list(_broken_links(self.path, raw))
        if len(raw) < anchored:
            found.append(f"{self.path}:{len(raw) + 1}: missing; {anchored} lines were written, {len(raw)} are there")
        elif len(raw) > anchored + 1:
            # One line may be ahead of its anchor: a kill fell between the two.
            found.append(f"{self.path}:{anchored + 2}: was not written by the gate, nor the lines after it")
        elif not found and _digest(raw[anchored - 1]) != head:
            found.append(f"{self.path}:{anchored}: was edited after it was written")
        return found

    def refuse_broken(self) -> None:
        """Stop where the chain does not hold: what was looked at cannot be told.

        Raises:
            Invalid: names each line.
        """
        if problems := self.problems():
            raise Invalid(problems, hint=WAY_OUT)

    # ------------------------------------------------------------------ writing

    def look(self, gate_digest: str, candidate: str, **facts: Any) -> int:
        """Count a look and return its number; the same candidate on the same split is the look that it was.

        Raises:
            Invalid: the chain does not hold.
        """
        with self._held():
            self.refuse_broken()
            number = self.look_number(gate_digest, candidate)
            if candidate not in self.looks(gate_digest):
                self._append(
                    {"kind": "look", "gate_digest": gate_digest, "candidate": candidate, "look": number, **facts}
                )
            return number

    def enter(self, entry: Mapping[str, Any]) -> None:
        """Append a line, unless one that says the same stands there already.

        Raises:
            Invalid: the chain does not hold.
        """
        with self._held():
            self.refuse_broken()
            known = ({key: value for key, value in line.items() if key not in CHAIN} for line in self.lines())
            if dict(entry) not in known:
                self._append(dict(entry))

    def _held(self) -> FileLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_name(self.path.name + ".lock"))

    def _append(self, entry: dict[str, Any]) -> None:
        """Write a line after the last, then the anchor; killed between the two, the line counts."""
        raw = self._raw()
        if not raw:
            raw = [_line(1, NOTHING, {"kind": "genesis", "id": secrets.token_hex(16)})]
        elif _is_unchained(raw):
            raw = _chained(raw)
        raw.append(_line(len(raw) + 1, _digest(raw[-1]), entry))
        write_atomic(self.path, "".join(line + "\n" for line in raw))
        sync_directory(self.path.parent)
        write_json(self.anchor, {"id": json.loads(raw[0])["id"], "lines": len(raw), "head": _digest(raw[-1])})
        sync_directory(self.path.parent)

    def _raw(self) -> list[str]:
        """The lines as they stand; what follows the last line break is a line too, and never one of ours."""
        if not self.path.is_file():
            return []
        lines = self.path.read_bytes().decode("utf-8", errors="surrogateescape").split("\n")
        return lines[:-1] if lines[-1] == "" else lines


WAY_OUT = (
    "put back the file as it was, from a copy; or move the ledger and its anchor away to begin another: every look is "
    "then forgotten, and verdicts will name another ledger"
)


def _broken_links(path: Path, raw: list[str]) -> list[str]:
    found, before = [], NOTHING
    for number, text in enumerate(raw, start=1):
        line = _parsed(text)
        if line is None or not {"n", "before", "kind"} <= line.keys():
            found.append(f"{path}:{number}: not a line of the ledger")
        elif line["n"] != number:
            found.append(f"{path}:{number}: was line {line['n']}; a line was deleted, added or moved")
        elif line["before"] != before:
            found.append(f"{path}:{max(number - 1, 1)}: was edited after it was written")
        before = _digest(text)
    return found


def _without_anchor(ledger: Ledger, raw: list[str]) -> list[str]:
    if len(raw) <= 2 and raw and not _broken_links(ledger.path, raw):
        return []
    return [f"{ledger.anchor}: missing; it says how many lines {ledger.path} had"]


def _unchained_problems(path: Path, raw: list[str]) -> list[str]:
    return [f"{path}:{i}: not a line of the ledger" for i, text in enumerate(raw, start=1) if _parsed(text) is None]


def _is_unchained(raw: list[str]) -> bool:
    """Whether these are lines of a ledger that was kept before there was a chain."""
    first = _parsed(raw[0]) if raw else None
    return first is not None and "kind" not in first and {"candidate", "gate_digest"} <= first.keys()


def _chained(raw: list[str]) -> list[str]:
    """Lines of before there was a chain, taken over once and marked: what happened to them earlier cannot be told."""
    whole = _digest("".join(line + "\n" for line in raw))
    lines = [_line(1, NOTHING, {"kind": "genesis", "id": secrets.token_hex(16), "taken_over": whole})]
    for text in raw:
        old = json.loads(text)
        entry = {"kind": "verdict", **{key: value for key, value in old.items() if key != "at"}, "taken_over": True}
        lines.append(_line(len(lines) + 1, _digest(lines[-1]), entry, at=old.get("at")))
    return lines


def _line(number: int, before: str, entry: Mapping[str, Any], at: str | None = None) -> str:
    at = at or datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"n": number, "before": before, "at": at, **entry}, ensure_ascii=False, allow_nan=False)


def _digest(line: str) -> str:
    return hashlib.sha256(line.encode("utf-8", errors="surrogateescape")).hexdigest()


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
