"""The one row form and the split files that hold it.

A row is one line of JSON Lines: `id`, `group` (what must never straddle two splits), `messages` (the prompt),
`completion` (the assistant message that is the reference), and optionally `rejected` (a worse answer to the prompt),
`tools`, `trained` and `meta`. Tool schemas and arguments keep their exact JSON: what was not in the line is not in the
row.
"""

import json
from collections.abc import Iterable, Sequence
from math import isinf
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tunesmith.errors import UserError
from tunesmith.files import read_json, sha256_file

Split = Literal["train", "dev", "gate", "confirm"]
SPLITS: tuple[Split, ...] = ("train", "dev", "gate", "confirm")


class Message(BaseModel):
    """One chat message, as a chat template reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The keys that the line held, no others."""
        return self.model_dump(exclude_unset=True)


class Row(BaseModel):
    """One line: a prompt and the completion that answers it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str = Field(min_length=1)
    group: str = Field(min_length=1)
    messages: list[Message] = Field(min_length=1)
    completion: Message
    rejected: Message | None = None
    """An answer to which the completion is preferred; preference tuning learns the difference."""
    tools: list[dict[str, Any]] | None = None
    trained: list[int] | None = None
    """Of a whole conversation: which messages, by index, are assistant turns that training learns as well."""
    meta: dict[str, Any] | None = None

    @field_validator("completion")
    @classmethod
    def _completion_is_the_assistants(cls, value: Message) -> Message:
        if value.role != "assistant":
            raise ValueError(f"role is {value.role!r}; the completion is the assistant's message")
        return value

    @field_validator("rejected", mode="before")
    @classmethod
    def _rejected_is_an_answer(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("must be the assistant's message; a row without one leaves the key out")
        return value

    @field_validator("rejected")
    @classmethod
    def _rejected_is_the_assistants(cls, value: Message) -> Message:
        if value.role != "assistant":
            raise ValueError(f"role is {value.role!r}; the rejected answer is the assistant's message")
        return value

    @model_validator(mode="after")
    def _trained_are_the_assistants(self) -> "Row":
        for index in self.trained or ():
            if not 0 < index < len(self.messages) or self.messages[index].role != "assistant":
                raise ValueError(f"trained: message {index} is no earlier turn of the assistant")
        return self

    def turns(self) -> "list[Row]":
        """A row for each turn that training learns: the `trained` ones, and the completion."""
        earlier = [
            self.model_copy(
                update={
                    "id": f"{self.id}#{index}",
                    "messages": self.messages[:index],
                    "completion": self.messages[index],
                    "trained": None,
                    "rejected": None,
                }
            )
            for index in self.trained or ()
        ]
        return [*earlier, self.model_copy(update={"trained": None}) if self.trained else self]

    def answers(self) -> list[Message]:
        """The completion, and the answer that it is preferred to where the row holds one."""
        return [self.completion] if self.rejected is None else [self.completion, self.rejected]

    def with_rejected(self) -> "Row | None":
        """The row as it would be with the rejected answer for its completion; none where it holds none."""
        if self.rejected is None:
            return None
        return self.model_copy(update={"completion": self.rejected, "rejected": None})

    @property
    def prefers_nothing(self) -> bool:
        """Whether the rejected answer says what the completion says."""
        said = [(message.content or "", message.tool_calls) for message in self.answers()]
        return len(said) == 2 and said[0] == said[1]

    @property
    def reference(self) -> str:
        """The text of the completion."""
        return self.completion.content or ""

    @property
    def prompt_text(self) -> str:
        """What the row asks: the text of its messages without the system's."""
        return "\n".join(m.content or "" for m in self.messages if m.role != "system")

    @property
    def source(self) -> str:
        """The text of the last user message: what an answer may copy from."""
        return next((m.content or "" for m in reversed(self.messages) if m.role == "user"), "")

    def as_dict(self) -> dict[str, Any]:
        """The line as it is written."""
        return self.model_dump(exclude_unset=True)


def read_rows(path: Path) -> list[Row]:
    """Read a JSON Lines file of rows, strictly.

    Raises:
        UserError: the file is missing or empty, or lines are not UTF-8, not JSON, not a row, or repeat an id; every
            bad line is named.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; `tunesmith curate` makes it")
    problems: list[str] = []
    rows: list[Row] = []
    first_line: dict[str, int] = {}
    for number, raw in enumerate(path.read_bytes().splitlines(), start=1):
        if not raw.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = Row.model_validate(parse(raw))
        except ValidationError as error:
            problems += [f"{where}: {at(e['loc'])}{lower(e['msg'])}" for e in error.errors()]
        except ValueError as error:
            problems.append(f"{where}: {error}")
        else:
            if row.id in first_line:
                problems.append(f"{where}: id {row.id!r} stands on line {first_line[row.id]} already; ids are unique")
            first_line.setdefault(row.id, number)
            rows.append(row)
    if problems:
        raise UserError(
            problems, hint="a row is {id, group, messages, completion, rejected?, tools?, meta?}; fix the lines named"
        )
    if not rows:
        raise UserError(f"{path}: holds no rows")
    return rows


def parse(raw: bytes) -> Any:
    """One JSON value, strictly: no key twice, no NaN, nothing that no file could hold.

    Raises:
        ValueError: says what is wrong, without a place.
    """
    try:
        value = json.loads(raw.decode("utf-8"), **STRICT)
        # Python reads a lone \ud800 as text; no file and no tokenizer takes it.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is no character; write the whole one") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno}); each line is one JSON object") from None
    except RecursionError:
        raise ValueError("nested too deeply to be read; a row is a few levels deep") from None
    return value


def whole_number(digits: str) -> int:
    """A whole number of no more digits than Python reads."""
    try:
        return int(digits)
    except ValueError:
        raise ValueError(f"a number of {len(digits)} digits is too large; write it as text") from None


def real_number(digits: str) -> float:
    """A number that is not beyond what a float holds: Python reads 1e999 as infinity."""
    if isinf(value := float(digits)):
        raise ValueError(f"the number {digits[:20]} is too large; write it as text")
    return value


def no_constant(name: str) -> Any:
    """Refuse what Python's parser takes for a number and JSON does not know."""
    raise ValueError(f"{name} is not JSON; leave the key out or write null")


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand once."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {repeated!r} stands twice in one object; keep one")
    return dict(pairs)


STRICT: dict[str, Any] = {
    "object_pairs_hook": no_duplicates,
    "parse_constant": no_constant,
    "parse_int": whole_number,
    "parse_float": real_number,
}
"""What makes Python's JSON decoder strict."""


def kind(value: Any) -> str:
    """What JSON calls a value."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def function_of(tool: dict[str, Any]) -> dict[str, Any]:
    """The function of a tool or of a tool call, with or without the `{"type": "function"}` around it."""
    function = tool.get("function", tool)
    return function if isinstance(function, dict) else {}


def arguments_of(function: dict[str, Any]) -> Any:
    """The arguments of a call as a value; what is no JSON stands for itself."""
    arguments = function.get("arguments", {})
    try:
        return loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def loads(text: str) -> Any:
    """A JSON value as Python's parser reads it, whatever the text.

    Raises:
        ValueError: it is no JSON, or nested too deeply, or a number too long to read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def lower(message: str) -> str:
    """A message of pydantic's, as the middle of a sentence."""
    message = message.removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def at(location: Sequence[int | str]) -> str:
    """Where in a row a message of pydantic's belongs."""
    return ".".join(str(part) for part in location) + ": " if location else ""


class Dataset:
    """A task's curated directory: four split files and the manifest that fixes their bytes.

    With `part` the training rows are a nested subset, one part in so many of all of them.
    """

    def __init__(self, directory: Path, part: int = 1) -> None:
        self.directory = directory
        self.part = part

    def file(self, split: Split) -> str:
        """The name of the file that holds a split."""
        return f"curve/train-1-{self.part}.jsonl" if split == "train" and self.part > 1 else f"{split}.jsonl"

    @property
    def manifest_path(self) -> Path:
        """Written last at curation, so a directory without it is unfinished."""
        return self.directory / "manifest.json"

    @property
    def next_manifest_path(self) -> Path:
        """The manifest of a dataset that is just being moved into its place; left behind where that was interrupted."""
        return self.directory / "manifest.next.json"

    def exists(self) -> bool:
        """Whether curation has finished here."""
        return self.manifest_path.is_file()

    def is_made_by(self, maker: str) -> bool:
        """Whether the splits lie here whole, as this maker (a digest) wrote them."""
        try:
            return bool(self.manifest().get("made_by") == maker)
        except UserError:
            return False

    def manifest(self) -> dict[str, Any]:
        """The manifest, after checking that every split file still has the bytes it names.

        Raises:
            UserError: the manifest is missing or a split file was changed.
        """
        if not self.exists():
            raise UserError(f"{self.directory}: holds no manifest.json; `tunesmith curate` makes it")
        try:
            manifest: dict[str, Any] = read_json(self.manifest_path)
        except ValueError:
            raise UserError(f"{self.manifest_path}: not JSON; `tunesmith curate` makes it anew") from None
        changed = [
            f"{self.directory / name}: differs from its manifest; splits are written once"
            for name, entry in manifest["files"].items()
            if not (self.directory / name).is_file() or sha256_file(self.directory / name) != entry["sha256"]
        ]
        if changed:
            raise UserError(changed, hint="curate again; a changed split makes every earlier score another's")
        return manifest

    def intact(self) -> tuple[dict[str, Any], list[Split]]:
        """The manifest, unchecked, and the splits that still have the bytes it names; nothing where there is none.

        Where a curation was interrupted while it moved its files into their place, some splits are of its manifest.
        """
        manifests = [
            manifest
            for path in (self.manifest_path, self.next_manifest_path)
            if isinstance(manifest := _json_or_none(path), dict) and isinstance(manifest.get("files"), dict)
        ]
        known: dict[Split, set[str]] = {
            split: {str(m["files"].get(f"{split}.jsonl", {}).get("sha256")) for m in manifests} for split in SPLITS
        }
        paths = {split: self.directory / f"{split}.jsonl" for split in SPLITS}
        same = [split for split, path in paths.items() if path.is_file() and sha256_file(path) in known[split]]
        return (manifests[0] if manifests else {}), same

    def digest(self, split: Split) -> str:
        """The sha256 of one split file, as the manifest states it."""
        digest: str = self.manifest()["files"][self.file(split)]["sha256"]
        return digest

    def rows(self, split: Split) -> list[Row]:
        """All rows of one split, in file order."""
        return read_rows(self.directory / self.file(split))


def _json_or_none(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def system_messages(rows: Iterable[Row]) -> list[str]:
    """The distinct system messages of some rows, sorted: part of what a prompt is."""
    return sorted({m.content or "" for row in rows for m in row.messages if m.role == "system"})
