"""References that are likely wrong: contradicted by another row's, or not to be read from the text they should stand
in.

A suspicion, by rules that a person can follow; a wrong reference that is plausible and stands in its source is not
seen. So a share of suspected labels is a lower bound, and rows that are suspected are shown to a person.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal

from tunesmith.evaluate.logged import Judged, Kind, fold, place, stands_in, values
from tunesmith.logs import LogRow

Suspicion = Literal["contradicted", "not_derivable", "source_sides_with_output"]


def suspicions(rows: Sequence[LogRow], judged: Sequence[Judged | None], kinds: dict[str, Kind]) -> dict[str, Suspicion]:
    """Why the reference of a row is suspected, by the row's id."""
    found: dict[str, Suspicion] = {}
    passages = any(row.context or row.gold for row in rows)
    for row, verdict in zip(rows, judged, strict=True):
        if row.reference is not None and verdict is not None and not verdict.right:
            wrong = [
                (path, value)
                for path, value in values(row.reference).items()
                if _underivable(path, value, row, kinds, passages)
            ]
            if wrong:
                got = {fault.path: fault.got for fault in verdict.faults}
                sides = all(got.get(path) is not None and stands_in(got[path], _texts(row)) for path, _ in wrong)
                found[row.id] = "source_sides_with_output" if sides else "not_derivable"
    return found | contradicted(rows)


def contradicted(rows: Sequence[LogRow]) -> dict[str, Suspicion]:
    """Rows that ask the same of the same passages as others, and have another reference than most of them.

    Of as many against as many, all are suspected. A reference that another row names as an earlier version of the fact
    is no contradiction: the fact has changed.
    """
    asked: dict[tuple[str, str], list[LogRow]] = defaultdict(list)
    for row in rows:
        if row.reference is not None:
            asked[fold(row.asked), fold("\n".join(sorted(row.context)))].append(row)
    found: dict[str, Suspicion] = {}
    for same in asked.values():
        changed = {fold(version) for row in same for version in row.versions}
        said = {row.id: fold(row.reference or "") for row in same}
        counts = Counter(text for text in said.values() if text not in changed)
        if len(counts) < 2:
            continue
        most = max(counts.values())
        leaders = [text for text, count in counts.items() if count == most]
        for row_id, text in said.items():
            if text in counts and (len(leaders) > 1 or text != leaders[0]):
                found[row_id] = "contradicted"
    return found


def _underivable(path: str, value: object, row: LogRow, kinds: dict[str, Kind], passages: bool) -> bool:
    """Whether a value of a reference is one that is read from a text, and stands in none of its row's."""
    if value is None or kinds.get(place(path)) != "copied" or stands_in(value, _texts(row)):
        return False
    # Without the passage that it is to be read from, the fact may just not have been retrieved.
    return bool(row.gold) or not passages


def _texts(row: LogRow) -> str:
    return "\n".join([row.given, *row.gold])
