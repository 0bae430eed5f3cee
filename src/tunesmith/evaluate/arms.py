"""What each way to answer puts before the model: messages, and nothing that the row's own completion says."""

import hashlib
from collections.abc import Sequence

from tunesmith.evaluate.knowledge import Chunk, shown
from tunesmith.evaluate.retrieve import BY_WORDS, Index, Search
from tunesmith.rows import Message, Row


def with_shots(row: Row, shots: Sequence[Row]) -> list[Message]:
    """A row's messages with shots as earlier turns, between its system message and its question."""
    system = [m for m in row.messages if m.role == "system"]
    own = [m for m in row.messages if m.role != "system"]
    turns: list[Message] = []
    for shot in shots:
        turns += [m for m in shot.messages if m.role != "system"]
        turns.append(shot.completion)
    return [*system, *turns, *own]


def with_documents(row: Row, chunks: Sequence[Chunk]) -> list[Message]:
    """A row's messages with chunks of documents below its question: the last user message."""
    messages = list(row.messages)
    if not chunks:
        return messages
    place = max((index for index, message in enumerate(messages) if message.role == "user"), default=None)
    if place is None:
        return messages
    asked = messages[place]
    content = f"{asked.content or ''}\n\nPassages:\n\n{shown(chunks)}"
    messages[place] = asked.model_copy(update={"content": content})
    return messages


def few_shots(train: Sequence[Row], k: int, seed: int) -> list[Row]:
    """The same k training rows for every question: the first in an order fixed by seed and row id."""
    order = sorted(train, key=lambda row: hashlib.sha256(f"{seed}\n{row.id}".encode()).digest())
    return order[:k]


class Retriever:
    """Finds the training rows whose question is nearest to a row's."""

    def __init__(self, train: Sequence[Row], search: Search = BY_WORDS) -> None:
        self.train = list(train)
        self.index = Index([row.source for row in self.train], search, "training rows")

    def nearest(self, row: Row, k: int) -> list[Row]:
        """The k nearest training rows, the nearest last: beside the question."""
        return [self.train[place] for place in reversed(self.index.order(row.source)[:k])]
