"""The cleaning steps that look at one row: each takes a row and returns it, another one, or why it is left out.

A step that is told to refuse raises `Malformed`; then nothing is written. The steps are named in the recipe, in order.
What looks at all rows at once (copies, contradictions) stands in `duplicates`.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jsonschema
import numpy as np

from tunesmith.curate import privacy
from tunesmith.curate.formats import Malformed
from tunesmith.curation import CurateSection
from tunesmith.errors import UserError
from tunesmith.near import similarities
from tunesmith.prompt import Renderer
from tunesmith.rows import Message, Row, arguments_of, function_of, loads
from tunesmith.schema import FAULTS, validator_of
from tunesmith.text import duplicate_key, shingle_form, tidy


@dataclass(frozen=True)
class Drop:
    """Why a row is left out; `reason` is counted, `detail` is about this row."""

    reason: str
    detail: str = ""


@dataclass
class Context:
    """What steps need to know beside the row; findings of the privacy step are noted here, by row id."""

    curate: CurateSection
    schema: dict[str, Any] | None
    max_tokens: int
    renderer: Renderer | None = None
    findings: list[tuple[str, str, str]] = field(default_factory=list)
    """(row id, rule, what was done); never the value."""


Outcome = Row | Drop
Step = Callable[[Row, Any, Context], Outcome]


def texts(row: Row) -> list[str]:
    """The text of every message of a row, those of its answers last."""
    return [m.content for m in (*row.messages, *row.answers()) if m.content is not None]


def with_texts(row: Row, new: Iterable[str]) -> Row:
    """The row with other texts, in the order of `texts`."""
    rest = iter(new)

    def changed(message: Message) -> Message:
        return message if message.content is None else message.model_copy(update={"content": next(rest)})

    return _with_messages(row, [changed(m) for m in (*row.messages, *row.answers())])


def _with_messages(row: Row, new: Sequence[Message]) -> Row:
    """The row with other messages; those of its answers stand last."""
    count = len(row.messages)
    names = ("completion", "rejected")[: len(row.answers())]
    return row.model_copy(update={"messages": list(new[:count])} | dict(zip(names, new[count:], strict=True)))


def all_texts(row: Row) -> list[str]:
    """Every text that a row holds: `texts`, the arguments of its calls, and its meta."""
    return [text for part in _parts(row) for text in _leaves(part)]


def with_all_texts(row: Row, new: Iterable[str]) -> Row:
    """The row with other texts, in the order of `all_texts`."""
    rest = iter(new)
    *messages, meta = (_changed(part, rest) for part in _parts(row))
    old = [*row.messages, *row.answers()]
    told = [m.model_copy(update=part) for m, part in zip(old, messages, strict=True)]
    changed = _with_messages(row, told)
    return changed.model_copy(update={"meta": meta}) if row.meta is not None else changed


def _parts(row: Row) -> list[Any]:
    """What of each message, the answers and the meta may hold text of persons."""
    said = [{key: getattr(m, key) for key in ("content", "tool_calls")} for m in (*row.messages, *row.answers())]
    return [*({key: value for key, value in part.items() if value is not None} for part in said), row.meta]


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part)


def _changed(value: Any, rest: Iterator[str]) -> Any:
    if isinstance(value, str):
        return next(rest)
    if isinstance(value, dict):
        return {key: _changed(part, rest) for key, part in value.items()}
    return [_changed(part, rest) for part in value] if isinstance(value, list) else value


# ---------------------------------------------------------------------- the steps


def normalise(row: Row, told: None, context: Context) -> Outcome:
    """Unicode NFC, plain line ends and spaces, nothing invisible."""
    return with_texts(row, map(tidy, texts(row)))


def control_tokens(row: Row, told: str, context: Context) -> Outcome:
    """Text that spells one of the base's control tokens, such as an end of turn: refused, broken up, or left out."""
    assert context.renderer is not None
    words = control_words(context.renderer)
    # Meta is no part of what the model reads.
    read = row.model_copy(update={"meta": None})
    found = sorted({word for text in all_texts(read) for word in words if word in text})
    if not found:
        return row
    if told == "refuse":
        raise Malformed(f"spells the base's control token {', '.join(found)}; take it out, or tell the step what to do")
    if told == "drop":
        return Drop("spells a control token of the base", ", ".join(found))

    def broken(text: str) -> str:
        for word in found:
            text = text.replace(word, f"{word[0]} {word[1:]}")
        return text

    return with_all_texts(read, map(broken, all_texts(read))).model_copy(update={"meta": row.meta})


@cache
def control_words(renderer: Renderer) -> tuple[str, ...]:
    """The control tokens that no text would spell by chance: those of more than one letter."""
    return tuple(word for word in renderer.control_tokens() if len(word) > 1 and word.strip())


def find_private(row: Row, told: None, context: Context) -> Outcome:
    """Personal data and secrets: reported by row and rule, redacted, or refused."""
    actions = context.curate.privacy.model_dump()
    rules = {found.rule for text in all_texts(row) for found in privacy.find(text)}
    context.findings += [(row.id, rule, actions[rule]) for rule in sorted(rules)]
    failed = sorted(rule for rule in rules if actions[rule] == "fail")
    if failed:
        raise Malformed(f"holds {', '.join(failed)}; take it out, or set curate.privacy.{failed[0]} to redact")
    redacted = {rule for rule in rules if actions[rule] == "redact"}
    return with_all_texts(row, privacy.redact(all_texts(row), redacted)) if redacted else row


def empty(row: Row, told: None, context: Context) -> Outcome:
    """A prompt or an answer that holds no letter and no digit."""
    for name, answer in zip(("completion", "rejected answer"), row.answers(), strict=False):
        if not answer.tool_calls and not re.search(r"\w", answer.content or ""):
            return Drop(f"the {name} is empty")
    return row if re.search(r"\w", row.prompt_text) else Drop("the prompt is empty")


def truncated(row: Row, told: None, context: Context) -> Outcome:
    """A completion that was cut off: by its own finish reason, an open bracket or fence, or prose that just stops."""
    text = row.reference.rstrip()
    if (row.meta or {}).get("finish_reason") == "length":
        return Drop("the completion is cut off", "finish_reason is length")
    if text.count("```") % 2:
        return Drop("the completion is cut off", "a code fence stays open")
    if text[:1] in ("{", "[") and _open_brackets(text):
        return Drop("the completion is cut off", "a bracket stays open")
    if len(text) > LONG_PROSE and re.search(r"[.!?]\s", text) and re.search(r"[\w,;:(-]\Z", text.splitlines()[-1]):
        last = text.splitlines()[-1]
        if len(last.split()) > 5 and not re.match(r"\s*([-*|#>]|\d+[.)])", last):
            return Drop("the completion is cut off", "prose that stops without a stop")
    return row


LONG_PROSE = 200
"""Characters from which text with sentences is expected to end one."""


def _open_brackets(text: str) -> bool:
    """Whether JSON-like text ends inside a bracket or a string."""
    depth, quoted, escaped = 0, False, False
    for character in text:
        if quoted:
            quoted = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            quoted = True
        else:
            depth += (character in "{[") - (character in "}]")
    return quoted or depth > 0


# What assistants say when they do not do what was asked; at the beginning of an answer, where it is the answer.
REFUSALS = re.compile(
    r"\A\W*(?:(?:i['\u2019]?m|i am|we['\u2019]?re) (?:sorry|afraid|unable|not able)|sorry,? (?:but )?(?:i|we)\b|"
    r"(?:i|we) (?:can(?:no|['\u2019])t|could ?n[o'\u2019]t|am unable to|won['\u2019]t be able to) "
    r"(?:help|assist|provide|answer|comply|fulfil|do that|generate|create|continue|support|engage)|"
    r"as an? (?:ai|artificial intelligence|large|language)\b|"
    r"i (?:do not|don['\u2019]t) have (?:personal|the ability|access)|"
    r"my (?:purpose|guidelines|programming)\b|unfortunately,? (?:i|as an ai)\b)",
    re.IGNORECASE,
)


def refusals(row: Row, told: None, context: Context) -> Outcome:
    """A completion that is the boilerplate of an assistant that refuses."""
    return Drop("the completion is a refusal") if REFUSALS.match(row.reference) else row


def language(row: Row, told: str, context: Context) -> Outcome:
    """A row that is surely written in another language than the one told (ISO 639-1); short texts are let through."""
    text = f"{row.prompt_text}\n{row.reference}"
    if sum(character.isalpha() for character in text) < SHORT_FOR_LANGUAGE:
        return row
    found, probability = _language_identifier().classify(text)
    other = found != told and probability >= SURE_OF_LANGUAGE
    return Drop(f"written in another language than {told}", f"{found} {probability:.2f}") if other else row


SHORT_FOR_LANGUAGE = 40
SURE_OF_LANGUAGE = 0.7


@cache
def _language_identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def length(row: Row, told: None, context: Context) -> Outcome:
    """A row of more tokens than `data.max_tokens` under the base's own template, with either answer."""
    assert context.renderer is not None
    either = [row, *filter(None, [row.with_rejected()])]
    try:
        tokens = max(len(context.renderer.render(one).input_ids) for one in either)
    except UserError as error:
        return Drop("the base's template refuses it", error.text)
    return Drop("longer than data.max_tokens", f"{tokens} tokens") if tokens > context.max_tokens else row


def completion(row: Row, told: None, context: Context) -> Outcome:
    """A completion that the task does not allow: none of `curate.labels`, against `data.schema`, or a wrong call.

    A call must name a tool that the row offers, with arguments that its `parameters` allow.
    """
    if row.completion.tool_calls:
        return _calls_what_is_offered(row)
    if context.curate.labels:
        known = row.reference.strip() in context.curate.labels
        return row if known else Drop("the completion is none of curate.labels", row.reference[:60])
    if context.schema is None:
        return row if row.reference.strip() else Drop("the completion says nothing", "")
    try:
        value = loads(row.reference)
    except ValueError as error:
        return Drop("the completion is not JSON", str(error))
    fault = next(iter(_validator(json.dumps(context.schema)).iter_errors(value)), None)
    return row if fault is None else Drop("the completion breaks data.schema", f"{fault.json_path}: {fault.validator}")


def _calls_what_is_offered(row: Row) -> Outcome:
    offered = {function.get("name"): function for function in map(function_of, row.tools or ())}
    for call in map(function_of, row.completion.tool_calls or ()):
        if call.get("name") not in offered:
            return Drop("the completion calls a tool that the row does not offer", str(call.get("name")))
        parameters = offered[call["name"]].get("parameters")
        try:
            # A dialect that JSON Schema does not know says nothing of the arguments.
            validator = _validator(json.dumps(parameters if isinstance(parameters, dict) else {}))
            fault = next(iter(validator.iter_errors(arguments_of(call))), None)
        except FAULTS:
            continue
        if fault is not None:
            return Drop("the completion breaks the tool's parameters", f"{call['name']}: {fault.json_path}")
    return row


@cache
def _validator(schema: str) -> jsonschema.Draft202012Validator:
    return validator_of(json.loads(schema))


def copying(row: Row, told: float, context: Context) -> Outcome:
    """A completion that repeats the prompt: Jaccard similarity of their 5-grams of at least what is told."""
    forms = [shingle_form(row.source), shingle_form(row.reference)]
    (alike,) = similarities(np.array([[0, 1]]), lambda indices: [forms[i] for i in indices.tolist()])
    same = alike >= told or duplicate_key(row.source) == duplicate_key(row.reference)
    return Drop("the completion copies the prompt", f"{alike:.2f} alike") if same else row


STEPS: dict[str, Step] = {
    "normalise": normalise,
    "control_tokens": control_tokens,
    "privacy": find_private,
    "empty": empty,
    "truncated": truncated,
    "refusals": refusals,
    "language": language,
    "length": length,
    "completion": completion,
    "copying": copying,
}

PREFERS_NOTHING = "the rejected answer is the completion"

NEED_THE_TOKENIZER = {"control_tokens", "length"}


@dataclass(frozen=True)
class Cleaned:
    """What became of a row: itself or another one and what changed it, or the step that left it out."""

    row: Row | None
    changes: tuple[tuple[str, Row, Row], ...] = ()
    """(step, before, after)."""
    step: str = ""
    drop: Drop | None = None


def clean(row: Row, context: Context) -> Cleaned:
    """Take a row through the recipe's steps in order.

    Raises:
        Malformed: a step refuses it.
    """
    changes: list[tuple[str, Row, Row]] = []
    if row.prefers_nothing:
        return Cleaned(None, (), "read", Drop(PREFERS_NOTHING))
    for step in context.curate.steps:
        if step.name not in STEPS:
            continue
        outcome = STEPS[step.name](row, step.told, context)
        if isinstance(outcome, Drop):
            return Cleaned(None, tuple(changes), step.name, outcome)
        if outcome is not row and outcome != row:
            changes.append((step.name, row, outcome))
            row = outcome
            if row.prefers_nothing:
                return Cleaned(None, tuple(changes), step.name, Drop(PREFERS_NOTHING))
    return Cleaned(row, tuple(changes))
