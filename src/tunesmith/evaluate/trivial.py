"""Answers that any adapter must beat, given without a model: what training rows alone would let anyone say.

A gain over the base can be all shape: an adapter that always writes the commonest answer beats a base that writes
none. These arms say the commonest answer, the input itself, the answer of the nearest training row, and the commonest
value of each field. Only train is looked at; never imports torch.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunesmith.evaluate.arms import Retriever
from tunesmith.rows import Row, loads


def trivial_answers(names: Sequence[str], train: Sequence[Row], rows: Sequence[Row]) -> Mapping[str, list[str]]:
    """What each trivial arm of these names says to some rows, in their order."""
    say: Mapping[str, Callable[[], list[str]]] = {
        "majority": lambda: [majority(train)] * len(rows),
        "skeleton": lambda: [skeleton(train)] * len(rows),
        "copy_input": lambda: [row.source for row in rows],
        "nearest_train": lambda: [nearest[0].reference for nearest in _nearest(train, rows)],
    }
    return {name: say[name]() for name in names}


def _nearest(train: Sequence[Row], rows: Sequence[Row]) -> list[list[Row]]:
    retriever = Retriever(train)
    return [retriever.nearest(row, 1) for row in rows]


def majority(train: Sequence[Row]) -> str:
    """The commonest completion; of equals, the first in the order of text."""
    return _commonest(row.reference for row in train)


def skeleton(train: Sequence[Row]) -> str:
    """The object of the fields that most completions hold, each with its commonest value.

    Where no field is held by half of them, or completions are no JSON, it is the commonest completion.
    """
    values = []
    for row in train:
        try:
            values.append(loads(row.reference))
        except ValueError:
            return majority(train)
    common = _common(values)
    if common == {}:
        return majority(train)
    return json.dumps(common, ensure_ascii=False, separators=(",", ":"))


def _common(values: Sequence[Any]) -> Any:
    """The commonest of some values; of objects, field by field in the order in which fields came."""
    objects = [value for value in values if isinstance(value, dict)]
    if 2 * len(objects) <= len(values):
        return json.loads(_commonest(json.dumps(value, sort_keys=True, ensure_ascii=False) for value in values))
    held = Counter(key for value in objects for key in value)
    return {key: _common([v[key] for v in objects if key in v]) for key, n in held.items() if 2 * n >= len(objects)}


def _commonest(texts: Any) -> str:
    counts = Counter(texts)
    return str(min(counts, key=lambda text: (-counts[text], text)))
