"""One look at the machine, and the choices that follow from it, each with its reason.

The choices never change what is learned but by rounding and the noise of dropout: batch size times accumulation stays
as the recipe says, the profile only decides how it is cut into forward passes and what of them is computed once.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import UserError
from tunesmith.recipe import Recipe

if TYPE_CHECKING:
    import torch

GIB = 1024**3


@dataclass(frozen=True)
class Hardware:
    """What the machine has."""

    device: str
    name: str
    memory_gib: float
    cores: int
    bf16: bool
    triton: bool


@dataclass(frozen=True)
class Profile:
    """What was chosen for a run on a machine."""

    device: str
    dtype: str
    gradient_checkpointing: bool
    rows_per_pass: int
    accumulation: int
    share_prefixes: bool
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The dtype as torch names it."""
        import torch

        kind: torch.dtype = getattr(torch, self.dtype)
        return kind


def look() -> Hardware:
    """Look at the machine once."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        # Turing answers yes to is_bf16_supported() because it emulates it; the units came with Ampere.
        bf16 = properties.major >= 8
        return Hardware("cuda", properties.name, properties.total_memory / GIB, cores, bf16, _has_triton())
    bf16 = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return Hardware("cpu", "cpu", _memory_gib(), cores, bf16, False)


def choose(
    hardware: Hardware,
    recipe: Recipe,
    *,
    longest_row: int,
    base_gib_fp32: float,
    shared_tokens: int = 0,
    processes: int = 1,
) -> Profile:
    """Pick dtype, checkpointing and the cut of the batch.

    `longest_row` in tokens; `shared_tokens` are those that all rows begin with; `base_gib_fp32` is the base's size if
    all its weights were float32. A step's rows are divided evenly among `processes`.

    Raises:
        UserError: they cannot be.
    """
    reasons: dict[str, str] = {}
    dtype = recipe.hardware.dtype
    if dtype != "auto":
        reasons["dtype"] = "the recipe says so"
    elif hardware.device == "cpu":
        units = "its bfloat16 units would save a quarter of the time" if hardware.bf16 else "it would emulate bfloat16"
        dtype, reasons["dtype"] = "float32", f"on a CPU answers then do not depend on the batch; {units}"
    elif hardware.bf16:
        dtype, reasons["dtype"] = "bfloat16", "this GPU computes in it"
    else:
        dtype, reasons["dtype"] = "float16", "this GPU has no bfloat16 units"

    stated = recipe.trainer.get("gradient_checkpointing")
    if stated is not None:
        checkpointing, reasons["gradient_checkpointing"] = bool(stated), "the recipe says so"
    else:
        room = hardware.memory_gib - base_gib_fp32 * (1 if dtype == "float32" else 0.5)
        checkpointing = room < base_gib_fp32 * 2
        reasons["gradient_checkpointing"] = (
            f"memory is short: {room:.1f} GiB beside the base" if checkpointing else f"{room:.1f} GiB are free for it"
        )

    batch = recipe.trainer["per_device_train_batch_size"] * recipe.trainer.get("gradient_accumulation_steps", 1)
    if batch % processes:
        raise UserError(
            f"launch: the {batch} rows of a step (trainer.per_device_train_batch_size times "
            f"gradient_accumulation_steps) cannot be divided evenly among {processes} processes; change one of the two"
        )
    own = batch // processes
    tokens = recipe.hardware.batch_tokens
    if tokens is None:
        # A CPU is busy with a thousand tokens; a GPU wants as many as its memory holds.
        tokens = 2048 if hardware.device == "cpu" else int(max(2048, min(32768, hardware.memory_gib * 400)))
    sharing, reasons["share_prefixes"] = _share(recipe, checkpointing)
    once = shared_tokens if sharing else 0
    fits = max(1, (tokens - once) // max(longest_row - once, 1))
    rows = max(divisor for divisor in range(1, min(own, fits) + 1) if own % divisor == 0)
    among = f" among {processes} processes" if processes > 1 else ""
    beginning = f", of which {once} shared" if once else ""
    reasons["rows_per_pass"] = (
        f"{batch} rows a step{among}, at most {tokens} tokens a pass, longest row {longest_row}{beginning}"
    )
    return Profile(hardware.device, dtype, checkpointing, rows, own // rows, sharing, reasons)


def _share(recipe: Recipe, checkpointing: bool) -> tuple[bool, str]:
    if not recipe.hardware.share_prefixes:
        return False, "the recipe says so"
    if checkpointing:
        return False, "under gradient checkpointing the model keeps no cache to share"
    return True, "what rows of a batch begin with is computed once, with the same gradients"


def _has_triton() -> bool:
    from transformers.utils import is_triton_available

    return bool(is_triton_available())


def _memory_gib() -> float:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min(whole, _container_limit() or whole) / GIB
    return 8.0


def _container_limit() -> int | None:
    """Bytes that the container may use before the system kills it, where it is limited (cgroup v2, then v1)."""
    for path in CGROUPS:
        if path.is_file() and (told := path.read_text().strip()).isdigit():
            return int(told)
    return None


CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
