"""From a recipe and rows to a trainer that could take its first step: configurations, profile, model."""

from collections.abc import Sequence
from dataclasses import replace

from peft import LoraConfig
from trl import SFTConfig

from tunesmith import hardware
from tunesmith.bases import Base
from tunesmith.errors import UserError
from tunesmith.hardware import Profile
from tunesmith.progress import say
from tunesmith.prompt import Rendered, common_prefix
from tunesmith.recipe import Recipe
from tunesmith.train.trainer import AdapterTrainer
from tunesmith.train.tree import limits_for, shareable

# Largest relative error of our gradients: far above each dtype's rounding, far below a mistake.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}


def fitting_trainer(
    recipe: Recipe, rows: Sequence[Rendered], ids: Sequence[str], base: Base, lora: LoraConfig, scratch: str
) -> tuple[AdapterTrainer, Profile]:
    """A trainer whose gradients were compared with the model's own, and the profile that it runs with.

    What does not hold on this very model is left out: first shared beginnings, then our loss.
    """
    profile = choose_profile(recipe, rows, base, sharing=recipe.hardware.share_prefixes)
    trainer = open_trainer(recipe, rows, ids, base, profile, lora, scratch)
    if profile.share_prefixes and (reason := why_not_shared(trainer, profile)):
        profile = choose_profile(recipe, rows, base, sharing=False)
        profile = replace(profile, reasons=profile.reasons | {"share_prefixes": reason})
        trainer = open_trainer(recipe, rows, ids, base, profile, lora, scratch)
    if not trainer.error() <= TOLERANCE[profile.dtype]:
        say("  loss and gradients are left to trl: ours are not this model's own")
        trainer = open_trainer(recipe, rows, ids, base, profile, lora, scratch, own_loss=False)
    return trainer, profile


def choose_profile(recipe: Recipe, rows: Sequence[Rendered], base: Base, *, sharing: bool) -> Profile:
    """The hardware profile for some rows; `sharing` says whether rows of a batch may share what they begin with."""
    hardware_section = recipe.hardware.model_copy(update={"share_prefixes": sharing})
    return hardware.choose(
        hardware.look(),
        recipe.model_copy(update={"hardware": hardware_section}),
        longest_row=max(len(row.input_ids) for row in rows),
        shared_tokens=common_prefix([shareable(row) for row in rows]),
        base_gib_fp32=_base_gib_fp32(base),
    )


def open_trainer(
    recipe: Recipe,
    rows: Sequence[Rendered],
    ids: Sequence[str],
    base: Base,
    profile: Profile,
    lora: LoraConfig,
    scratch: str,
    *,
    own_loss: bool = True,
) -> AdapterTrainer:
    """A trainer with a fresh model.

    Raises:
        UserError: peft or trl refuses a value of the recipe.
    """
    model = base.model(dtype=profile.torch_dtype, quantization=recipe.quantization)
    try:
        return AdapterTrainer(
            model=model,
            args=sft_config(recipe, profile, scratch),
            rows=rows,
            ids=ids,
            limits=limits_for(model.config.get_text_config(), profile.device) if profile.share_prefixes else None,
            by_family=recipe.hardware.share_prefixes,
            own_loss=own_loss,
            processing_class=base.tokenizer(),
            peft_config=lora,
        )
    except ValueError as error:
        raise UserError(f"lora, trainer: peft or trl refuses them: {str(error).splitlines()[0]}") from None


def why_not_shared(trainer: AdapterTrainer, profile: Profile) -> str | None:
    """What speaks against sharing on this very model, if anything does."""
    if trainer.limits is None:
        return "this model's layers, or the settings of its loss, do not allow it"
    if (error := trainer.error()) <= TOLERANCE[profile.dtype]:
        return None
    return f"gradients through shared beginnings would differ by {error:.1e} on this model"


def say_choices(profile: Profile, trainer: AdapterTrainer) -> None:
    """Tell what was chosen and why, and what sharing saves."""
    for choice, reason in profile.reasons.items():
        say(f"  {choice} = {getattr(profile, choice)}: {reason}")
    work = trainer.work()
    say(
        f"  {work.rows} tokens an epoch; with padding {work.apart}, with shared beginnings {work.computed}: "
        f"{work.saved:.0%} less to compute"
    )


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
        # Whether and when a checkpoint is written is the Saver's say.
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": profile.device == "cuda",
    }
    try:
        config = SFTConfig(**{**recipe.trainer, **ours})
    except (TypeError, ValueError) as error:
        raise UserError(f"trainer: trl refuses it: {error}") from None
    # transformers adds kubeflow by itself where its server's address is set; `Trackers` tells whom the recipe names.
    config.report_to = []
    return config


def _base_gib_fp32(base: Base) -> float:
    """The size of the base's weights as float32; files hold at least two bytes a weight."""
    on_disk = sum(path.stat().st_size for path in base.directory.glob("*.safetensors"))
    return float(on_disk * (1 if base.stored_dtype() == "float32" else 2) / hardware.GIB)
