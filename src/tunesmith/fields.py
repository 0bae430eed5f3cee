"""Values inside a row, by the path that a recipe names."""

import json
from datetime import date
from typing import Any

from tunesmith.rows import Row, loads


def value_of(row: Row, path: str) -> str | None:
    """The text of a value: `group`, `completion`, `completion.<key>`, `shape` (the completion's keys), `meta.<key>`.

    None where the row has no such value.
    """
    head, _, rest = path.partition(".")
    if head == "group":
        return row.group
    if head == "meta":
        return _text(_inside(row.meta or {}, rest))
    if head == "completion" and not rest:
        return row.reference
    try:
        completion = loads(row.reference)
    except ValueError:
        return None
    if head == "shape":
        return ",".join(sorted(completion)) if isinstance(completion, dict) else type(completion).__name__
    return _text(_inside(completion, rest))


def date_of(row: Row, path: str) -> date | None:
    """The day of a value that begins with an ISO date; None where there is none."""
    try:
        return date.fromisoformat((value_of(row, path) or "")[:10])
    except ValueError:
        return None


def _inside(value: Any, path: str) -> Any:
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
