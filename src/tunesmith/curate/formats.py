"""Every form that rows come in, turned into the one row form.

In: one JSON object as a source holds it, and what the recipe says of the source. Out: rows, or a `ValueError` that
says all that is wrong with it. What a form does not know goes into `meta`; nothing is dropped, and what was not there
is not filled in. The forms: our own rows; `messages` as OpenAI's fine-tuning takes them; prompt and completion; a
preference, with a chosen and a rejected answer; alpaca; sharegpt; and named columns.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from tunesmith.curate.turns import out_of_turn
from tunesmith.curation import Column, Format
from tunesmith.rows import Message, Row, at, kind, lower, parse

Turns = Literal["each", "last", "whole"]
LONGEST_PROBLEM = 400
DEEPEST = 100


class Malformed(ValueError):
    """An object that is no row; all that is wrong with it."""

    def __init__(self, *problems: str) -> None:
        # Problems quote what was read, which may hold line ends or be of any length.
        self.problems = tuple(" ".join(problem.split())[:LONGEST_PROBLEM] for problem in problems)
        super().__init__("; ".join(self.problems))


@dataclass
class Conversation:
    """What every form but our own is first turned into: messages with the assistant's among them."""

    messages: list[dict[str, Any]]
    id: str | None = None
    group: str | None = None
    tools: list[dict[str, Any]] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    untrained: set[int] = field(default_factory=set)
    rejected: dict[str, Any] | None = None
    """The answer that the last message is preferred to."""


# The keys by which a form is known. A line that fits two is ambiguous, unless one holds all keys of the other.
MARKS: dict[Format, frozenset[str]] = {
    "rows": frozenset({"messages", "completion"}),
    "messages": frozenset({"messages"}),
    "prompt_completion": frozenset({"prompt", "completion"}),
    "preference": frozenset({"chosen", "rejected"}),
    "alpaca": frozenset({"instruction", "output"}),
    "sharegpt": frozenset({"conversations"}),
    "documents": frozenset({"prompt", "completion"}),
}
DETECTED = [form for form in MARKS if form != "documents"]


def detect(value: Any, columns: Mapping[Column, str]) -> Format:
    """The form of an object, by its keys.

    Raises:
        Malformed: no form fits, or two do.
    """
    if not isinstance(value, dict):
        raise Malformed(f"must be an object, not {kind(value)}")
    if columns:
        return "columns"
    fits = [name for name in DETECTED if MARKS[name] <= value.keys()]
    fits = [name for name in fits if not any(MARKS[name] < MARKS[other] for other in fits)]
    if len(fits) > 1:
        raise Malformed(f"fits {' and '.join(fits)}; state the source's `format`")
    if not fits:
        keys = ", ".join(sorted(value)[:8]) or "none"
        raise Malformed(
            f"no known form has the keys {keys}; name the source's `columns`, or bring one of {', '.join(DETECTED)}"
        )
    return fits[0]


def read(value: Any, form: Format, *, columns: Mapping[Column, str], system: str | None, turns: Turns) -> list[Row]:
    """The rows of one object in a known form.

    `columns` names the columns of form `columns`; `system` is put before conversations that have no system message.

    Raises:
        Malformed: it is not of this form, or no conversation that could be trained on.
    """
    if not isinstance(value, dict):
        raise Malformed(f"must be an object, not {kind(value)}")
    _refuse_unfit(value)
    if missing := sorted(MARKS.get(form, frozenset()) - value.keys()):
        raise Malformed(f"is no {form}: has no {', '.join(missing)}")
    if form == "rows":
        return [_own(value, system)]
    conversation = _columns(value, columns) if form == "columns" else READERS[form](dict(value))
    if system is not None and conversation.messages and conversation.messages[0].get("role") != "system":
        conversation.messages.insert(0, {"role": "system", "content": system})
        conversation.untrained = {index + 1 for index in conversation.untrained}
    return _rows(conversation, turns)


def _refuse_unfit(value: Any, depth: int = 0) -> None:
    """Refuse what is JSON, and still no file of rows can hold."""
    if isinstance(value, str) and "\0" in value:
        raise Malformed("holds a NUL character; take it out")
    if depth > DEEPEST:
        raise Malformed("nested too deeply to be read; a row is a few levels deep")
    if isinstance(value, dict | list):
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            _refuse_unfit(part, depth + 1)


# ---------------------------------------------------------------------- the forms


def _own(value: dict[str, Any], system: str | None) -> Row:
    try:
        row = Row.model_validate(value)
        if system is not None and row.messages[0].role != "system":
            trained = {"trained": [index + 1 for index in row.trained]} if row.trained else {}
            first = {"role": "system", "content": system}
            row = Row.model_validate(value | {"messages": [first, *value["messages"]]} | trained)
    except ValidationError as error:
        raise Malformed(*(f"{at(e['loc'])}{lower(e['msg'])}" for e in error.errors())) from None
    problems = out_of_turn([*row.messages, row.completion])
    if row.rejected is not None and not problems:
        problems = _of_rejected(out_of_turn([*row.messages, row.rejected]))
    if problems:
        raise Malformed(*problems)
    return row


def _of_rejected(problems: list[str]) -> list[str]:
    return [f"with the rejected answer: {problem}" for problem in problems]


def _messages(value: dict[str, Any]) -> Conversation:
    messages, untrained = _as_messages(value.pop("messages"), "messages")
    tools = _tools(value.pop("tools", None))
    return Conversation(messages, *_named(value), tools, value, untrained)


def _prompt_completion(value: dict[str, Any]) -> Conversation:
    if isinstance(value.get("rejected"), str | list | dict):
        return _preference({"chosen": value.pop("completion")} | value)
    prompt, completion = value.pop("prompt"), value.pop("completion")
    before, untrained = _as_messages(prompt, "prompt") if isinstance(prompt, list) else ([_user(prompt)], set())
    if isinstance(completion, list):
        after, more = _as_messages(completion, "completion")
        untrained |= {index + len(before) for index in more}
    else:
        after = [{"role": "assistant", "content": completion}]
    # Assistant turns of the prompt are given, not learned.
    untrained |= {index for index, message in enumerate(before) if message.get("role") == "assistant"}
    tools = _tools(value.pop("tools", None))
    return Conversation([*before, *after], *_named(value), tools, value, untrained)


def _preference(value: dict[str, Any]) -> Conversation:
    """A prompt with two answers; or two conversations that are the same but for the answer they end with."""
    prompt, both = value.pop("prompt", None), [(key, value.pop(key)) for key in ("chosen", "rejected")]
    before: list[dict[str, Any]] = []
    if prompt is not None:
        before = _as_messages(prompt, "prompt")[0] if isinstance(prompt, list) else [_user(prompt)]
    ends = []
    for key, answer in both:
        if isinstance(answer, list):
            said = _as_messages(answer, key)[0]
        elif isinstance(answer, dict):
            said = _as_messages([answer], key)[0]
        elif prompt is None:
            raise Malformed(f"{key}: must be a list of messages where there is no prompt beside it, not {kind(answer)}")
        else:
            said = [{"role": "assistant", "content": answer}]
        # Many data sets hold the prompt beside the answers and in them.
        ends.append(said if before and said[: len(before)] == before else [*before, *said])
    (*asked, chosen), (*asked_too, rejected) = (end or [{}] for end in ends)
    if asked != asked_too:
        raise Malformed("chosen and rejected part before their last message; they are two answers to one prompt")
    untrained = {index for index, message in enumerate(asked) if message.get("role") == "assistant"}
    tools = _tools(value.pop("tools", None))
    return Conversation([*asked, chosen], *_named(value), tools, value, untrained, rejected)


def _alpaca(value: dict[str, Any]) -> Conversation:
    instruction, more, output = value.pop("instruction"), value.pop("input", None), value.pop("output")
    system, history = value.pop("system", None), value.pop("history", None)
    if more is not None and not isinstance(more, str):
        raise Malformed(f"input: must be text, not {kind(more)}")
    prompt = f"{instruction}\n\n{more}" if more and isinstance(instruction, str) else instruction
    messages = _system(system)
    if history and not (isinstance(history, list) and all(isinstance(h, list) and len(h) == 2 for h in history)):
        raise Malformed("history: must be a list of pairs of question and answer")
    for question, answer in history or []:
        messages += [_user(question), {"role": "assistant", "content": answer}]
    untrained = {index for index, message in enumerate(messages) if message["role"] == "assistant"}
    messages += [_user(prompt), {"role": "assistant", "content": output}]
    return Conversation(messages, *_named(value), _tools(value.pop("tools", None)), value, untrained)


SHAREGPT_ROLES = {role: role for role in ("user", "assistant", "system", "tool")} | {"observation": "tool"}
SHAREGPT_ROLES |= {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "function_call": "assistant"}


def _sharegpt(value: dict[str, Any]) -> Conversation:
    turns, system, tools = value.pop("conversations"), value.pop("system", None), _tools(value.pop("tools", None))
    if not isinstance(turns, list):
        raise Malformed(f"conversations: must be a list, not {kind(turns)}")
    messages = _system(system)
    problems = []
    for index, turn in enumerate(turns):
        where = f"conversations.{index}"
        if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
            if isinstance(turn, dict) and {"role", "content"} <= turn.keys():
                messages.append(turn)
            else:
                problems.append(f"{where}: must hold `from` and `value`")
            continue
        role = SHAREGPT_ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
        if role is None:
            problems.append(f"{where}.from: {turn['from']!r} is none of {', '.join(SHAREGPT_ROLES)}")
            continue
        said = {"tool_calls": _calls(turn["value"], where)} if turn["from"] == "function_call" else {}
        more = {key: item for key, item in turn.items() if key not in ("from", "value") and item is not None}
        messages.append({"role": role, "content": None if said else turn["value"]} | said | more)
    if problems:
        raise Malformed(*problems)
    checked, untrained = _as_messages(messages, "conversations")
    return Conversation(checked, *_named(value), tools, value, untrained)


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    """The tool calls of a turn `function_call`: JSON text of one `{"name", "arguments"}`, or of a list of them."""
    try:
        found = parse(value.encode()) if isinstance(value, str) else value
    except ValueError as error:
        raise Malformed(f"{where}.value: {error}") from None
    _refuse_unfit(found)
    return [{"type": "function", "function": call} for call in (found if isinstance(found, list) else [found])]


def _columns(value: dict[str, Any], columns: Mapping[Column, str]) -> Conversation:
    named: dict[Column, str] = dict(columns) or {"prompt": "prompt", "completion": "completion"}
    missing = [column for column in named.values() if column not in value]
    if missing or not {"prompt", "completion"} <= named.keys():
        wanted = missing or sorted({"prompt", "completion"} - named.keys())
        raise Malformed(f"has no column {', '.join(map(repr, wanted))}; there are: {', '.join(value) or 'none'}")
    taken: dict[str, Any] = {ours: value[column] for ours, column in named.items()}
    meta = {key: item for key, item in value.items() if key not in named.values()}
    messages = _system(taken.get("system"))
    messages += [_user(taken["prompt"]), {"role": "assistant", "content": _as_text(taken["completion"])}]
    rejected = {"role": "assistant", "content": _as_text(taken["rejected"])} if "rejected" in taken else None
    return Conversation(messages, *_named(taken), None, meta, rejected=rejected)


def _as_text(value: Any) -> Any:
    """What a column holds as a completion: an object or a list as its JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) if isinstance(value, dict | list) else value


READERS: dict[Format, Callable[[dict[str, Any]], Conversation]] = {
    "messages": _messages,
    "prompt_completion": _prompt_completion,
    "documents": _prompt_completion,
    "preference": _preference,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
}


# ---------------------------------------------------------------------- their parts


def _user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _system(text: Any) -> list[dict[str, Any]]:
    return [] if text is None or text == "" else [{"role": "system", "content": text}]


def _named(holder: dict[str, Any]) -> tuple[str | None, str | None]:
    return _name(holder, "id"), _name(holder, "group")


def _name(holder: dict[str, Any], key: str) -> str | None:
    value = holder.pop(key, None)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Malformed(f"{key}: must be text or a whole number, not {kind(value)}")
    return str(value)


def _tools(value: Any) -> list[dict[str, Any]] | None:
    """Tool schemas as they stand; many data sets hold them as JSON text, so that no column type fills them up."""
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = parse(value.encode())
        except ValueError as error:
            raise Malformed(f"tools: {error}") from None
        _refuse_unfit(value)
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise Malformed("tools: must be a list of objects")
    return value


# Keys of OpenAI's messages that say nothing when they are null.
MAY_BE_NULL = {"name", "tool_calls", "tool_call_id", "refusal", "audio", "function_call", "annotations", "weight"}


def _as_messages(value: Any, where: str) -> tuple[list[dict[str, Any]], set[int]]:
    """Messages in our form, and which of them are not trained (OpenAI's `weight: 0`)."""
    if not isinstance(value, list):
        raise Malformed(f"{where}: must be a list of messages, not {kind(value)}")
    messages, untrained, problems = [], set(), []
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            problems.append(f"{where}.{index}: must be an object, not {kind(message)}")
            continue
        kept = {key: item for key, item in message.items() if item is not None or key not in MAY_BE_NULL}
        weight = kept.pop("weight", 1)
        if weight not in (0, 1):
            problems.append(f"{where}.{index}.weight: must be 0 or 1, not {weight!r}")
        if weight == 0:
            untrained.add(index)
        if kept.get("role") == "developer":
            kept["role"] = "system"
        if kept.get("role") == "function" or "function_call" in kept:
            problems.append(f"{where}.{index}: functions of the old form; write them as `tool_calls` and role `tool`")
        content = kept.get("content")
        if isinstance(content, list):
            parts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in content]
            if all(isinstance(part, str) for part in parts):
                kept["content"] = "".join(part for part in parts if part)
            else:
                problems.append(f"{where}.{index}.content: holds parts that are not text")
        messages.append(kept)
    if problems:
        raise Malformed(*problems)
    return messages, untrained


def _rows(conversation: Conversation, turns: Turns) -> list[Row]:
    """A conversation as rows: one for each trained turn of the assistant, one for the last, or one whole."""
    messages, problems = [], []
    for index, message in enumerate(conversation.messages):
        try:
            messages.append(Message.model_validate(message))
        except ValidationError as error:
            problems += [f"messages.{index}: {at(e['loc'])}{lower(e['msg'])}" for e in error.errors()]
    problems = problems or out_of_turn(messages)
    if not messages and not problems:
        problems = ["holds no messages"]
    if not problems and messages[-1].role != "assistant":
        problems = [f"ends with the {messages[-1].role}: there is no completion to learn"]
    trained = [i for i, m in enumerate(messages) if m.role == "assistant" and i not in conversation.untrained]
    rejected, more = _rejected(conversation, messages) if not problems else (None, [])
    problems = problems + more
    if not problems and not trained:
        problems = ["every turn of the assistant has weight 0: there is nothing to learn"]
    if problems:
        raise Malformed(*problems)
    meta = conversation.meta
    if isinstance(inner := meta.get("meta"), dict):
        if twice := sorted(inner.keys() & (meta.keys() - {"meta"})):
            raise Malformed(f"meta: {', '.join(twice)} stands in it and beside it; keep one")
        meta = {key: item for key, item in meta.items() if key != "meta"} | inner
    key = conversation.id or content_id(conversation)
    ends = trained if turns == "each" else trained[-1:]
    return [
        Row.model_validate(
            {
                "id": f"{key}#{end}" if len(ends) > 1 else key,
                "group": conversation.group or key,
                "messages": [m.as_dict() for m in messages[:end]],
                "completion": messages[end].as_dict(),
            }
            | ({"rejected": rejected.as_dict()} if rejected and end == len(messages) - 1 else {})
            | ({"tools": conversation.tools} if conversation.tools else {})
            | ({"trained": trained[:-1]} if turns == "whole" and len(trained) > 1 else {})
            | ({"meta": meta} if meta else {})
        )
        for end in ends
    ]


def _rejected(conversation: Conversation, messages: list[Message]) -> tuple[Message | None, list[str]]:
    """The rejected answer, and what is wrong with it in the place of the last message."""
    if conversation.rejected is None:
        return None, []
    try:
        rejected = Message.model_validate(conversation.rejected)
    except ValidationError as error:
        return None, [f"rejected: {at(e['loc'])}{lower(e['msg'])}" for e in error.errors()]
    problems = out_of_turn([*messages[:-1], rejected])
    if not problems and rejected.role != "assistant":
        problems = [f"it is the {rejected.role}'s"]
    return rejected, _of_rejected(problems)


def content_id(conversation: Conversation) -> str:
    """An id for what has none: the hash of what it says, so that it does not depend on where it stands."""
    worse = [] if conversation.rejected is None else [conversation.rejected]
    said = json.dumps([conversation.messages, conversation.tools, *worse], sort_keys=True, ensure_ascii=False)
    return "h-" + hashlib.sha256(said.encode()).hexdigest()[:16]
