"""How an answer is written, before what it says: read as a program would, and the faults of form by name.

Strict is what a program would see: `json.loads` of the whole answer. Lenient takes the object out of a fence or of
prose and is reported apart, because a wrapper is a fault of form, not of content. All that counts is scored strictly.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import jsonschema
from jsonschema.exceptions import best_match

Validator = jsonschema.Draft202012Validator
Leaf = tuple[str, str]
"""A dotted path and the canonical JSON of the value there."""

NOTHING: Final = object()
"""What an answer says that cannot be read; no JSON value is it, null neither."""

PLAIN_KEY = re.compile(r"[^.\[\]]+")
NUMBER = re.compile(r"[-+]?(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|0|[1-9][0-9]*)(?:\.[0-9]+)?")
LOOP_REPEATS, LOOP_CHARACTERS, LONGEST_PERIOD = 4, 40, 256

OF_SCHEMA = {
    "required": "missing_required",
    "minProperties": "missing_required",
    "additionalProperties": "unexpected_key",
    "unevaluatedProperties": "unexpected_key",
    "propertyNames": "unexpected_key",
    "type": "wrong_type",
    "enum": "out_of_set",
    "const": "out_of_set",
}
"""Keywords of JSON Schema and the failure that a breach of each is; of any other it is `constraint`."""
BREACHES = frozenset(OF_SCHEMA.values()) | {"label_surface", "constraint"}


@dataclass(frozen=True)
class Form:
    """An answer as it was read. What could not be read is NOTHING."""

    strict: Any
    lenient: Any
    labels: frozenset[str]
    """Faults of form."""


def read_object(text: str, ended: bool, validator: Validator | None) -> Form:
    """Read an answer that should be one JSON object, and one that `validator` takes where there is one."""
    strict, lenient = _or_nothing(parse_strict, text), _or_nothing(parse_lenient, text)
    strict = strict if isinstance(strict, dict) else NOTHING
    labels = transport(text, ended)
    if strict is NOTHING:
        labels |= {"unparseable" if lenient is NOTHING else "wrapped"}
    elif validator is not None:
        labels |= breaches(validator, strict)
    return Form(strict, lenient, frozenset(labels))


def read_field(text: str, ended: bool, field: str | None, validator: Validator | None) -> Form:
    """Read an answer that is one value: the only one of a JSON object, or without a `field` the text itself.

    Of text the white space around it is no part.
    """
    if field is None:
        value = text.strip() or NOTHING
        return Form(value, value, frozenset(transport(text, ended)))
    whole = read_object(text, ended, validator)
    labels = set(whole.labels)
    strict = NOTHING
    if whole.strict is not NOTHING:
        labels |= {"missing_required"} if field not in whole.strict else set()
        labels |= {"unexpected_key"} if whole.strict.keys() - {field} else set()
        strict = whole.strict[field] if whole.strict.keys() == {field} else NOTHING
    lenient = whole.lenient.get(field, NOTHING) if whole.lenient is not NOTHING else NOTHING
    return Form(strict, lenient, frozenset(labels))


def reference_object(reference: str) -> dict[str, Any]:
    """The object that a reference is.

    Raises:
        ValueError: it is none.
    """
    value = _or_nothing(parse_strict, reference)
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    return value


def reference_field(reference: str, field: str | None) -> Any:
    """The value that a reference holds.

    Raises:
        ValueError: it is not an object of that one key.
    """
    if field is None:
        return reference.strip()
    value = reference_object(reference)
    if value.keys() != {field}:
        raise ValueError(f"is not a JSON object of the one key {field!r}")
    return value[field]


def reference_text(reference: str, field: str | None) -> str:
    """The text that a reference holds.

    Raises:
        ValueError: it holds none.
    """
    value = reference_field(reference, field)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"holds no text{f' under {field!r}' if field else ''}")
    return value


def transport(text: str, ended: bool) -> set[str]:
    """What can be wrong with an answer whatever it says: nothing there, cut off, or going round."""
    found = {"empty"} if not text.strip() else set()
    if not ended:
        found |= {"truncated"}
    if loops(text):
        found |= {"loop"}
    return found


def loops(text: str) -> bool:
    """Whether an answer ends in one piece over and over: four times or more, forty characters or more."""
    tail = text.rstrip()[-LOOP_REPEATS * LONGEST_PERIOD :]
    for period in range(1, min(LONGEST_PERIOD, len(tail) // LOOP_REPEATS) + 1):
        span = max(LOOP_REPEATS * period, LOOP_CHARACTERS)
        part = tail[-span:]
        if len(part) == span and part[period:] == part[:-period]:
            return True
    return False


def breaches(validator: Validator, value: Any) -> set[str]:
    """Which kinds of breach of its schema a value has; none where it is valid."""
    found = set()
    try:
        for error in validator.iter_errors(value):
            # Of `anyOf` and its like the breach that is nearest to what was meant.
            fault = best_match([error]) or error
            names = {OF_SCHEMA.get(str(part.validator), "constraint") for part in fault.context or [fault]}
            name = names.pop() if len(names) == 1 else "constraint"
            if fault.validator == "enum" and canonical(fault.instance) in map(canonical, fault.validator_value):
                name = "label_surface"
            found.add(name)
    except (ArithmeticError, RecursionError):  # 1e999 divided by `multipleOf`; deep nesting under a recursive schema
        found.add("constraint")
    return found


# ---------------------------------------------------------------------- JSON


def parse_strict(text: str) -> Any:
    """Parse JSON with no leniency: no NaN, no key twice. Raises ValueError."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("nested too deep") from None


def parse_lenient(text: str) -> Any:
    """Parse the first JSON object that stands anywhere in the text. Raises ValueError."""
    decoder = json.JSONDecoder()
    for start, character in enumerate(text):
        if character == "{":
            try:
                value, _ = decoder.raw_decode(text, start)
            except (ValueError, RecursionError):
                continue
            return value
    raise ValueError("holds no JSON object")


def leaves(value: Any, path: str = "") -> Iterator[Leaf]:
    """The values of a JSON object with their paths; an empty container is a value itself.

    A key that could be read as more than one step is quoted in brackets, so that no two places share a path.
    """
    if isinstance(value, dict) and value:
        for key, part in value.items():
            step = f".{key}" if PLAIN_KEY.fullmatch(key) else f"[{json.dumps(key, ensure_ascii=False)}]"
            yield from leaves(part, path + step if path else step.removeprefix("."))
    elif isinstance(value, list) and value:
        for index, part in enumerate(value):
            yield from leaves(part, f"{path}[{index}]")
    else:
        yield path, json.dumps(value, sort_keys=True, ensure_ascii=False)


def same_json(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: `1` is neither `1.0` nor `true`, the order of keys does not matter."""
    return one is not NOTHING and other is not NOTHING and set(leaves([one])) == set(leaves([other]))


def _or_nothing(parse: Any, text: str) -> Any:
    """The parsed value; NOTHING if it does not parse, is too deep to walk, or holds half a surrogate pair."""
    try:
        value = parse(text)
        for path, leaf in leaves(value):
            (path + leaf).encode()
    except (ValueError, RecursionError):
        return NOTHING
    return value


# ---------------------------------------------------------------------- text


def folded(text: str) -> str:
    """Compatibility forms, case and white space folded."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def canonical(value: Any) -> str:
    """A value in the one form that its written forms share: folded, without marks around it, a number as one.

    `1,200`, `1200` and `1200.0` are one number; `007` is no number, so it is not 7. A number and its text are one.
    """
    if isinstance(value, str):
        whole = folded(value)
        text = whole.strip(" .,;:!?\"'\u2018\u2019\u201c\u201d") or whole
    else:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    if not NUMBER.fullmatch(text):
        return text
    whole, _, part = text.replace(",", "").removeprefix("+").partition(".")
    part = part.rstrip("0")
    return f"{whole}.{part}" if part else whole


def stands_in(text: str, folded_source: str) -> bool:
    """Whether a text stands in a folded one and is no part of a longer word or number there."""
    wanted = folded(text)
    if not wanted:
        return False
    before = r"(?<![0-9a-z_])" if re.match(r"[0-9a-z_]", wanted) else ""
    after = r"(?![0-9a-z_])" if re.match(r"[0-9a-z_]", wanted[-1]) else ""
    # Nor of `3.5` or `3,500` where `3` or `5` is looked for.
    before += r"(?<![0-9][.,])" if wanted[0].isdigit() else ""
    after += r"(?![.,][0-9])" if wanted[-1].isdigit() else ""
    return re.search(before + re.escape(wanted) + after, folded_source) is not None
