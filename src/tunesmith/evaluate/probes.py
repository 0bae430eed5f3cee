"""Questions with options, out of pinned packages, that show whether a model has forgotten what it knew.

In: probes.lock beside this file, which names packages by sha256. Out: a seeded draw of questions, the same on every
machine. None of them may stand in the rows that a model was trained on: those that do are left out and counted.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from tunesmith.files import sha256_json
from tunesmith.packages import PackageFile, fetch, read_member
from tunesmith.text import duplicate_key
from tunesmith.yaml_source import read_yaml

LONGEST = 1200
"""Most characters of a question: longer ones, of BoolQ, would cost more than they tell."""
T = TypeVar("T")
WHOLE = 24
"""Fewest letters and digits by which a question is known again inside a training row."""


class Pinned(BaseModel):
    """One entry of probes.lock: a member of a pinned package, and whose it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    package: PackageFile
    member: str
    licence: str
    made: str


@dataclass(frozen=True)
class Question:
    """What is asked, the options, and which of them is right."""

    probe: str
    text: str
    options: tuple[str, ...]
    right: int

    @property
    def asked(self) -> str:
        """What a model reads before an option."""
        return f"{self.text}\nAnswer:"

    @property
    def id(self) -> str:
        """Its name: the probe and the hash of its words."""
        return f"{self.probe}/{sha256_json([self.text, self.options])[:12]}"


def pinned() -> dict[str, Pinned]:
    """The entries of probes.lock, by the probe's name."""
    lock = Path(str(files("tunesmith.evaluate").joinpath("probes.lock")))
    return {name: Pinned.model_validate(value) for name, value in read_yaml(lock, lock.name).values.items()}


def read_questions(probe: str) -> list[Question]:
    """All questions of one probe that can be asked, each once, in the order of the package's file.

    Raises:
        EnvironmentFault: the package cannot be had, or is not the pinned one.
    """
    entry = pinned()[probe]
    lines = read_member(fetch(entry.package), entry.member).decode("utf-8").splitlines()
    read: Callable[[dict[str, Any]], tuple[str, list[str], int] | None] = _yes_or_no if probe == "boolq" else _lettered
    found: dict[str, Question] = {}
    for line in filter(str.strip, lines):
        asked = read(json.loads(line))
        if asked and len(asked[0]) <= LONGEST:
            question = Question(probe, asked[0], tuple(asked[1]), asked[2])
            found.setdefault(question.id, question)
    return list(found.values())


def _lettered(line: dict[str, Any]) -> tuple[str, list[str], int] | None:
    """A question whose options stand in one text, `A. one` under `B. other`; none if the right one is not one of them.

    The package puts the question mark of some questions behind their last option.
    """
    options = [part.strip() for part in re.split(r"(?:^|\n)(?=[A-Z]\. )", line["options"].strip()) if part.strip()]
    right = [index for index, option in enumerate(options) if option.rstrip("?") == line["answer"].strip().rstrip("?")]
    texts = [option[3:].strip().rstrip("?") for option in options]
    if len(right) != 1 or len(options) < 2 or not all(texts) or len(set(texts)) < len(texts):
        return None
    return f"Question: {line['question'].strip()}", texts, right[0]


def _yes_or_no(line: dict[str, Any]) -> tuple[str, list[str], int] | None:
    question = f"{line['passage'].strip()}\nQuestion: {line['question'].strip()}?"
    return {"True": (question, ["yes", "no"], 0), "False": (question, ["yes", "no"], 1)}.get(str(line["answer"]))


def in_order(questions: Sequence[Question], seed: int) -> list[Question]:
    """The questions in an order fixed by seed and words, whatever others there are."""
    return sorted(questions, key=lambda question: sha256_json([seed, question.id]))


class Trained:
    """The texts that a model was trained on, as one string of letters and digits a text."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.keys = "\n".join(map(duplicate_key, texts))

    def holds(self, text: str) -> bool:
        """Whether a text's letters and digits stand in one of them; a short text is not known again."""
        # `Question: ` is the form, not the question.
        key = duplicate_key(text.removeprefix("Question: "))
        return len(key) >= WHOLE and key in self.keys

    def first_unseen(self, texts: Iterable[T], count: int, words: Callable[[T], str]) -> tuple[list[T], int]:
        """The first so many that do not stand in training rows, and how many were passed over."""
        found: list[T] = []
        passed = 0
        for text in texts:
            if len(found) == count:
                break
            if self.holds(words(text)):
                passed += 1
            else:
                found.append(text)
        return found, passed
