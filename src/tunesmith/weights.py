"""Weights in safetensors files, looked at as bytes before a library builds a model of them.

The header says each tensor's name, dtype and shape, and where its numbers lie. Of an adapter it must name what its
configuration declares and nothing else; of any weights the numbers must be numbers.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.errors import UserError

HIGHEST_RANK = 1024
"""Of an adapter: twice what a recipe may ask for, since an adapter that began as a part of its base ends as two."""

# For each floating dtype the unsigned integer that its bits are, and the bits that are all set in NaN and infinity.
BITS: dict[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("<u1", 0x7C),
    "F8_E4M3": ("<u1", 0x7F),
}
ADAPTER_DTYPES = {"F32", "F16", "BF16"}
LOOKED_AT = 1 << 22
"""Numbers that are looked at in one go."""


@dataclass(frozen=True)
class Tensor:
    """A tensor as the header of its file describes it."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """Byte of the file at which its numbers begin."""


def header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, without reading their numbers.

    Raises:
        UserError: it is no safetensors file, or its header is too large, cut off or says what cannot be.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # safetensors' own reading bounds the header and refuses offsets that overlap, leave gaps or lie outside.
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            told = json.loads(stream.read(size))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not whole safetensors ({str(error).splitlines()[0][:160]})") from None
    return {
        name: Tensor(entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0])
        for name, entry in told.items()
        if name != "__metadata__"
    }


def not_finite(path: Path, tensors: Mapping[str, Tensor]) -> list[str]:
    """The tensors of a file that hold NaN or infinity."""
    return [name for name, tensor in tensors.items() if not _is_finite(path, tensor)]


def _is_finite(path: Path, tensor: Tensor) -> bool:
    count = int(np.prod(tensor.shape, dtype=np.int64))
    if tensor.dtype not in BITS or not count:
        return True
    kind, special = BITS[tensor.dtype]
    numbers = np.memmap(path, dtype=kind, mode="r", offset=tensor.start, shape=(count,))
    mask = numbers.dtype.type(special)
    return not any(
        bool(((numbers[begin : begin + LOOKED_AT] & mask) == mask).any()) for begin in range(0, count, LOOKED_AT)
    )


def refuse_broken(paths: Iterable[Path]) -> None:
    """Refuse weights that a model could not have been saved with.

    Raises:
        UserError: a file is no whole safetensors file, or a tensor holds what is no number.
    """
    problems = []
    for path in paths:
        try:
            wrong = not_finite(path, header(path))
        except UserError as error:
            problems += error.problems
            continue
        if wrong:
            problems.append(f"{path}: {_some(wrong)}: not all numbers are finite")
    if problems:
        raise UserError(problems, hint="the files are damaged or were tampered with; fetch them anew from their maker")


# ---------------------------------------------------------------------- an adapter's

MODULE = re.compile(
    r"base_model\.model\.(?P<module>[\w.]+?)\."
    r"(?P<part>lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector(?:\.weight)?"
    r"|token_adapter\.trainable_tokens_delta|weight|bias)"
)


def unfit_for_adapter(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> list[str]:
    """What is wrong with an adapter's tensors: names, shapes or dtypes that `adapter_config.json` does not declare."""
    problems = []
    for name, tensor in tensors.items():
        match = MODULE.fullmatch(name)
        if match is None or not _is_declared(match["module"], match["part"], config):
            problems.append(f"{name}: not declared by adapter_config.json")
        elif tensor.dtype not in ADAPTER_DTYPES:
            problems.append(f"{name}: {tensor.dtype}, not one of {', '.join(sorted(ADAPTER_DTYPES))}")
        elif problem := _misshapen(match["module"], match["part"], tensor.shape, config):
            problems.append(f"{name}: {problem}")
    for name in tensors:
        one, other = ("_A", "_B") if "_A" in name else ("_B", "_A")
        if re.search(r"\.lora_(?:embedding_)?[AB](?:\.weight)?$", name):
            stem, _, end = name.rpartition(one)
            if f"{stem}{other}{end}" not in tensors:
                problems.append(f"{name}: stands without its lora{other}")
    return problems


def _is_declared(module: str, part: str, config: Mapping[str, Any]) -> bool:
    saved = any(f"{name}." in f"{module}." for name in config.get("modules_to_save") or ())
    if part == "weight":
        return saved
    if part == "bias":
        biases = config.get("bias", "none")
        return saved or biases == "all" or (biases == "lora_only" and _is_targeted(module, config))
    if part.startswith("token_adapter"):
        return bool(config.get("trainable_token_indices"))
    needs = {"lora_magnitude_vector": "use_dora", "lora_B.bias": "lora_bias"}.get(part.removesuffix(".weight"))
    return (needs is None or bool(config.get(needs))) and _is_targeted(module, config)


def _is_targeted(module: str, config: Mapping[str, Any]) -> bool:
    # What is adapted as a bare parameter hangs on the module that holds it, several of one module inside each other.
    holder = re.sub(r"(\.base_layer)+$", "", module)
    if any(_ends_with(holder, str(name).rpartition(".")[0]) for name in config.get("target_parameters") or ()):
        return True
    targets = config.get("target_modules") or ()
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, module) is not None
    return any(_ends_with(module, str(target)) for target in targets)


def _ends_with(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _misshapen(module: str, part: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> str | None:
    if part.startswith("token_adapter"):
        told = config["trainable_token_indices"]
        counts = {len(indices) for indices in (told.values() if isinstance(told, dict) else [told])}
        return None if len(shape) == 2 and shape[0] in counts else f"shape {list(shape)}, not a vector for each token"
    if not re.match(r"lora_(embedding_)?[AB](\.weight)?$", part):
        return None
    if len(shape) < 2:
        return f"shape {list(shape)} is no matrix"
    found, wanted = shape[0] if "_A" in part else shape[1], _rank(module, config)
    if not 0 < wanted <= HIGHEST_RANK:
        return f"adapter_config.json gives it the rank {wanted}, which is not between 1 and {HIGHEST_RANK}"
    # Of a bare parameter with experts every expert has a part of its own.
    if found != wanted and not (config.get("target_parameters") and found % wanted == 0):
        return f"rank {found}, where adapter_config.json says {wanted}"
    return None


def _rank(module: str, config: Mapping[str, Any]) -> int:
    """The rank that a configuration gives a module (peft, `utils/other.py`, `get_pattern_key`)."""
    patterns = config.get("rank_pattern") or {}
    own = next((rank for key, rank in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), config.get("r"))
    return own if isinstance(own, int) else 0


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
