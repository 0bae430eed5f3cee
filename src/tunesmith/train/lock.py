"""recipe.lock.yaml: every value that a run resolved to, for a person and for another machine."""

from enum import Enum
from pathlib import Path
from typing import Any

from peft import LoraConfig
from ruamel.yaml import YAML
from trl import DPOConfig, SFTConfig

from tunesmith.bases import Base
from tunesmith.beginning import Beginning
from tunesmith.hardware import Profile
from tunesmith.recipe import LoadedRecipe
from tunesmith.runs import versions

# What SFTConfig resolves to on one machine and must not be in a lock that another machine reads.
MACHINE_KEYS = {"output_dir", "logging_dir", "run_name", "hub_token", "push_to_hub_token", "use_cpu", "local_rank"}


def write_lock(
    path: Path,
    loaded: LoadedRecipe,
    profile: Profile,
    lora: LoraConfig,
    args: SFTConfig | DPOConfig,
    base: Base,
    beginning: Beginning | None = None,
) -> None:
    """Write every resolved value: the recipe, upstream's defaults, the machine's choices, versions."""
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in lora.to_dict().items()}
    lock = {
        "recipe": loaded.recipe.as_dict(),
        "set": loaded.overrides(),
        "base": {"name": base.name, "digest": base.digest},
        **({"after": {"run": beginning.run.name, "adapter": beginning.digest}} if beginning else {}),
        "profile": {
            "device": profile.device,
            "dtype": profile.dtype,
            "gradient_checkpointing": profile.gradient_checkpointing,
            "rows_per_pass": profile.rows_per_pass,
            "accumulation": profile.accumulation,
            "share_prefixes": profile.share_prefixes,
        },
        "lora": _plain(config),
        "trainer": _plain({k: v for k, v in args.to_dict().items() if k not in MACHINE_KEYS}),
        "versions": versions(),
    }
    with path.open("w", encoding="utf-8") as stream:
        YAML(typ="safe", pure=True).dump(lock, stream)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Enum):
        return value.value
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
