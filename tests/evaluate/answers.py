"""Rows and scorers for the tests of scorers."""

from typing import Any

from pydantic import TypeAdapter

from tunesmith.evaluate.scorers import Scorer
from tunesmith.rows import Message, Row
from tunesmith.scoring import ScoreSection

SECTION: TypeAdapter[Any] = TypeAdapter(ScoreSection)


def scorer(schema: dict[str, Any] | None = None, **settings: Any) -> Scorer:
    """The scorer of a `score:` section."""
    return Scorer(SECTION.validate_python(settings), schema)


def row(reference: str, source: str = "asked", row_id: str = "1", **more: Any) -> Row:
    """A row with a reference."""
    messages = [Message(role="user", content=source)]
    return Row(id=row_id, group="1", messages=messages, completion=Message(role="assistant", content=reference), **more)
