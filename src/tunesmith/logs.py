"""A user's own log: what was asked, what came back, what should have come back.

One JSON object a line. Names are taken leniently (several words for one thing, OpenAI's request and response as they
are logged); values strictly: every line that cannot be read is named, and a log with one such line is refused.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunesmith.errors import UserError
from tunesmith.files import sha256_json
from tunesmith.rows import Message, at, kind, lower, parse
from tunesmith.schema import FAULTS, validator_of_text
from tunesmith.text import same_key


@dataclass(frozen=True)
class LogRow:
    """One call of the log."""

    id: str
    group: str
    """What rows that are no independent evidence share: as logged, else what was asked."""
    messages: list[Message]
    output: str
    reference: str | None = None
    """What should have come back; none where nobody said."""
    correct: bool | None = None
    """The log's own judgement, which goes before ours."""
    finish: str | None = None
    """Why the output ended, as logged: `stop`, `length`, `timeout`, …"""
    context: tuple[str, ...] = ()
    """Passages that were retrieved and stood before the model."""
    gold: tuple[str, ...] = ()
    """Raw text that the reference can be read from."""
    versions: tuple[str, ...] = ()
    """Values that the fact had before."""
    schema: dict[str, Any] | None = None
    weight: float = 1.0
    """How many calls of the traffic the row stands for."""
    tokens_in: int | None = None
    tokens_cached: int | None = None
    """Of `tokens_in`, those of a cached beginning."""
    tokens_out: int | None = None
    seconds: float | None = None

    @property
    def asked(self) -> str:
        """The text of the messages without the system's."""
        return "\n".join(m.content or "" for m in self.messages if m.role != "system")

    @property
    def given(self) -> str:
        """All text that stood before the model: messages and passages."""
        return "\n".join([*(m.content or "" for m in self.messages), *self.context])


@dataclass(frozen=True)
class Log:
    """The rows of a log, and what of it was not read."""

    rows: list[LogRow]
    unread: dict[str, int] = field(default_factory=dict)
    """Keys that mean nothing here, with the number of rows that hold them."""


def read_log(path: Path) -> Log:
    """Read a log.

    Raises:
        UserError: the file is missing or empty, or lines are not JSON or not rows of a log; every bad line is named.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    problems: list[str] = []
    rows: list[LogRow] = []
    unread: Counter[str] = Counter()
    lines: dict[str, int] = {}
    for number, raw in enumerate(path.read_bytes().splitlines(), start=1):
        if not raw.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = parse(raw)
            if not isinstance(value, dict):
                raise ValueError(f"holds {kind(value)}; each line is one JSON object")
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        row, wrong, rest = _row(value, number)
        problems += [f"{where}: {text}" for text in wrong]
        unread.update(rest)
        if row is None:
            continue
        if row.id in lines:
            problems.append(f"{where}: id {row.id!r} stands on line {lines[row.id]} already; ids are unique")
        lines.setdefault(row.id, number)
        rows.append(row)
    if problems:
        raise UserError(problems, hint="a line is {prompt or messages, output, reference?, …}; docs/DIAGNOSIS.md")
    if not rows:
        raise UserError(f"{path}: holds no rows")
    return Log(rows, dict(sorted(unread.items())))


# ---------------------------------------------------------------------- names

NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "custom_id", "request_id"),
    "group": ("group", "cluster", "conversation_id", "session_id", "customer"),
    "messages": ("messages", "prompt", "input", "question"),
    "output": ("output", "response", "completion", "prediction", "answer"),
    "reference": ("reference", "expected", "expected_output", "ideal", "target"),
    "correct": ("correct", "is_correct", "passed"),
    "finish": ("finish_reason", "stop_reason"),
    "context": ("context", "contexts", "retrieved", "passages", "retrieved_passages", "documents"),
    "gold": ("gold", "gold_passage", "gold_passages", "gold_context", "gold_source", "source"),
    "versions": ("versions", "earlier_values", "old_values"),
    "schema": ("schema", "json_schema", "response_format"),
    "weight": ("weight", "traffic", "traffic_weight", "count"),
    "tokens_in": ("tokens_in", "prompt_tokens", "input_tokens"),
    "tokens_cached": ("tokens_cached", "cached_tokens", "cache_read_input_tokens"),
    "tokens_out": ("tokens_out", "completion_tokens", "output_tokens"),
    "seconds": ("latency_s", "seconds", "duration_s", "latency_ms", "duration_ms"),
}
"""What a thing may be called in a log."""

MEANT = {name: thing for thing, names in NAMES.items() for name in names}
NOISE = {"object", "created", "model", "metadata", "url", "method", "error", "tools", "temperature", "seed", "user"}
"""Keys of OpenAI's own that say nothing to a diagnosis; those of requests that stand beside `messages`."""


def _row(value: Mapping[str, Any], number: int) -> tuple[LogRow | None, list[str], list[str]]:
    """A row of a line, what is wrong with it, and the keys that were not read."""
    flat, problems = _flattened(value)
    found: dict[str, Any] = {}
    called: dict[str, str] = {}
    rest: list[str] = []
    for name, part in flat.items():
        thing = MEANT.get(name)
        if thing is None:
            rest += [] if name in NOISE else [name]
        elif part is not None:
            if thing in called:
                problems.append(f"{called[thing]}, {name}: two names of one thing; keep one")
            called[thing] = name
            try:
                found[thing] = READ[thing](part)
                if name.endswith("_ms"):
                    found[thing] /= 1000
            except (ValueError, TypeError) as error:
                problems.append(f"{name}: {error}")
    if "messages" not in called:
        problems.append("holds neither messages nor prompt; say what was asked")
    messages = found.get("messages")
    if messages and "output" not in called and messages[-1].role == "assistant":
        # OpenAI's form of a conversation: the last turn is the answer.
        found["output"], called["output"] = _said(messages.pop()), "messages"
    if "output" not in called:
        problems.append("holds no output; say what came back, and an empty text where nothing did")
    if found.get("messages") == []:
        problems.append(f"{called['messages']}: holds nothing that was asked")
    if problems:
        return None, problems, rest
    row_id = found.pop("id", f"line-{number}")
    row = LogRow(id=row_id, group=found.pop("group", ""), **found)
    if row.group == "":
        row = LogRow(**{**vars(row), "group": sha256_json(same_key(row.asked))[:16]})
    return row, [], rest


def _flattened(value: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A line with OpenAI's request and response laid flat: `messages`, `output`, `finish_reason`, usage."""
    flat = dict(value)
    problems: list[str] = []

    def lift(parts: Mapping[str, Any], of: str) -> None:
        for name, part in parts.items():
            if MEANT.get(name) == "id" or part is None:
                continue
            if name in flat and flat[name] != part:
                problems.append(f"{name}: stands in the row and in its {of}, and differs; keep one")
            flat.setdefault(name, part)

    for name in ("request", "body"):
        if isinstance(request := flat.get(name), dict):
            del flat[name]
            lift(request.get("body", request), name)
    for name in NAMES["output"]:
        response = flat.get(name)
        if not isinstance(response, dict):
            continue
        if isinstance(response.get("body"), dict):
            response = response["body"]
        if isinstance(response.get("choices"), list):
            del flat[name]
            choices = response["choices"]
            if len(choices) != 1 or not isinstance(choices[0], dict):
                problems.append(f"{name}.choices: holds {len(choices)}; a row is one answer, so write one a row")
                continue
            choice = choices[0]
            lift(
                {"output": choice.get("message", choice.get("text")), "finish_reason": choice.get("finish_reason")},
                name,
            )
            lift({"usage": response.get("usage")}, name)
        elif isinstance(response.get("output"), list):
            del flat[name]
            lift({"output": response["output"], "usage": response.get("usage")}, name)
    usage = flat.pop("usage", None)
    if isinstance(usage, dict):
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        lift({name: part for name, part in usage.items() if name in MEANT}, "usage")
        if isinstance(details, dict):
            lift({"cached_tokens": details.get("cached_tokens")}, "usage")
    return flat, problems


# ---------------------------------------------------------------------- values


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"holds {kind(value)}; must be text that is not empty")
    return value


def _name(value: Any) -> str:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)


def _content(value: Any) -> str | None:
    """The text of a message; OpenAI's parts are laid together."""
    if not isinstance(value, list):
        return value  # type: ignore[no-any-return]
    texts = [part.get("text") if isinstance(part, dict) else None for part in value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a part of a message is no text; only text is diagnosed")
    return "".join(text for text in texts if text is not None)


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is {kind(value)}; a message is {{role, content}}")
    known = {name: part for name, part in value.items() if name in Message.model_fields and part is not None}
    if known.get("role") == "developer":
        known["role"] = "system"
    try:
        return Message.model_validate(known | {"content": _content(known.get("content"))})
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{place}: {at(first['loc'])}{lower(first['msg'])}") from None


def _messages(value: Any) -> list[Message]:
    if isinstance(value, str):
        return [Message(role="user", content=_text(value))]
    if not isinstance(value, list):
        raise ValueError(f"holds {kind(value)}; must be text, or a list of messages")
    return [_message(part, f"message {number}") for number, part in enumerate(value)]


def _said(message: Message) -> str:
    """What an assistant's message says; of calls, their JSON."""
    if message.tool_calls:
        calls = [call.get("function", call) for call in message.tool_calls]
        return _compact(calls[0] if len(calls) == 1 else calls)
    return message.content or ""


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _answer(value: Any) -> str:
    """An output or a reference: text as it is, a message's text, any other JSON as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and value.get("role") == "assistant":
        return _said(_message(value, "message"))
    if isinstance(value, list) and value and all(isinstance(p, dict) and p.get("type") == "message" for p in value):
        return "".join(_content(part.get("content")) or "" for part in value)
    return _compact(value)


def _passages(value: Any) -> tuple[str, ...]:
    """One text or several; a passage may be an object that holds its text."""
    parts = value if isinstance(value, list) else [value]
    texts = []
    for part in parts:
        if isinstance(part, dict):
            part = next((part[name] for name in ("text", "content", "page_content", "value") if name in part), None)
        if isinstance(part, int | float) and not isinstance(part, bool):
            part = str(part)
        if not isinstance(part, str):
            raise ValueError("must be text, or a list of texts or of objects with `text`")
        texts.append(part)
    return tuple(text for text in texts if text.strip())


def _schema(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        raise ValueError(f"holds {kind(value)}; must be a JSON Schema")
    if value.get("type") in ("text", "json_object") and len(value) == 1:
        return None  # OpenAI's response_format without a schema
    inside = value.get("json_schema", value)
    schema: dict[str, Any] = inside.get("schema", inside) if isinstance(inside, dict) else value
    try:
        validator_of_text(json.dumps(schema))
    except FAULTS as error:
        raise ValueError(f"not a JSON Schema: {str(error).splitlines()[0]}") from None
    return schema


def _number(least: float, *, above: bool = False) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"holds {kind(value)}; must be a number")
        if value < least or (above and value == least):
            raise ValueError(f"{value} is out of range; must be {'above' if above else 'at least'} {least:g}")
        return float(value)

    return read


def _count(value: Any) -> int:
    number = _number(0)(value)
    if number != int(number):
        raise ValueError(f"{value} is no count of tokens")
    return int(number)


def _truth(value: Any) -> bool:
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    raise ValueError(f"holds {kind(value)}; must be true or false")


READ: dict[str, Callable[[Any], Any]] = {
    "id": _name,
    "group": _name,
    "messages": _messages,
    "output": _answer,
    "reference": _answer,
    "correct": _truth,
    "finish": _text,
    "context": _passages,
    "gold": _passages,
    "versions": _passages,
    "schema": _schema,
    "weight": _number(0, above=True),
    "tokens_in": _count,
    "tokens_cached": _count,
    "tokens_out": _count,
    "seconds": _number(0),
}
"""How the value of each thing is read."""
