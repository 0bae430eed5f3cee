"""From a recipe and rows to a trainer that could take its first step: configurations, profile, model."""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from trl import DPOConfig, SFTConfig

from tunesmith import adapters, hardware, preferences
from tunesmith.bases import Base
from tunesmith.errors import UserError
from tunesmith.findings import Finding, seen
from tunesmith.hardware import Profile
from tunesmith.methods import init_name
from tunesmith.progress import say
from tunesmith.prompt import Rendered, common_prefix
from tunesmith.recipe import Recipe
from tunesmith.team import here
from tunesmith.tokens import Pair
from tunesmith.train.guarded import Guarded
from tunesmith.train.loss import row_nll
from tunesmith.train.pairs import PreferenceTrainer
from tunesmith.train.start import begin, look_before
from tunesmith.train.trainer import PROBED_ROWS, AdapterTrainer
from tunesmith.train.tree import limits_for, shareable

# Largest relative error of our gradients: far above each dtype's rounding, far below a mistake.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}


def fitting_trainer(
    recipe: Recipe, rows: Sequence[Rendered], ids: Sequence[str], base: Base, lora: LoraConfig, scratch: str
) -> tuple[AdapterTrainer, Profile]:
    """A trainer whose gradients were compared with the model's own, and the profile that it runs with.

    What does not hold on this very model is left out: first shared beginnings, then our loss. Where the base is cut
    among processes, its layers compute only as a whole: there the loss is trl's.
    """
    if here().size > 1 and recipe.launch.kind != "ddp":
        if recipe.dev.rows:
            raise UserError("dev.rows: answers need the whole base; where `launch` cuts it, set dev.rows: 0")
        profile = choose_profile(recipe, rows, base, sharing=False)
        profile = replace(profile, reasons=profile.reasons | {"share_prefixes": "the base is cut among processes"})
        return open_trainer(recipe, rows, ids, base, profile, lora, scratch, own_loss=False), profile
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
        # Where it is cut, each process holds its part.
        base_gib_fp32=_base_gib_fp32(base) / (1 if recipe.launch.kind == "ddp" else here().size),
        processes=here().size,
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
        UserError: peft or trl refuses a value of the recipe, or its method does not fit base and rows.
    """
    # Made first: DeepSpeed's configuration decides how the weights are loaded.
    args = sft_config(recipe, profile, scratch)
    cut = here().size > 1 and recipe.launch.kind != "ddp"
    # What is cut among GPUs may fit into none of them.
    model = base.model(dtype=profile.torch_dtype, quantization=recipe.quantization, device="cpu" if cut else None)
    look_before(model, recipe.lora, rows)
    try:
        trainer = AdapterTrainer(
            model=model,
            args=args,
            rows=rows,
            ids=ids,
            limits=limits_for(model.config.get_text_config(), profile.device) if profile.share_prefixes else None,
            by_family=recipe.hardware.share_prefixes,
            own_loss=own_loss,
            lora_plus_ratio=recipe.lora_plus_ratio,
            team=here(),
            processing_class=base.tokenizer(),
            # A copy: peft writes into it, and a second trainer must begin as the first did.
            peft_config=deepcopy(lora),
        )
    except ValueError as error:
        raise UserError(f"lora, trainer: peft or trl refuses them: {str(error).splitlines()[0]}") from None
    trainer.start = begin(trainer.model, recipe, rows, base)
    return trainer


def preference_trainer(
    recipe: Recipe, pairs: Sequence[Pair], ids: Sequence[str], base: Base, adapter: Path, scratch: str
) -> tuple[PreferenceTrainer, Profile]:
    """A trainer of pairs that begins from a verified adapter, and the profile that it runs with.

    Raises:
        UserError: peft or trl refuses a value, or the model or its reference would not begin as the adapter left it.
    """
    if here().size > 1:
        raise UserError("launch: preference tuning trains in one process; start one, or set launch.processes: 1")
    # Both answers of a pair stand in one pass.
    longest = 2 * max(len(row.input_ids) for pair in pairs for row in pair if row)
    profile = hardware.choose(hardware.look(), recipe, longest_row=longest, base_gib_fp32=_base_gib_fp32(base))
    reasons = profile.reasons | {"share_prefixes": "trl computes the loss of pairs, each answer with its own prompt"}
    profile = replace(profile, share_prefixes=False, reasons=reasons)
    config = dpo_config(recipe, profile, scratch)
    model = adapters.attach(
        base.model(dtype=profile.torch_dtype, quantization=recipe.quantization), adapter, trainable=True
    )
    probed = [chosen for chosen, _ in pairs[:PROBED_ROWS]]
    with torch.no_grad(), torch.autocast(profile.device, profile.torch_dtype, enabled=profile.dtype != "float32"):
        began = sum(float(row_nll(model, row)) for row in probed) / sum(len(row.completion_ids) for row in probed)
    try:
        trainer = PreferenceTrainer(
            model=model,
            args=config,
            pairs=pairs,
            ids=ids,
            by_family=recipe.hardware.share_prefixes,
            lora_plus_ratio=recipe.lora_plus_ratio,
            processing_class=base.tokenizer(),
        )
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"lora, trainer: peft or trl refuses them: {str(error).splitlines()[0]}") from None
    policy = trainer.token_nll(probed)
    with trainer.as_reference():
        reference = trainer.token_nll(probed)
    if policy != reference or not math.isclose(policy, began, rel_tol=TOLERANCE[profile.dtype]):
        raise UserError(
            f"{adapter}: its loss on the first rows is {began:.4f} nats a token; where training would begin it is "
            f"{policy:.4f}, and that of the reference {reference:.4f}",
            hint="peft does not carry this kind of adapter on unchanged; train it by another method of `lora:`",
        )
    return trainer, profile


def why_not_shared(trainer: AdapterTrainer, profile: Profile) -> str | None:
    """What speaks against sharing on this very model, if anything does."""
    if trainer.limits is None:
        return "this model's layers, or the settings of its loss, do not allow it"
    if (error := trainer.error()) <= TOLERANCE[profile.dtype]:
        return None
    return f"gradients through shared beginnings would differ by {error:.1e} on this model"


def say_choices(profile: Profile, trainer: AdapterTrainer | PreferenceTrainer) -> None:
    """Tell what was chosen and why, and what sharing saves."""
    for choice, reason in profile.reasons.items():
        say(f"  {choice} = {getattr(profile, choice)}: {reason}")
    if isinstance(trainer, PreferenceTrainer):
        return
    work = trainer.work()
    say(
        f"  {work.rows} tokens an epoch; with padding {work.apart}, with shared beginnings {work.computed}: "
        f"{work.saved:.0%} less to compute"
    )


def as_asked(recipe: Recipe, trainer: Guarded) -> list[Finding]:
    """Whether what trains holds the recipe's values: upstream may take a key and go on with another value."""
    ours = {"per_device_train_batch_size", "gradient_accumulation_steps", "report_to"}
    asked = {f"trainer.{key}": value for key, value in recipe.trainer_keys.items() if key not in ours}
    held = {f"trainer.{key}": getattr(trainer.args, key) for key in recipe.trainer_keys}
    if recipe.kind != "dpo":
        # What the adapter of a preference run looks like is the one's that it begins from. Patterns of names peft
        # resolves to names, and a first weight that `start` computes stands in no configuration.
        plain = {key: value for key, value in recipe.lora.items() if isinstance(value, (bool, int, float))}
        plain.pop("init_lora_weights", None)
        asked |= {f"lora.{key}": value for key, value in plain.items()}
        held |= {f"lora.{key}": getattr(trainer.model.peft_config["default"], key) for key in plain}
    other = [f"{key}: {value!r}, held {held[key]!r}" for key, value in asked.items() if not _is(value, held[key])]
    args = trainer.args
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * here().size
    return [
        seen(
            "settings",
            (26,),
            not other,
            "what trains holds the recipe's values",
            "; ".join(other) or f"{len(asked)} values, each as the recipe states it",
            "upstream took another value than was asked for: state one that it holds",
            grave=False,
        ),
        seen(
            "batch size",
            (29,),
            not args.auto_find_batch_size,
            "no batch is found by running out of memory",
            f"{batch} rows a step, fixed; out of memory ends the run",
            "the installed trl and transformers do not fit: install constraints.txt",
        ),
    ]


def _is(asked: Any, held: Any) -> bool:
    """Whether a value is the recipe's; upstream makes lists of some."""
    return bool(held == asked or held == [asked])


def lora_config(recipe: Recipe) -> LoraConfig:
    """The recipe's `lora:` as peft's own object.

    Raises:
        UserError: peft refuses a value.
    """
    keys = dict(recipe.lora)
    if init_name(keys) == "loftq":
        # peft would quantise a base of its own, on CUDA only; `start` does it on the base that there is.
        del keys["init_lora_weights"]
    if init_name(keys) == "eva":
        keys.setdefault("eva_config", {})
    try:
        return LoraConfig(task_type="CAUSAL_LM", **keys)
    except (TypeError, ValueError) as error:
        raise UserError(f"lora: peft refuses it: {error}") from None


def sft_config(recipe: Recipe, profile: Profile, directory: str) -> SFTConfig:
    """The recipe's `trainer:` as trl's own object, completed by the profile.

    Raises:
        UserError: trl refuses a value.
    """
    ours = _ours(recipe, profile, directory) | {"dataset_kwargs": {"skip_prepare_dataset": True}}
    try:
        config = SFTConfig(**{**recipe.trainer_keys, **ours})
    except (TypeError, ValueError) as error:
        raise UserError(f"trainer: trl refuses it: {error}") from None
    # transformers adds kubeflow by itself where its server's address is set; `Trackers` tells whom the recipe names.
    config.report_to = []
    return config


def dpo_config(recipe: Recipe, profile: Profile, directory: str) -> DPOConfig:
    """The recipe's `trainer:` of kind `dpo` as trl's own object, completed by the profile.

    Raises:
        UserError: trl refuses a value, or a loss would depend on how the profile cuts a step.
    """
    ours = _ours(recipe, profile, directory) | {"disable_dropout": True}
    try:
        config = DPOConfig(**{**recipe.trainer_keys, **ours})
    except (TypeError, ValueError) as error:
        raise UserError(f"trainer: trl refuses it: {error}") from None
    config.report_to = []
    if profile.accumulation > 1 and (together := sorted(preferences.TOGETHER & set(config.loss_type))):
        raise UserError(
            f"trainer.loss_type: {together[0]!r} takes the pairs of a step together, and {profile.rows_per_pass} "
            f"of its {profile.rows_per_pass * profile.accumulation} fit into one pass here",
            hint="lower trainer.per_device_train_batch_size, or raise hardware.batch_tokens",
        )
    return config


def _ours(recipe: Recipe, profile: Profile, directory: str) -> dict[str, Any]:
    """What the toolkit sets, whatever the kind of training."""
    return {
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
        # Whether and when a checkpoint is written is the Saver's say.
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": profile.device == "cuda",
        **_divided(recipe),
    }


def _divided(recipe: Recipe) -> dict[str, Any]:
    """How several processes share the work, in upstream's words."""
    if here().size == 1 or recipe.launch.kind == "ddp":
        return {}
    if recipe.launch.kind == "deepspeed":
        return {"deepspeed": recipe.launch.deepspeed_config}
    return {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}}


def _base_gib_fp32(base: Base) -> float:
    """The size of the base's weights as float32; files hold at least two bytes a weight."""
    on_disk = sum(path.stat().st_size for path in base.directory.glob("*.safetensors"))
    return float(on_disk * (1 if base.stored_dtype() == "float32" else 2) / hardware.GIB)
