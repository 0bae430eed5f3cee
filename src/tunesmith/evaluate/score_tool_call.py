"""Score one answer that should be function calls, or none.

The errors stand in an order, after the Berkeley Function Calling Leaderboard's checker: read at all, a call where none
was wanted, how many calls, which functions, arguments missing, arguments in excess, their types, their values.

How arguments are compared. `exact_match`: the same JSON, calls in the order of the reference; `5` is not `5.0`.
`calls_match`: calls in any order, keys in any order, lists in theirs; a whole number may stand for a fraction of the
same value (`5` for `5.0`), never the other way round; `"5"` is no number and `true` none either; texts to the letter.
`calls_acceptable`: as `calls_match`, with any value that `meta.acceptable` lists for the argument, `""` there meaning
that it may be left out; texts without case, spaces and the marks , . / - _ * ^ as the leaderboard compares them.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from tunesmith.evaluate.score_form import NOTHING, Form, Validator, parse_strict, read_field, reference_field, same_json
from tunesmith.rows import Row, arguments_of, function_of
from tunesmith.scoring import ToolCallScore

Call = tuple[str, dict[str, Any]]
"""A function's name and its arguments."""

BLOCK = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "float": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "tuple": (list,),
    "object": (dict,),
    "dict": (dict,),
}
"""Of JSON Schema's types and the leaderboard's, those that a value is held to; `any` and others are held to none."""


def score(text: str, ended: bool, row: Row, settings: ToolCallScore, validator: Validator | None) -> dict[str, Any]:
    """Score an answer against a row's calls.

    Returns the metrics of ToolCallScore, the failure classes, and the arguments that were right, wrong and missed, as
    `function.argument`.

    Raises:
        ValueError: the reference is no list of calls.
    """
    wanted = reference_calls(row, settings)
    form, got = read_calls(text, ended, settings, validator)
    calls = got or []
    acceptable = _acceptable(row, wanted)
    exact = got is not None and same_json([list(call) for call in calls], [list(call) for call in wanted])
    match = got is not None and _paired(calls, wanted, same_call)
    names = got is not None and Counter(name for name, _ in calls) == Counter(name for name, _ in wanted)
    fields = _fields(calls, wanted)
    right, wrong, missed = (len(fields[kind]) for kind in ("right", "wrong", "missed"))
    f1 = 2 * right / (2 * right + wrong + missed) if right + wrong + missed else 1.0
    labels: set[str] = set()
    if not exact:
        labels = set(form.labels)
        labels |= (
            {"order_only"}
            if match
            else faults(calls, wanted, functions_of(row, settings))
            if got is not None
            else set()
        )
    return {
        "scores": {
            "exact_match": float(exact),
            "calls_match": float(match),
            "calls_acceptable": float(match or (got is not None and _paired(calls, acceptable, fits))),
            "argument_f1": f1 if got is not None else 0.0,
            "decoded": float(got is not None),
            "function_names": float(names),
            "call_decision": float(got is not None and bool(calls) == bool(wanted)),
        },
        "answer": {"said": len(calls) if got is not None else None, "wanted": len(wanted)},
        "fields": fields,
        "labels": labels,
    }


def corpus(lines: Sequence[Mapping[str, Any]], settings: ToolCallScore) -> dict[str, float]:
    """Of the rows that want no call the share without one, and of the others the share with one."""
    none, some = ([line for line in lines if bool(line["answer"]["wanted"]) is wants] for wants in (False, True))
    found = {"irrelevance": sum(line["answer"]["said"] == 0 for line in none) / len(none)} if none else {}
    return found | ({"relevance": sum(bool(line["answer"]["said"]) for line in some) / len(some)} if some else {})


# ---------------------------------------------------------------------- reading


def reference_calls(row: Row, settings: ToolCallScore) -> list[Call]:
    """The calls that a row wants: its completion's `tool_calls`, or what its text holds.

    Raises:
        ValueError: the text holds no list of calls.
    """
    if row.completion.tool_calls is not None:
        calls = as_calls([_plain_call(call) for call in row.completion.tool_calls])
    elif settings.field is None:
        _, calls = read_calls(row.reference, True, settings, None)
    else:
        calls = as_calls(reference_field(row.reference, settings.field))
    if calls is None:
        raise ValueError("holds no list of calls, each with a name and arguments")
    return calls


def read_calls(
    text: str, ended: bool, settings: ToolCallScore, validator: Validator | None
) -> tuple[Form, list[Call] | None]:
    """The calls that an answer makes, none where they cannot be read; an answer in words makes no call."""
    form = read_field(text, ended, settings.field, validator)
    if form.strict is NOTHING:
        return form, None
    if settings.field is not None:
        calls = as_calls(form.strict)
        return form if calls is not None else _with(form, "wrong_type"), calls
    blocks = BLOCK.findall(text)
    if blocks or "<tool_call>" in text:
        outside = BLOCK.sub("", text).strip()
        parsed = [_parsed(block) for block in blocks]
        calls = None if outside or NOTHING in parsed else as_calls(parsed)
        return form if calls is not None else _with(form, "wrapped" if outside and blocks else "unparseable"), calls
    value = _parsed(text)
    if value is NOTHING:
        # Words are no call. What begins as JSON was to be one.
        words = not text.lstrip().startswith(("{", "["))
        return form if words else _with(form, "unparseable"), [] if words else None
    calls = as_calls(value if isinstance(value, list) else [value])
    return form if calls is not None else _with(form, "wrong_type"), calls


def as_calls(value: Any) -> list[Call] | None:
    """A list of `{"name", "arguments"}` as calls, with or without `{"type": "function"}` around; None if it is none."""
    if not isinstance(value, list):
        return None
    calls = []
    for part in value:
        call = _plain_call(part) if isinstance(part, dict) else {}
        name, arguments = call.get("name"), call.get("arguments", {})
        if not isinstance(name, str) or not isinstance(arguments, dict) or call.keys() - {"name", "arguments", "id"}:
            return None
        calls.append((name, arguments))
    return calls


def _plain_call(call: dict[str, Any]) -> dict[str, Any]:
    function = function_of(call)
    return {**function, "arguments": arguments_of(function)} if "arguments" in function else function


def functions_of(row: Row, settings: ToolCallScore) -> dict[str, dict[str, Any]]:
    """The functions that a row offers, by name, with their parameters; empty where it is not known."""
    if settings.functions == "tools":
        offered: Any = [function_of(tool) for tool in row.tools or ()]
    else:
        try:
            offered, _ = json.JSONDecoder().raw_decode(row.source.lstrip())
        except (ValueError, RecursionError):
            offered = []
    found = {}
    for function in offered if isinstance(offered, list) else []:
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            parameters = function.get("parameters")
            found[function["name"]] = parameters if isinstance(parameters, dict) else {}
    return found


def _parsed(text: str) -> Any:
    try:
        return parse_strict(text)
    except ValueError:
        return NOTHING


def _with(form: Form, label: str) -> Form:
    return Form(form.strict, form.lenient, form.labels | {label})


# ---------------------------------------------------------------------- comparing


def same_value(got: Any, wanted: Any) -> bool:
    """Whether a value is the one that is wanted, by type too; a whole number may stand for a fraction."""
    if isinstance(wanted, float) and type(got) is int:
        return got == wanted
    if type(got) is not type(wanted):
        return False
    if isinstance(wanted, dict):
        return got.keys() == wanted.keys() and all(same_value(got[key], value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return len(got) == len(wanted) and all(same_value(a, b) for a, b in zip(got, wanted, strict=True))
    return bool(got == wanted)


def same_call(got: Call, wanted: Call) -> bool:
    """Whether a call is the one that is wanted."""
    return got[0] == wanted[0] and same_value(got[1], wanted[1])


Acceptable = tuple[str, dict[str, list[Any]]]
"""A function's name and for each argument the values that it may have."""


def fits(got: Call, acceptable: Acceptable) -> bool:
    """Whether each argument of a call has an acceptable value, and those left out may be."""
    name, values = acceptable
    return got[0] == name and _fits(got[1], values)


def _fits(arguments: dict[str, Any], values: Mapping[str, list[Any]]) -> bool:
    if not arguments.keys() <= values.keys():
        return False
    return all(
        any(_loosely(arguments[key], value) for value in allowed) if key in arguments else "" in allowed
        for key, allowed in values.items()
    )


def _loosely(got: Any, wanted: Any) -> bool:
    if isinstance(got, str) and isinstance(wanted, str):
        return loose(got) == loose(wanted)
    if isinstance(got, list) and isinstance(wanted, list):
        return len(got) == len(wanted) and all(_loosely(a, b) for a, b in zip(got, wanted, strict=True))
    if isinstance(got, dict) and isinstance(wanted, dict):
        # Inside an object each key has a list of acceptable values again.
        return all(isinstance(value, list) for value in wanted.values()) and _fits(got, wanted)
    return same_value(got, wanted)


def loose(text: str) -> str:
    """A text without case, spaces and the marks that the leaderboard does not count."""
    return re.sub(r"[ ,./\-_*^]", "", text).casefold().replace("'", '"')


def _acceptable(row: Row, wanted: Sequence[Call]) -> list[Acceptable]:
    """What `meta.acceptable` lists, or of each argument the reference's value alone."""
    listed = (row.meta or {}).get("acceptable")
    if isinstance(listed, list) and all(isinstance(one, dict) and len(one) == 1 for one in listed):
        return [next(iter(one.items())) for one in listed]
    return [(name, {key: [value] for key, value in arguments.items()}) for name, arguments in wanted]


def _paired(got: Sequence[Any], wanted: Sequence[Any], same: Callable[[Any, Any], bool]) -> bool:
    """Whether the calls are those wanted, one for one, in any order."""
    if len(got) != len(wanted) or not got:
        return len(got) == len(wanted)
    agree = np.array([[same(a, b) for b in wanted] for a in got])
    return bool(agree[linear_sum_assignment(agree, maximize=True)].all())


def _matched(got: Sequence[Call], wanted: Sequence[Call]) -> tuple[list[tuple[Call, Call]], list[Call], list[Call]]:
    """Calls of one function laid beside those wanted so that most arguments agree; and those left over."""
    if not got or not wanted:
        return [], list(got), list(wanted)
    worth = np.array([[_alike(a, b) for b in wanted] for a in got])
    pairs = [(int(i), int(j)) for i, j in zip(*linear_sum_assignment(worth, maximize=True), strict=True)]
    pairs = [(i, j) for i, j in pairs if got[i][0] == wanted[j][0]]
    mine, theirs = {i for i, _ in pairs}, {j for _, j in pairs}
    return (
        [(got[i], wanted[j]) for i, j in pairs],
        [call for i, call in enumerate(got) if i not in mine],
        [call for j, call in enumerate(wanted) if j not in theirs],
    )


def _alike(got: Call, wanted: Call) -> float:
    if got[0] != wanted[0]:
        return 0.0
    same = sum(key in got[1] and same_value(got[1][key], value) for key, value in wanted[1].items())
    return 1.0 + same / (1 + len(wanted[1]))


def faults(got: Sequence[Call], wanted: Sequence[Call], functions: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Every kind of error that tells the calls from those wanted."""
    if not wanted:
        return {"call_not_wanted"}
    if not got:
        return {"no_call"}
    found = {"wrong_count"} if len(got) != len(wanted) else set()
    pairs, extra, _ = _matched(got, wanted)
    for name, _ in extra:
        if len(got) == len(wanted) or name not in {name for name, _ in wanted}:
            found.add("unknown_function" if functions and name not in functions else "wrong_function")
    for (name, arguments), (_, reference) in pairs:
        declared = functions.get(name, {}).get("properties")
        found |= {"missing_argument"} if reference.keys() - arguments.keys() else set()
        found |= {"unexpected_argument"} if arguments.keys() - reference.keys() else set()
        for key in arguments.keys() & reference.keys():
            if not same_value(arguments[key], reference[key]):
                kinds = _kinds(declared.get(key) if isinstance(declared, dict) else None, reference[key])
                typed = kinds is None or _is_of(arguments[key], kinds)
                found.add("wrong_argument" if typed else "wrong_argument_type")
    return found or {"wrong_argument"}


def _kinds(declared: Any, reference: Any) -> tuple[type, ...] | None:
    """What a value may be: as its function declares, or else as the reference is."""
    if isinstance(declared, dict) and isinstance(declared.get("type"), str):
        return TYPES.get(declared["type"])
    return (int, float) if isinstance(reference, float) else (type(reference),)


def _is_of(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def _fields(got: Sequence[Call], wanted: Sequence[Call]) -> dict[str, list[str]]:
    """Arguments right, wrong and missed; a call without arguments counts as one by its name."""
    pairs, extra, missing = _matched(got, wanted)
    fields: dict[str, list[str]] = {"right": [], "wrong": [], "missed": []}
    for (name, arguments), (_, reference) in pairs:
        if not arguments and not reference:
            fields["right"].append(name)
        for key in arguments.keys() | reference.keys():
            right = key in arguments and key in reference and same_value(arguments[key], reference[key])
            fields["right"] += [f"{name}.{key}"] if right else []
            fields["wrong"] += [f"{name}.{key}"] if not right and key in arguments else []
            fields["missed"] += [f"{name}.{key}"] if not right and key in reference else []
    for calls, kind in ((extra, "wrong"), (missing, "missed")):
        for name, arguments in calls:
            fields[kind] += [f"{name}.{key}" for key in arguments] or [name]
    return {kind: sorted(paths) for kind, paths in fields.items()}


def written(calls: Sequence[dict[str, Any]]) -> str:
    """Calls of a completion as a list in JSON."""
    return json.dumps([_plain_call(call) for call in calls], ensure_ascii=False)
