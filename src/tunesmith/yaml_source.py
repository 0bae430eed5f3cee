"""YAML 1.2 read strictly, every value with the file and line it came from.

No anchors, no aliases, no merge keys, no tags, no directives, no duplicate keys: a recipe is data that a reviewer can
read from top to bottom.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean
from ruamel.yaml.tokens import (
    AliasToken,
    AnchorToken,
    BlockEndToken,
    BlockMappingStartToken,
    BlockSequenceStartToken,
    DirectiveToken,
    FlowMappingEndToken,
    FlowMappingStartToken,
    FlowSequenceEndToken,
    FlowSequenceStartToken,
    ScalarToken,
    TagToken,
)

from tunesmith.errors import UserError

Keys = tuple[str | int, ...]

MAX_BYTES = 256 * 1024
DEEPEST = 32
"""Sections and lists inside each other."""

OPENS = (FlowSequenceStartToken, FlowMappingStartToken, BlockSequenceStartToken, BlockMappingStartToken)
CLOSES = (FlowSequenceEndToken, FlowMappingEndToken, BlockEndToken)


@dataclass
class YamlSource:
    """Plain values, and for each key path the place that set it."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Keys, str] = field(default_factory=dict)

    def place(self, keys: Keys, default: str) -> str:
        """Where a value was set: its own place, else that of the nearest section around it, else of a value inside."""
        for end in range(len(keys), 0, -1):
            if keys[:end] in self.places:
                return self.places[keys[:end]]
        return next((place for inner, place in self.places.items() if inner[: len(keys)] == keys), default)

    def over(self, parent: "YamlSource") -> "YamlSource":
        """These values on top of a parent's: mappings merge key by key, everything else replaces."""
        places = {keys: place for keys, place in parent.places.items() if not self._replaces(keys, parent)}
        return YamlSource(_merged(parent.values, self.values), places | self.places)

    def set(self, dotted: str, text: str, place: str) -> None:
        """Set one value from `a.b=c`, the value read as YAML.

        Raises:
            UserError: the value is not YAML, or the path leads through something that is not a section.
        """
        keys = tuple(dotted.split("."))
        try:
            _refuse_clever_yaml(text, f"--set {dotted}")
            value = _plain(YAML(typ="rt", pure=True).load(text), (), f"--set {dotted}", {})
        except (YAMLError, ValueError, RecursionError):
            raise UserError(f"--set {dotted}={text}: the value is not YAML; quote it") from None
        section: Any = self.values
        for key in keys[:-1]:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise UserError(f"--set {dotted}: `{key}` is not a section")
        section[keys[-1]] = value
        self.places = {k: v for k, v in self.places.items() if k[: len(keys)] != keys}
        self.places |= {(*keys, *inner): place for inner, _ in leaves(value)}
        self.places[keys] = place

    def _replaces(self, keys: Keys, parent: "YamlSource") -> bool:
        """Whether our values replace the parent's at a key path."""
        ours: Any = self.values
        theirs: Any = parent.values
        for key in keys:
            if not isinstance(ours, dict) or not isinstance(theirs, dict):
                return True
            if key not in ours:
                return False
            ours, theirs = ours[key], theirs.get(key) if isinstance(key, str) else None
        return True


def read_yaml(path: Path, label: str) -> YamlSource:
    """Read one YAML mapping. `label` names the file in messages and places.

    Raises:
        UserError: the file is missing, not UTF-8, not YAML, not a mapping, or uses anchors, aliases, merge keys, tags,
            directives, a key that is not text, or a key twice.
    """
    if not path.is_file():
        raise UserError(f"{label}: no such file")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{label}: larger than {MAX_BYTES // 1024} KiB; a recipe is a page")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{label}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    try:
        _refuse_clever_yaml(text, label)
        loaded = YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = str(error.problem).splitlines()[0] if error.problem else "cannot be read"
        raise UserError(f"{label}:{line}: not YAML: {problem}") from None
    except YAMLError as error:
        raise UserError(f"{label}: not YAML: {str(error).splitlines()[0]}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{label}: a value cannot be read: {error}") from None
    if not isinstance(loaded, CommentedMap):
        raise UserError(f"{label}: must hold a mapping of keys to values")
    places: dict[Keys, str] = {}
    return YamlSource(_plain(loaded, (), label, places), places)


def _refuse_clever_yaml(text: str, label: str) -> None:
    words = {
        AnchorToken: "an anchor (&)",
        AliasToken: "an alias (*)",
        TagToken: "a tag (!)",
        # `%YAML 1.1` would make `no` a boolean and 12:30 a number.
        DirectiveToken: "a directive (%)",
    }
    depth = 0
    for token in YAML(typ="rt", pure=True).scan(text):
        depth += isinstance(token, OPENS) - isinstance(token, CLOSES)
        if depth > DEEPEST:
            # The scanner's own work grows with the square of the depth: minutes for a file that is small enough.
            raise UserError(f"{label}:{token.start_mark.line + 1}: nested deeper than {DEEPEST}; a recipe is flat")
        merges = isinstance(token, ScalarToken) and token.plain and token.value == "<<"
        if merges or type(token) in words:
            word = "a merge key (<<)" if merges else words[type(token)]
            raise UserError(f"{label}:{token.start_mark.line + 1}: {word} is not allowed; write the value out")


def _plain(node: Any, keys: Keys, label: str, places: dict[Keys, str]) -> Any:
    """Turn ruamel's round-trip nodes into plain values, noting where each stands."""
    if isinstance(node, CommentedMap):
        for key in node:
            place = f"{label}:{node.lc.key(key)[0] + 1}"
            if not isinstance(key, str):
                raise UserError(f"{place}: key {key!r} is not text; quote it")
            places[(*keys, key)] = place
        return {str(key): _plain(value, (*keys, key), label, places) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        for index in range(len(node)):
            places[(*keys, index)] = f"{label}:{node.lc.item(index)[0] + 1}"
        return [_plain(value, (*keys, index), label, places) for index, value in enumerate(node)]
    if isinstance(node, bool | ScalarBoolean):
        return bool(node)
    if isinstance(node, int | float | str):
        return next(kind(node) for kind in (int, float, str) if isinstance(node, kind))
    return None if node is None else str(node)


def _merged(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    merged = dict(parent)
    for key, value in child.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def leaves(values: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Every value that is not a section, with its key path."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from leaves(value, (*keys, key))
    else:
        yield keys, values
