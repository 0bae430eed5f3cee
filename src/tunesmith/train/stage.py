"""Train an adapter on the train split and write it with everything that says what it is.

Reads the recipe, the train and dev rows and the base. Writes `adapter/` (safetensors and manifest), `train.jsonl`,
`loss.png` and `recipe.lock.yaml`. The same inputs give the same adapter, bit for bit, for one machine and thread count,
however often the run was killed on its way.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from tunesmith.errors import Diverged, UserError
from tunesmith.files import sha256_json
from tunesmith.hardware import Profile
from tunesmith.progress import say
from tunesmith.prompt import Rendered, Renderer, common_prefix
from tunesmith.recipe import LoadedRecipe, Recipe
from tunesmith.rows import Dataset
from tunesmith.runs import versions
from tunesmith.tokens import rendered_rows
from tunesmith.train.checkpoints import Checkpoint, Checkpoints, drift, read
from tunesmith.train.saver import Saver
from tunesmith.train.stops import polite_stops
from tunesmith.train.trainer import PROBED_ROWS, AdapterTrainer
from tunesmith.train.tree import limits_for, shareable
from tunesmith.train.watch import Watch, plot_loss

# What SFTConfig resolves to on one machine and must not be in a lock that another machine reads.
MACHINE_KEYS = {"output_dir", "logging_dir", "run_name", "hub_token", "push_to_hub_token", "use_cpu", "local_rank"}


# Largest relative error of our gradients: far above each dtype's rounding, far below a mistake.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}


@dataclass(frozen=True)
class Resumption:
    """Where a run may go on from, and what it must agree with."""

    directory: Path
    """Of this run's checkpoints."""
    identity: Mapping[str, Any]
    """Everything that decides what is trained on what."""
    source: Path | None = None
    """A checkpoint, or a run that holds some, to begin from where this run has none of its own."""
    allow_drift: bool = False
    """Go on from a checkpoint that was made otherwise; what differs is recorded."""


def train(
    loaded: LoadedRecipe, dataset: Dataset, base: Base, out: Path, *, tokens: Path, resumption: Resumption
) -> None:
    """Train and write into `out`; `tokens` is where `check` left the rows' token ids.

    Raises:
        UserError: peft or trl refuses a value of the recipe, or the checkpoint there is was made otherwise.
        Interrupted: it was asked to stop, and has saved a checkpoint.
        Diverged: a loss or a gradient became not a number, or the adapter learned nothing at all.
    """
    recipe = loaded.recipe
    renderer = Renderer(base.tokenizer(), base.end_ids())
    rows = rendered_rows(renderer, dataset, "train", tokens / "train.safetensors")
    dev = rendered_rows(renderer, dataset, "dev", tokens / "dev.safetensors")
    ids = [turn.id for row in dataset.rows("train") for turn in row.turns()]
    profile = choose_profile(recipe, rows, base, sharing=recipe.hardware.share_prefixes)

    # Taken now: trl may give the tokenizer that it is handed a pad token.
    prompt_digest = renderer.digest(dataset.manifest()["systems"])
    lora = lora_config(recipe)
    with tempfile.TemporaryDirectory() as scratch, polite_stops() as stop:
        trainer = open_trainer(recipe, rows, ids, base, profile, lora, scratch)
        if profile.share_prefixes and (reason := why_not_shared(trainer, profile)):
            profile = choose_profile(recipe, rows, base, sharing=False)
            profile = replace(profile, reasons=profile.reasons | {"share_prefixes": reason})
            trainer = open_trainer(recipe, rows, ids, base, profile, lora, scratch)
        if not trainer.error() <= TOLERANCE[profile.dtype]:
            say("  loss and gradients are left to trl: ours are not this model's own")
            trainer = open_trainer(recipe, rows, ids, base, profile, lora, scratch, own_loss=False)
        say_choices(profile, trainer)
        watch = Watch(out / "train.jsonl", trainer.lines)
        binding = {**resumption.identity, "machine": machine(profile)}
        trainer.checkpoints = Checkpoints(resumption.directory, binding, recipe.checkpoints.keep)
        checkpoint, drifted = where_to_begin(trainer.checkpoints, resumption)
        trainer.add_callback(watch)
        trainer.add_callback(DevLoss(watch, dev, trainer))
        trainer.add_callback(Saver(trainer, recipe.checkpoints, stop))
        trainer.remove_callback(PrinterCallback)
        # Under autocast peft would widen each input to float32, for the next operation to narrow it again: same bits.
        narrow = disable_input_dtype_casting(trainer.model, active=profile.dtype != "float32")
        try:
            with narrow:
                trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
        finally:
            watch.close()
        if trainer.changes_nothing(dev[:PROBED_ROWS]):
            raise Diverged("training: with the adapter the model answers as without it; nothing was written")
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
            "drift": drifted,
        },
    )
    plot_loss(watch.lines, out / "loss.png")
    write_lock(out / "recipe.lock.yaml", loaded, profile, lora, resolved, base)


def where_to_begin(checkpoints: Checkpoints, resumption: Resumption) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to go on from, if there is one, and where it was made otherwise than this run.

    Raises:
        UserError: it was made otherwise, and that was not allowed; or the one that was named is none.
    """
    found = checkpoints.newest()
    if found is None and resumption.source is not None:
        found = named_checkpoint(resumption.source)
    elif resumption.source is not None:
        say(f"  --resume {resumption.source} is not needed: this run has a checkpoint of its own")
    if found is None:
        return None, []
    differences = drift(found.binding, checkpoints.binding)
    if differences and not resumption.allow_drift:
        raise UserError(
            [f"{found.path}: was made otherwise: {difference}" for difference in differences],
            hint="undo the difference; or give `--allow-drift` to go on all the same, which is recorded; "
            "or begin anew: delete the checkpoints, or give no `--resume`",
        )
    for difference in differences:
        say(f"  drift, allowed and recorded: {difference}")
    say(f"  goes on after step {found.step}, from {found.path}")
    return found, differences


def named_checkpoint(source: Path) -> Checkpoint:
    """The checkpoint at a path, or the newest one of the run that lies there.

    Raises:
        UserError: there is none, or it is not whole.
    """
    if (source / "checkpoints").is_dir():
        found = Checkpoints(source / "checkpoints", {}).newest()
        if found is None:
            raise UserError(f"{source / 'checkpoints'}: holds no whole checkpoint")
        return found
    return read(source)


def machine(profile: Profile) -> dict[str, Any]:
    """What of a machine decides the last bits of what is computed."""
    import torch

    cuda = profile.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else f"cpu, {torch.backends.cpu.get_cpu_capability()}",
        "threads": None if cuda else torch.get_num_threads(),
        "processes": 1,
        "dtype": profile.dtype,
        "gradient_checkpointing": profile.gradient_checkpointing,
        "rows_per_pass": profile.rows_per_pass,
        "accumulation": profile.accumulation,
        "share_prefixes": profile.share_prefixes,
    }


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


class DevLoss(TrainerCallback):  # type: ignore[misc]
    """Scores the dev rows after each epoch."""

    def __init__(self, watch: Watch, rows: list[Rendered], trainer: AdapterTrainer) -> None:
        self.watch = watch
        self.rows = rows
        self.trainer = trainer

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the dev loss."""
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
        # Whether and when a checkpoint is written is the Saver's say.
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
