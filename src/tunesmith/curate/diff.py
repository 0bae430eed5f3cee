"""What a new version of a dataset changed: rows that came, went, moved or read otherwise, and what that shifted."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tunesmith.curate.alarms import Alarm, triggers
from tunesmith.errors import UserError
from tunesmith.rows import SPLITS, Dataset, Row, read_rows

JUMP = 0.10
"""Change of a source's share of the training rows that is worth a look."""
SHOWN = 10


@dataclass
class Difference:
    """From an old dataset to a new one."""

    rows: dict[str, tuple[int, int]]
    """Rows of each split, old and new."""
    added: dict[str, list[str]] = field(default_factory=dict)
    """Ids by split."""
    removed: dict[str, list[str]] = field(default_factory=dict)
    moved: list[tuple[str, str, str]] = field(default_factory=list)
    """(id, old split, new split)."""
    changed: list[tuple[str, str]] = field(default_factory=list)
    """(id, what of it: prompt, completion, rejected, group)."""
    shares: list[tuple[str, float, float]] = field(default_factory=list)
    """(source, its share of the old training rows, of the new)."""
    alarms: list[Alarm] = field(default_factory=list)
    """Triggers in the new training rows that the old ones did not hold."""

    @property
    def jumps(self) -> list[tuple[str, float, float]]:
        """Sources whose share of the training rows changed by more than JUMP."""
        return [share for share in self.shares if abs(share[2] - share[1]) > JUMP]


def compare(old: Path, new: Path) -> Difference:
    """Compare two directories that `curate` has written.

    Raises:
        UserError: one of them is no dataset.
    """
    before, after = _rows(old), _rows(new)
    found = Difference(
        {
            split: tuple(sum(where == split for where, _ in rows.values()) for rows in (before, after))  # type: ignore[misc]
            for split in SPLITS
        }
    )
    for split in SPLITS:
        found.added[split] = [i for i, (where, _) in after.items() if where == split and i not in before]
        found.removed[split] = [i for i, (where, _) in before.items() if where == split and i not in after]
    for row_id, (where, row) in after.items():
        if row_id in before:
            was, earlier = before[row_id]
            if was != where:
                found.moved.append((row_id, was, where))
            parts = (
                ("prompt", earlier.messages != row.messages or earlier.tools != row.tools),
                ("completion", earlier.completion != row.completion),
                ("rejected", earlier.rejected != row.rejected),
                ("group", earlier.group != row.group),
            )
            if what := ", ".join(name for name, differs in parts if differs):
                found.changed.append((row_id, what))
    trained = [[row for where, row in rows.values() if where == "train"] for rows in (before, after)]
    shares = [_shares(rows) for rows in trained]
    found.shares = [
        (name, shares[0].get(name, 0.0), shares[1].get(name, 0.0)) for name in sorted({*shares[0], *shares[1]})
    ]
    known = {alarm.words for alarm in triggers([(row.source, row.reference) for row in trained[0]])}
    found.alarms = [a for a in triggers([(row.source, row.reference) for row in trained[1]]) if a.words not in known]
    return found


def _rows(directory: Path) -> dict[str, tuple[str, Row]]:
    dataset = Dataset(directory)
    if not dataset.exists():
        raise UserError(
            f"{directory}: holds no manifest.json; name two directories that `tunesmith curate` has written"
        )
    paths = {split: directory / f"{split}.jsonl" for split in SPLITS}
    # A split that has no share is an empty file.
    return {row.id: (split, row) for split, path in paths.items() if path.stat().st_size for row in read_rows(path)}


def _shares(rows: list[Row]) -> dict[str, float]:
    counts = Counter(str((row.meta or {}).get("source", "unknown")) for row in rows)
    return {name: count / len(rows) for name, count in counts.items()}


def print_difference(found: Difference, console: Console | None = None) -> None:
    """Say what changed, the gravest first."""
    console = console or Console(highlight=False)
    table = Table("split", "old", "new", "added", "removed", box=None, pad_edge=False)
    for split in SPLITS:
        old, new = found.rows[split]
        table.add_row(split, str(old), str(new), str(len(found.added[split])), str(len(found.removed[split])))
    console.print(table)
    _some(console, "moved between splits", [f"{i}: {was} to {now}" for i, was, now in found.moved])
    _some(console, "read otherwise", [f"{i}: {what}" for i, what in found.changed])
    for split in SPLITS:
        _some(console, f"new in {split}", found.added[split])
        _some(console, f"gone from {split}", found.removed[split])
    for name, old_share, new_share in found.shares:
        mark = "  a jump: look at what came" if (name, old_share, new_share) in found.jumps else ""
        console.print(
            f"source {name}: {old_share:.1%} of train, now {new_share:.1%}{mark}", markup=False, soft_wrap=True
        )
    for alarm in found.alarms:
        console.print(
            f"alarm: {alarm.words!r} stands in {alarm.rows} training rows, always with {alarm.completion[:60]!r}, "
            f"which the rest of {alarm.unexplained:.0%} of them speaks against",
            markup=False,
            soft_wrap=True,
        )


def _some(console: Console, what: str, lines: list[str]) -> None:
    if lines:
        more = f" (the first {SHOWN})" if len(lines) > SHOWN else ""
        console.print(f"{what}: {len(lines)}{more}", soft_wrap=True)
        for line in lines[:SHOWN]:
            console.print(f"  {line}", markup=False, soft_wrap=True)
