"""The ledger: one line for every verdict that was ever given on a gate split.

Looking often at one split finds a winner by chance, so each look is counted. Judging the same evidence again is the
same look.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from tunesmith.files import write_atomic


def look_number(ledger: Path, gate_digest: str, candidate: str) -> int:
    """Which look at this gate split a candidate's verdict is: 1 for the first candidate judged on it."""
    seen: list[str] = []
    for line in _lines(ledger):
        if line["gate_digest"] == gate_digest and line["candidate"] not in seen:
            seen.append(line["candidate"])
    return seen.index(candidate) + 1 if candidate in seen else len(seen) + 1


def enter(ledger: Path, entry: dict[str, Any]) -> None:
    """Append a verdict, unless its last entry for the same evidence stands there already."""
    with FileLock(ledger.with_name(ledger.name + ".lock")):
        lines = _lines(ledger)
        known = [{key: value for key, value in line.items() if key != "at"} for line in lines]
        if entry not in known:
            lines.append({"at": datetime.now(UTC).isoformat(timespec="seconds"), **entry})
            write_atomic(ledger, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _lines(ledger: Path) -> list[dict[str, Any]]:
    if not ledger.is_file():
        return []
    return [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines() if line.strip()]
