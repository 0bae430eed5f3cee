"""What two sets of rows share that they must not: the same text, almost the same text, a long passage, a group.

A leak between training rows and held-out rows makes a model that remembers look like one that has learned. Five kinds,
from the surest: `exact` (the prompt's text), `normalised` (its letters and digits), `group`, `near` (Jaccard similarity
of character 5-grams), `passage` (13 words in a row; Brown et al. 2020, arXiv:2005.14165, appendix C).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.near import band_keys, candidates, marks_of, sign, similarities
from tunesmith.rows import Row
from tunesmith.text import duplicate_key, shingle_form

Kind = Literal["exact", "normalised", "group", "near", "passage"]
KINDS: tuple[Kind, ...] = ("exact", "normalised", "group", "near", "passage")

WORDS = 13
BOILERPLATE = 0.02
"""Share of the rows on one side from which a passage is no evidence: a phrase that many rows begin with."""
FEW = 5
"""Rows that may hold a passage at any size before it counts as boilerplate."""
BATCH = 2048


@dataclass(frozen=True)
class Text:
    """What is compared: a name for messages, the text, and the group if it has one."""

    name: str
    text: str
    group: str | None = None


@dataclass(frozen=True)
class Leak:
    """A text on the left that stands on the right too."""

    kind: Kind
    left: str
    right: str
    says: str


def row_texts(rows: Iterable[Row]) -> Iterator[Text]:
    """What rows are compared by: what they ask, without the system message; and their group."""
    for row in rows:
        yield Text(row.id, row.prompt_text, row.group)


def trained_texts(rows: Iterable[tuple[str, Row]]) -> Iterator[Text]:
    """All that training learns of named rows: what they ask, and what they answer, well or badly."""
    for name, row in rows:
        yield Text(name, row.prompt_text)
        for answer in row.answers():
            yield Text(name, answer.content or "")


def find_leaks(left: Iterable[Text], right: Sequence[Text], near: float | None = 0.8) -> list[Leak]:
    """Every text on the left with a leak to the right: one leak each, of the surest kind.

    The right side is held in memory with its signatures, the left is read through: give the larger one left. `near` is
    the similarity from which texts leak; none leaves that kind out.
    """
    index = _Index(right, near)
    found: list[Leak] = []
    rest = iter(left)
    while batch := list(islice(rest, BATCH)):
        found += index.leaks(batch)
    return found


class _Index:
    """The right side, by all that it may be met by."""

    def __init__(self, texts: Sequence[Text], near: float | None) -> None:
        self.texts = texts
        self.near = near if texts else None
        self.exact = {text.text: i for i, text in enumerate(texts)}
        self.normalised = {key: i for i, text in enumerate(texts) if (key := duplicate_key(text.text))}
        self.groups = {text.group: i for i, text in enumerate(texts) if text.group is not None}
        self.passages = _rare_passages([text.text for text in texts])
        self.forms = [shingle_form(text.text) for text in texts] if self.near is not None else []
        self.signatures = sign(self.forms)

    def leaks(self, batch: Sequence[Text]) -> Iterator[Leak]:
        near, passage = self._near(batch), self._passage(batch)
        for number, text in enumerate(batch):
            if leak := self._same(text) or near.get(number) or passage.get(number):
                yield leak

    def _same(self, text: Text) -> Leak | None:
        if (other := self.exact.get(text.text)) is not None:
            return Leak("exact", text.name, self.texts[other].name, "the same prompt")
        if (other := self.normalised.get(duplicate_key(text.text))) is not None:
            return Leak("normalised", text.name, self.texts[other].name, "the same letters and digits")
        if text.group is not None and (other := self.groups.get(text.group)) is not None:
            return Leak("group", text.name, self.texts[other].name, f"group {text.group!r}")
        return None

    def _near(self, batch: Sequence[Text]) -> dict[int, Leak]:
        if self.near is None:
            return {}
        forms = [shingle_form(text.text) for text in batch]
        both = self.forms + forms
        signatures = np.concatenate([self.signatures, sign(forms)])
        sides = np.arange(len(both)) >= len(self.forms)
        pairs, _ = candidates(band_keys(signatures, self.near).T, marks_of(signatures), self.near, sides)
        alike = similarities(pairs, lambda indices: [both[i] for i in indices.tolist()])
        found: dict[int, Leak] = {}
        for (other, place), value in zip(pairs.tolist(), alike.tolist(), strict=True):
            number = place - len(self.forms)
            if value >= self.near:
                found[number] = Leak("near", batch[number].name, self.texts[other].name, f"{value:.2f} alike")
        return found

    def _passage(self, batch: Sequence[Text]) -> dict[int, Leak]:
        found: dict[int, Leak] = {}
        hashes, offsets = passages([text.text for text in batch])
        owners = np.repeat(np.arange(len(batch)), np.diff(offsets))
        for place, other in self.passages.find(hashes):
            number = int(owners[place])
            if number not in found:
                words = _words(batch[number].text)[place - int(offsets[number]) :][:WORDS]
                found[number] = Leak("passage", batch[number].name, self.texts[other].name, " ".join(words))
        return found


class _Sorted:
    """Keys in order, each with the text that it is of."""

    def __init__(self, keys: NDArray[np.uint64], owners: NDArray[np.int64] | None = None) -> None:
        order = np.argsort(keys, kind="stable")
        self.keys = keys[order]
        self.owners = order if owners is None else owners[order]

    def find(self, keys: NDArray[np.uint64]) -> list[tuple[int, int]]:
        """(place in `keys`, text) of each key that is known; of texts with one key, the first."""
        if not len(self.keys):
            return []
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        hits = np.flatnonzero(self.keys[places] == keys)
        return list(zip(hits.tolist(), self.owners[places[hits]].tolist(), strict=True))


def _rare_passages(texts: Sequence[str]) -> _Sorted:
    """The passages of some texts but for boilerplate, each with the first text that holds it."""
    hashes, offsets = passages(texts)
    owners = np.repeat(np.arange(len(texts)), np.diff(offsets))
    kinds, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    rare = counts <= max(FEW, int(BOILERPLATE * len(texts)))
    return _Sorted(kinds[rare], owners[first[rare]])


def passages(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of the runs of 13 words of each text, and the offsets at which each text's begin.

    The hashes hold within one process: Python salts those of words.
    """
    words = [_words(text) for text in texts]
    codes = np.array([hash(word) for text in words for word in text], dtype=np.int64).view(np.uint64)
    runs = np.zeros(max(0, len(codes) - WORDS + 1), dtype=np.uint64)
    for place in range(WORDS):
        runs *= np.uint64(0x9E3779B97F4A7C15)
        runs += codes[place : place + len(runs)]
    lengths = np.array([len(text) for text in words], dtype=np.int64)
    counts = np.maximum(lengths - WORDS + 1, 0)
    begins = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if texts else np.zeros(0, dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    places = np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], counts)
    return runs[places.astype(np.int64)], offsets.astype(np.int64)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
