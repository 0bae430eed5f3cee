"""Score one answer that should be one JSON object.

Strict is what a program would see: `json.loads` of the whole answer. Lenient takes the object out of a fence or of
prose and is reported apart, because a wrapper is a fault of form, not of content. All else is scored strictly.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema

from tunesmith.rows import Row

Leaf = tuple[str, str]
"""A dotted path and the canonical JSON of the value there."""

PLAIN_KEY = re.compile(r"[^.\[\]]+")

FAILURE_CLASSES = (
    "empty",
    "truncated",
    "unparseable",
    "wrapped",
    "off_schema",
    "hallucinated",
    "missing_field",
    "extra_field",
    "wrong_value",
)


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


def score(text: str, ended: bool, row: Row, validator: jsonschema.Draft202012Validator) -> dict[str, Any]:
    """Score an answer against a row's reference.

    Returns scores in 0..1 (`exact_match`, `field_f1`, `json_strict`, `json_lenient`, `exact_match_lenient`,
    `schema_valid`, `hallucinated`), the paths that were right, wrong and missed, and the class of the first failure.
    `hallucinated` is 1 if any wrong string value does not stand in the user's text.
    """
    reference = json.loads(row.reference)
    wanted = set(leaves(reference))
    strict, lenient = _or_none(parse_strict, text), _or_none(parse_lenient, text)
    is_object = isinstance(strict, dict)
    got = set(leaves(strict)) if is_object else set()
    right, wrong, missed = got & wanted, got - wanted, wanted - got
    invented = [path for path, value in wrong if value.startswith('"') and json.loads(value) not in row.source]
    schema_valid = is_object and _is_valid(validator, strict)
    exact = is_object and got == wanted
    return {
        "exact_match": float(exact),
        "field_f1": 2 * len(right) / (len(got) + len(wanted)) if got or wanted else 1.0,
        "json_strict": float(is_object),
        "json_lenient": float(isinstance(lenient, dict)),
        "exact_match_lenient": float(isinstance(lenient, dict) and set(leaves(lenient)) == wanted),
        "schema_valid": float(schema_valid),
        "hallucinated": float(bool(invented)),
        "fields": {
            "right": sorted(path for path, _ in right),
            "wrong": sorted(path for path, _ in wrong),
            "missed": sorted(path for path, _ in missed),
        },
        "failure": None if exact else _failure(text, ended, is_object, lenient, schema_valid, invented, wrong, missed),
    }


def _failure(
    text: str,
    ended: bool,
    is_object: bool,
    lenient: Any,
    schema_valid: bool,
    invented: list[str],
    wrong: set[Leaf],
    missed: set[Leaf],
) -> str:
    """The first class of FAILURE_CLASSES that fits: form before content."""
    wrong_paths, missed_paths = {path for path, _ in wrong}, {path for path, _ in missed}
    tests = {
        "empty": not text.strip(),
        "truncated": not ended,
        "unparseable": not is_object and not isinstance(lenient, dict),
        "wrapped": not is_object,
        "off_schema": not schema_valid,
        "hallucinated": bool(invented),
        "missing_field": bool(missed_paths - wrong_paths),
        "extra_field": bool(wrong_paths - missed_paths),
    }
    return next((name for name in FAILURE_CLASSES[:-1] if tests[name]), FAILURE_CLASSES[-1])


def _is_valid(validator: jsonschema.Draft202012Validator, value: Any) -> bool:
    try:
        return bool(validator.is_valid(value))
    except (ArithmeticError, RecursionError):  # 1e999 divided by `multipleOf`; deep nesting under a recursive schema
        return False


def _or_none(parse: Any, text: str) -> Any:
    """The parsed value; None if it does not parse, is nested too deep to walk, or holds half a surrogate pair."""
    try:
        value = parse(text)
        for path, leaf in leaves(value):
            (path + leaf).encode()
    except (ValueError, RecursionError):
        return None
    return value
