"""What is wrong with a logged answer: deterministic labels, and what they say of its form, its content and its facts.

No model is asked. An answer is read strictly, as a program would, and leniently, as a person would; what only the
person could use is a fault of form. Each value that is wrong is looked for in all that stood before the model: what was
there and was not used was read badly, what was not there could not be known. Labels are the classes of `failures.py`.
"""

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from jsonschema.exceptions import ValidationError

from tunesmith.evaluate.score_form import leaves, parse_lenient, parse_strict
from tunesmith.failures import STOPPED, ordered
from tunesmith.logs import LogRow
from tunesmith.schema import validator_of_text

BY_GRAMMAR = frozenset(
    {"wrapped", "unparseable", "missing_required", "unexpected_key", "wrong_type", "label_surface", "out_of_set"}
    | {"constraint"}
)
"""Faults of form that decoding by a schema cannot make."""

Kind = Literal["label", "copied", "free"]
"""What the values of a path are: of a small set, read from a text, or neither as far as the log shows."""

Facts = Literal["given", "missing", "unknown"]

COPIED = 0.8
"""Share of a path's references that stand in a text of their rows, from which its values are read, not composed."""
DISTINCT = 16
"""Characters from which a value is not the same as another's by chance."""
ENOUGH = 10
"""Right answers that suffice to tell a path's kind by them alone."""
LABEL_VALUES, LABEL_SHARE = 20, 0.1
"""Most distinct references of a path of labels, and most of them for each row that has one."""


@dataclass(frozen=True)
class Fault:
    """A value of the reference that the answer has not."""

    path: str
    wanted: Any
    got: Any
    """None where it is left out, or null."""


@dataclass(frozen=True)
class Judged:
    """One logged answer, judged."""

    right: bool
    labels: tuple[str, ...] = ()
    form_right: bool = True
    """Whether a program could take it as it is."""
    content_right: bool = True
    """Whether a person would find the reference in it."""
    facts: Facts = "given"
    """Whether what is wrong in it stood before the model."""
    by_grammar: bool = False
    """Whether all that is wrong with it is what decoding by a schema cannot make."""
    faults: tuple[Fault, ...] = ()

    @property
    def failure(self) -> str | None:
        """The first label."""
        return self.labels[0] if self.labels else None


def judge_log(rows: Sequence[LogRow]) -> list[Judged | None]:
    """Judge every row that has a reference or the log's own judgement; the others are None."""
    kinds = kinds_of(rows)
    return [judge(row, kinds) for row in rows]


def judge(row: LogRow, kinds: dict[str, Kind]) -> Judged | None:
    """Judge one answer against its row; `kinds` are those of the log's paths."""
    if row.reference is None:
        return Judged(right=True) if row.correct else None
    wanted = values(row.reference)
    got, form = _read(row, isinstance(_object(row.reference), dict))
    faults = _faults(wanted, got) if got is not None else []
    extra = [path for path, value in (got or {}).items() if path not in wanted and value is not None]
    surface = [fault for fault in faults if _same(fault)]
    real = [fault for fault in faults if not _same(fault)]
    if got is None:
        # Nothing could be taken out of it. Where it says all that was wanted all the same, only its form is wrong.
        said = all(stands_in(value, row.output) for value in wanted.values() if value is not None)
        real = [] if said and row.output.strip() else [Fault(path, value, None) for path, value in wanted.items()]
    if extra and not real and "unexpected_key" not in form:
        form.append("extra_field")
    # A number for a text of it is a fault of type alone, which a schema forbids.
    surface = [fault for fault in surface if "wrong_type" not in form or str(fault.got) != str(fault.wanted)]
    labels = [*form, *(["normalisation_only"] if surface else [])]
    labels += [name for fault in real for name in _content(fault, row, kinds)]
    if row.correct or (row.correct is None and not labels and not faults):
        return Judged(right=True)
    if not labels:
        labels = ["wrong_value"]  # the log says that it is wrong, and nothing else does
    stopped = bool(STOPPED & set(form))
    formal = set(form) - {"extra_field"}
    return Judged(
        right=False,
        labels=tuple(ordered(labels)),
        form_right=not formal and not surface,
        content_right=not real and "extra_field" not in form and set(labels) != {"wrong_value"},
        facts="given" if stopped and got is None else _facts(real, row, kinds),
        by_grammar=bool(formal) and formal <= BY_GRAMMAR and not surface,
        faults=tuple(real),
    )


def kinds_of(rows: Sequence[LogRow]) -> dict[str, Kind]:
    """What the values of each path are, from all references of a log and their schemas."""
    seen: dict[str, list[str]] = defaultdict(list)
    read: dict[str, list[bool]] = defaultdict(list)
    answered: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        if row.reference is None:
            continue
        text = "\n".join([row.given, *row.gold])
        for path, value in values(row.reference).items():
            if value is not None:
                seen[place(path)].append(json.dumps(value))
                read[place(path)].append(stands_in(value, text))
                answered[place(path)].append(stands_in(value, row.output))
    kinds: dict[str, Kind] = {}
    for path, held in seen.items():
        few = len(set(held)) <= min(LABEL_VALUES, LABEL_SHARE * len(held))
        # Where answers are right the facts were there, so those rows tell best where the facts come from.
        told = [there for there, right in zip(read[path], answered[path], strict=True) if right]
        told = told if len(told) >= ENOUGH else read[path]
        # A label may happen to stand in a text; a value that is read nearly always does.
        kinds[path] = "copied" if sum(told) >= COPIED * len(told) else "label" if few else "free"
    return kinds


def place(path: str) -> str:
    """A path without its places in lists: what one says of a path holds for all of them."""
    return re.sub(r"\[\d+\]", "[]", path)


def values(reference: str) -> dict[str, Any]:
    """The values of a reference by path; of one that is no JSON object, the text itself at the empty path."""
    parsed = _object(reference)
    if not isinstance(parsed, dict):
        return {"": reference}
    return {path: json.loads(value) for path, value in leaves(parsed)}


# ---------------------------------------------------------------------- form


def _object(text: str) -> Any:
    try:
        value = parse_strict(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _read(row: LogRow, is_json: bool) -> tuple[dict[str, Any] | None, list[str]]:
    """The values that can be taken out of an output, and the labels of its form."""
    text, form = row.output, []
    if row.finish and "time" in row.finish.casefold():
        form.append("timeout")
    if not text.strip():
        return None, [*form, "empty"]
    if row.finish in ("length", "max_tokens"):
        form.append("truncated")
    if _loops(text):
        form.append("loop")
    if not is_json:
        return {"": text.strip()}, form + _said(text, row)
    strict = _object(text)
    if strict is None:
        try:
            lenient = parse_lenient(text)
        except ValueError:
            lenient = None
        if not isinstance(lenient, dict):
            return None, [*form, *(["refused"] if REFUSES.search(text) else ["unparseable"])]
        form.append("wrapped")
        strict = lenient
    if row.schema is not None:
        form += ordered(_schema_label(error) for error in _errors(row.schema, strict))
    return {path: json.loads(value) for path, value in leaves(strict)}, form


REFUSES = re.compile(
    r"\b(?:i(?:'|\u2019)?m sorry|i am sorry|i can(?:no|')t|i can\u2019t|i(?:'m| am) (?:not able|unable)|as an ai)\b",
    re.IGNORECASE,
)


def _said(text: str, row: LogRow) -> list[str]:
    """Labels of how a text that is no JSON says it."""
    if row.reference is None or fold(text) == fold(row.reference):
        return []
    if stands_in(row.reference, text):
        return ["verbose"]
    return ["refused"] if REFUSES.search(text) and not REFUSES.search(row.reference) else []


def _loops(text: str) -> bool:
    """Whether eight words in a row come back at least four times."""
    words = text.split()
    spans = Counter(tuple(words[start : start + 8]) for start in range(len(words) - 7))
    return bool(spans) and max(spans.values()) >= 4


def _errors(schema: dict[str, Any], value: Any) -> Iterator[ValidationError]:
    """What a schema finds; of alternatives, what is wrong with the one that fits best."""
    errors = list(validator_of_text(json.dumps(schema)).iter_errors(value))
    while errors:
        error = errors.pop()
        branches: dict[Any, list[ValidationError]] = defaultdict(list)
        for inner in error.context or ():
            branches[inner.schema_path[0]].append(inner)
        if branches:
            best = min(branches.values(), key=len)
            errors += best
        else:
            yield error


def _schema_label(error: ValidationError) -> str:
    names = {"required": "missing_required", "additionalProperties": "unexpected_key", "type": "wrong_type"}
    keyword = str(error.validator)
    if keyword in ("enum", "const"):
        allowed: Any = error.validator_value
        near = {fold(str(value)) for value in (allowed if keyword == "enum" else [allowed])}
        return "label_surface" if fold(str(error.instance)) in near else "out_of_set"
    return names.get(keyword, "unexpected_key" if keyword == "unevaluatedProperties" else "constraint")


# ---------------------------------------------------------------------- content


def _faults(wanted: dict[str, Any], got: dict[str, Any]) -> list[Fault]:
    """Where an answer differs from its reference."""
    return [
        Fault(path, value, got.get(path))
        for path, value in wanted.items()
        if path not in got or got[path] != value or isinstance(got[path], bool) != isinstance(value, bool)
    ]


def _same(fault: Fault) -> bool:
    """Whether two values are one, differently written; for texts also whether the wanted one stands in the other."""
    if fault.got is None or fault.wanted is None:
        return False
    wanted, got = str(fault.wanted), str(fault.got)
    return fold(wanted) == fold(got) or (fault.path == "" and stands_in(wanted, got))


def _content(fault: Fault, row: LogRow, kinds: dict[str, Kind]) -> list[str]:
    """Labels of one value that is wrong."""
    if fault.wanted is None:
        return ["not_abstained"]
    if kinds.get(place(fault.path)) == "label":
        return ["wrong_label"]
    labels = []
    got = None if fault.got is None else str(fault.got)
    if got is not None and any(fold(got) == fold(version) for version in row.versions):
        labels.append("stale")
    if is_given(fault.wanted, row):
        in_passage = any(stands_in(fault.wanted, passage) for passage in row.context)
        labels.append("retrieved_not_used" if in_passage else "missing_available" if got is None else "wrong_value")
        if got is not None and stands_in(got, row.given):
            labels.append("wrong_in_source")
    elif kinds.get(place(fault.path)) == "copied" or row.gold:
        if row.context and any(stands_in(version, "\n".join(row.context)) for version in row.versions):
            labels.append("stale_index")
        labels.append("not_retrieved" if row.context else "missing_unavailable")
    if got is not None and not stands_in(got, "\n".join([row.given, *row.versions])):
        labels.append("hallucinated")
    return labels or ["wrong_value"]


def _facts(faults: Iterable[Fault], row: LogRow, kinds: dict[str, Kind]) -> Facts:
    """Whether the values that an answer has not stood before the model."""
    answer: Facts = "given"
    for fault in faults:
        if fault.wanted is None or kinds.get(place(fault.path)) == "label" or is_given(fault.wanted, row):
            continue
        if kinds.get(place(fault.path)) == "copied" or row.gold or row.versions:
            return "missing"
        answer = "unknown"
    return answer


def is_given(value: Any, row: LogRow) -> bool:
    """Whether a value stood before the model where it can be told to be the one that is wanted.

    A short one, such as `3 days`, may stand anywhere. Where the text that it is read from is named, the line of it that
    holds the value must have stood there.
    """
    if not stands_in(value, row.given):
        return False
    lines = [line for text in row.gold for line in text.splitlines() if stands_in(value, line)]
    if not lines or len(fold(str(value))) >= DISTINCT:
        return True
    given = f" {fold(row.given)} "
    return any(f" {fold(line)} " in given for line in lines)


# ---------------------------------------------------------------------- text


@lru_cache(maxsize=1024)
def fold(text: str) -> str:
    """Words and numbers between single spaces: case, punctuation, thousands commas and trailing zeros folded away.

    A minus before a number stays, and so does the place of a decimal point: `1,200.00` is `1200`, and `1.5` is not
    `15`.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    folded = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", folded)
    return " ".join(_number(word) for word in re.findall(r"(?<!\w)-\d+(?:\.\d+)?|\d+(?:\.\d+)?|[^\W\d_]+", folded))


def _number(word: str) -> str:
    return word.rstrip("0").rstrip(".") if "." in word else word


def stands_in(value: Any, text: str) -> bool:
    """Whether a value stands in a text as whole words, however it is written."""
    if isinstance(value, bool):
        return False
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    wanted = fold(str(value))
    return f" {wanted} " in f" {fold(text)} " if wanted else str(value).strip() in text
