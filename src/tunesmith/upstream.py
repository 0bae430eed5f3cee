"""Names and types of upstream's configuration classes, read from their source without importing them.

`lora:` goes verbatim to `peft.LoraConfig`, `trainer:` to `trl.SFTConfig` or `trl.DPOConfig`, so their keys are checked
against whatever versions are installed. Importing those packages costs seconds and torch; their dataclass fields stand
in the source.
"""

import ast
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

# Each class with the file it stands in, from the most derived to the base: the first definition of a field wins.
CLASSES: dict[str, list[tuple[str, str, str]]] = {
    "lora": [
        ("peft", "tuners/lora/config.py", "LoraConfig"),
        ("peft", "config.py", "PeftConfig"),
    ],
    "lora.eva_config": [("peft", "tuners/lora/config.py", "EvaConfig")],
    "trainer": [
        ("trl", "trainer/sft_config.py", "SFTConfig"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("transformers", "training_args.py", "TrainingArguments"),
    ],
    "dpo": [
        ("trl", "trainer/dpo_config.py", "DPOConfig"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("transformers", "training_args.py", "TrainingArguments"),
    ],
}

# What an annotation in those sources may name and YAML can express. Any other name means `no value from a recipe`.
_KNOWN: dict[str, Any] = {
    "int": int, "float": float, "str": str, "bool": bool, "dict": dict, "list": list, "tuple": tuple,
    "None": None, "Any": Any, "Literal": Literal,
}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """One field of an upstream class: its annotation as written, and a check for values from YAML."""

    name: str
    annotation: str
    adapter: TypeAdapter[Any] | None

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, or None.

        An annotation that this module cannot read is left to upstream's own constructor, at `check`.
        """
        if self.adapter is None:
            return None
        try:
            self.adapter.validate_python(value)
        except ValidationError:
            return f"{value!r} is not {self.annotation}"
        return None


@cache
def fields(section: str) -> dict[str, Field]:
    """All fields of the class behind `lora:` or `trainer:`, by name; that of `trainer:` under kind `dpo` is `dpo`."""
    found: dict[str, Field] = {}
    for package, file, class_name in CLASSES[section]:
        for name, annotation in _annotations(package, file, class_name):
            text = ast.unparse(annotation)
            found.setdefault(name, Field(name, text, _adapter(annotation)))
    return found


def _annotations(package: str, file: str, class_name: str) -> list[tuple[str, ast.expr]]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed")
    tree = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    return [
        (node.target.id, node.annotation)
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id != "self"
    ]


def _adapter(annotation: ast.expr) -> TypeAdapter[Any] | None:
    kind = _type(annotation)
    # Strict, so that `r: "8"` and `r: 8.5` are refused; an int for a float is fine in YAML and in Python.
    return None if kind is None else TypeAdapter(kind, config=ConfigDict(strict=True))


def _type(node: ast.expr) -> Any:
    """The typing object of an annotation, without any part that YAML cannot express; None if nothing is left."""
    if isinstance(node, ast.Constant) and node.value is None:
        return type(None)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _type(ast.parse(node.value, mode="eval").body)
    if isinstance(node, ast.Name):
        return _KNOWN.get(node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union([_type(node.left), _type(node.right)])
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        match node.value.id:
            case "Optional":
                return _union([_type(inner[0]), type(None)])
            case "Union":
                return _union([_type(part) for part in inner])
            case "Literal":
                members = tuple(ast.literal_eval(part) for part in inner)
                # peft writes a family of values as one member, `pissa_niter_[number of iters]`: take any string then.
                return str if any(isinstance(m, str) and "[" in m for m in members) else Literal[members]
            case "list":
                # Upstream turns lists into tuples where it wants them; the parts are checked by its constructor.
                return list
            case "dict":
                return dict
            case _:
                return None
    return None


def _union(kinds: list[Any]) -> Any:
    # An unknown member (an upstream enum or class) is dropped: SFTConfig's enums all admit the plain string beside.
    known = [kind for kind in kinds if kind is not None]
    if not known or all(kind is type(None) for kind in known):
        return None
    union = known[0]
    for kind in known[1:]:
        union = union | kind
    return union
