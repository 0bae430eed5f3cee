"""Train an adapter on the train split and write it with everything that says what it is.

Reads the recipe, the train and dev rows and the base. Writes `adapter/` (safetensors and manifest), `train.jsonl`,
`loss.png` and `recipe.lock.yaml`. The same inputs give the same adapter, bit for bit, for one machine and thread count.
"""

import tempfile
from enum import Enum
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.helpers import disable_input_dtype_casting
from ruamel.yaml import YAML
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig

from tunesmith import adapters, hardware
from tunesmith.bases import Base
from tunesmith.errors import UserError
from tunesmith.files import sha256_json
from tunesmith.hardware import Profile
from tunesmith.progress import say
from tunesmith.prompt import Rendered, Renderer, common_prefix
from tunesmith.recipe import LoadedRecipe, Recipe
from tunesmith.rows import Dataset
from tunesmith.runs import versions
from tunesmith.tokens import rendered_rows
from tunesmith.train.trainer import AdapterTrainer
from tunesmith.train.tree import limits_for, shareable
from tunesmith.train.watch import Watch, plot_loss

# What SFTConfig resolves to on one machine and must not be in a lock that another machine reads.
MACHINE_KEYS = {"output_dir", "logging_dir", "run_name", "hub_token", "push_to_hub_token", "use_cpu", "local_rank"}


# Largest relative error of gradients through a shared beginning: far above each dtype's rounding, far below a mistake.
SHARING_ERROR = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}


def train(loaded: LoadedRecipe, dataset: Dataset, base: Base, out: Path, *, tokens: Path) -> None:
    """Train and write into `out`; `tokens` is where `check` left the rows' token ids.

    Raises:
        UserError: peft or trl refuses a value of the recipe.
        Diverged: the loss became not a number, or the adapter learned nothing at all.
    """
    recipe = loaded.recipe
    renderer = Renderer(base.tokenizer(), base.end_ids())
    rows = rendered_rows(renderer, dataset, "train", tokens / "train.safetensors")
    dev = rendered_rows(renderer, dataset, "dev", tokens / "dev.safetensors")
    longest = max(len(row.input_ids) for row in rows)
    profile = hardware.choose(
        hardware.look(),
        recipe,
        longest_row=longest,
        shared_tokens=common_prefix([shareable(row) for row in rows]),
        base_gib_fp32=_base_gib_fp32(base),
    )
    for choice, reason in profile.reasons.items():
        say(f"  {choice} = {getattr(profile, choice)}: {reason}")

    # Taken now: trl may give the tokenizer that it is handed a pad token.
    prompt_digest = renderer.digest(dataset.manifest()["systems"])
    lora = lora_config(recipe)
    watch = Watch(out / "train.jsonl")
    with tempfile.TemporaryDirectory() as scratch:
        model = base.model(dtype=profile.torch_dtype, quantization=recipe.quantization)
        limits = limits_for(model.config.get_text_config(), profile.device, longest)
        try:
            trainer = AdapterTrainer(
                model=model,
                args=sft_config(recipe, profile, scratch),
                rows=rows,
                limits=limits if profile.share_prefixes else None,
                processing_class=base.tokenizer(),
                peft_config=lora,
                callbacks=[watch, DevLoss(watch, dev)],
            )
        except ValueError as error:
            raise UserError(f"lora, trainer: peft or trl refuses them: {str(error).splitlines()[0]}") from None
        trainer.remove_callback(PrinterCallback)
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, DevLoss):
                callback.trainer = trainer
        prove_sharing(trainer, profile)
        # Under autocast peft would widen each input to float32, for the next operation to narrow it again: same bits.
        narrow = disable_input_dtype_casting(trainer.model, active=profile.dtype != "float32")
        try:
            with narrow:
                trainer.train()
        finally:
            watch.close()
        resolved = {k: v for k, v in trainer.args.to_dict().items() if k not in MACHINE_KEYS}
    adapters.save(
        trainer.model,
        out / "adapter",
        base=base,
        bound={
            "quantization": recipe.quantization,
            "prompt_digest": prompt_digest,
            "recipe_digest": sha256_json(recipe.as_dict()),
            "train_digest": dataset.digest("train"),
        },
    )
    plot_loss(watch.lines, out / "loss.png")
    write_lock(out / "recipe.lock.yaml", loaded, profile, lora, resolved, base)


def prove_sharing(trainer: AdapterTrainer, profile: Profile) -> None:
    """Share only where this model's gradients through a shared beginning are those of rows on their own, and say it."""
    error = trainer.sharing_error()
    if error > SHARING_ERROR[profile.dtype]:
        trainer.share(None)
        say(f"  nothing is shared: gradients through a shared beginning differ by {error:.1e} on this model")
    work = trainer.work()
    say(
        f"  {work.rows} tokens an epoch; with padding {work.apart}, with shared beginnings {work.computed}: "
        f"{work.saved:.0%} less to compute"
    )


class DevLoss(TrainerCallback):  # type: ignore[misc]
    """Scores the dev rows after each epoch."""

    def __init__(self, watch: Watch, rows: list[Rendered]) -> None:
        self.watch = watch
        self.rows = rows
        self.trainer: AdapterTrainer | None = None

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the dev loss."""
        if self.trainer:
            self.watch.write({"step": state.global_step, "dev_nll": round(self.trainer.token_nll(self.rows), 6)})


def lora_config(recipe: Recipe) -> LoraConfig:
    """The recipe's `lora:` as peft's own object.

    Raises:
        UserError: peft refuses a value.
    """
    try:
        return LoraConfig(task_type="CAUSAL_LM", **recipe.lora)
    except (TypeError, ValueError) as error:
        raise UserError(f"lora: peft refuses it: {error}") from None


def sft_config(recipe: Recipe, profile: Profile, directory: str) -> SFTConfig:
    """The recipe's `trainer:` as trl's own object, completed by the profile.

    Raises:
        UserError: trl refuses a value.
    """
    ours = {
        "output_dir": directory,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "bf16": profile.dtype == "bfloat16",
        "fp16": profile.dtype == "float16",
        "use_cpu": profile.device == "cpu",
        "gradient_checkpointing": profile.gradient_checkpointing,
        "per_device_train_batch_size": profile.rows_per_pass,
        "gradient_accumulation_steps": profile.accumulation,
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": profile.device == "cuda",
    }
    try:
        return SFTConfig(**{**recipe.trainer, **ours})
    except (TypeError, ValueError) as error:
        raise UserError(f"trainer: trl refuses it: {error}") from None


def write_lock(
    path: Path, loaded: LoadedRecipe, profile: Profile, lora: LoraConfig, trainer: dict[str, Any], base: Base
) -> None:
    """Write every resolved value: the recipe, upstream's defaults, the machine's choices, versions."""
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in lora.to_dict().items()}
    lock = {
        "recipe": loaded.recipe.as_dict(),
        "set": loaded.overrides(),
        "base": {"name": base.name, "digest": base.digest},
        "profile": {
            "device": profile.device,
            "dtype": profile.dtype,
            "gradient_checkpointing": profile.gradient_checkpointing,
            "rows_per_pass": profile.rows_per_pass,
            "accumulation": profile.accumulation,
            "share_prefixes": profile.share_prefixes,
        },
        "lora": _plain(config),
        "trainer": _plain(trainer),
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


def _base_gib_fp32(base: Base) -> float:
    """The size of the base's weights as float32; files hold at least two bytes a weight."""
    on_disk = sum(path.stat().st_size for path in base.directory.glob("*.safetensors"))
    return float(on_disk * (1 if base.stored_dtype() == "float32" else 2) / hardware.GIB)
