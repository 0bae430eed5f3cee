"""The ways to answer that need no training: which messages each one puts before the model."""

import hashlib
import re
from collections.abc import Sequence

import bm25s

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


def few_shots(train: Sequence[Row], k: int, seed: int) -> list[Row]:
    """The same k training rows for every question: the first in an order fixed by seed and row id."""
    order = sorted(train, key=lambda row: hashlib.sha256(f"{seed}\n{row.id}".encode()).digest())
    return order[:k]


class Retriever:
    """Finds the training rows whose text is nearest to a question, by BM25 (bm25s, Lucene's variant)."""

    def __init__(self, train: Sequence[Row]) -> None:
        self.train = list(train)
        self.index = bm25s.BM25(method="lucene")
        self.index.index([_words(row.source) for row in self.train], show_progress=False)

    def nearest(self, row: Row, k: int) -> list[Row]:
        """The k nearest training rows, the nearest last: beside the question."""
        # bm25s takes no empty query, and cannot look up its own empty token; a space is no word of any row.
        scores = self.index.get_scores(_words(row.source) or [" "])
        order = sorted(range(len(self.train)), key=lambda index: (-float(scores[index]), index))
        return [self.train[index] for index in reversed(order[:k])]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
