"""LoRA weights on disk: written with what they belong to, and never attached to anything else.

An adapter is `adapter_config.json`, `adapter_model.safetensors` and `manifest.json`. The manifest binds it to its base,
its prompt and its data by digest. peft would load a file whose keys all mismatch and go on with random weights; here
what was attached is compared with the file, tensor by tensor.

Whatever an adapter started from, it is published as plain LoRA on the base as it is.
"""

import math
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import weights
from tunesmith.bases import Base
from tunesmith.errors import Diverged, UserError
from tunesmith.files import read_json, sha256_file, write_json
from tunesmith.runs import versions

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

FILES = ("adapter_config.json", "adapter_model.safetensors")
MANIFEST = "manifest.json"
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
NAMES_CODE = ("auto_mapping", "auto_map", "megatron_config")
"""Keys of a configuration at whose word peft imports a module."""


def save(
    model: "PeftModel",
    directory: Path,
    *,
    base: Base,
    bound: dict[str, Any],
    less: "Mapping[str, torch.Tensor] | None" = None,
    whole: "dict[str, torch.Tensor] | None" = None,
) -> None:
    """Write a trained adapter. `bound` goes into the manifest: what else the adapter belongs to.

    `less` are A and B as they were at the start, where they are to be taken away again: the adapter was trained on a
    base out of which they had been taken. `whole` are its weights, by name, where the model holds only parts of them.

    Raises:
        Diverged: a weight is not finite, or a lora_B is still zero: of that module the adapter is no adapter.
    """
    import torch

    held = whole or {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in held.values()):
        raise Diverged("training: the adapter holds weights that are not numbers; nothing was written")
    refuse_asleep(model, {name for name in leading(model) if not bool(held[name].any())})
    trained = model.peft_config["default"]
    model.peft_config["default"] = _as_published(trained, base, ranks=1 if less is None else 2)
    try:
        model.save_pretrained(
            directory,
            safe_serialization=True,
            save_embedding_layers=False,
            # Beside it there may be the reference of preference tuning.
            selected_adapters=["default"],
            state_dict=_difference(model.state_dict() if whole is None else whole, less or {}),
        )
    finally:
        model.peft_config["default"] = trained
    (directory / "README.md").unlink(missing_ok=True)
    # peft writes sets in hash order, which differs from process to process.
    config = read_json(directory / "adapter_config.json")
    for key, value in config.items():
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            config[key] = sorted(value)
    write_json(directory / "adapter_config.json", config)
    write_json(
        directory / "manifest.json",
        {
            "base": {"name": base.name, "digest": base.digest, "lineage": base.lineage},
            **bound,
            "versions": versions(),
            "files": {name: sha256_file(directory / name) for name in FILES},
        },
    )


def _as_published(config: "LoraConfig", base: Base, *, ranks: int) -> "LoraConfig":
    """The configuration of plain LoRA on the base as it is: how it began is history. `ranks` multiplies the ranks."""
    config = deepcopy(config)
    # The path of the base on this machine is neither a name nor part of the adapter.
    config.base_model_name_or_path = base.name
    config.init_lora_weights, config.eva_config = True, None
    if ranks > 1:
        # What B A is multiplied by, alpha / r or alpha / √r, stays what it was.
        alphas = math.sqrt(ranks) if config.use_rslora else ranks
        config.r, config.lora_alpha = config.r * ranks, config.lora_alpha * alphas
        config.rank_pattern = {key: rank * ranks for key, rank in (config.rank_pattern or {}).items()}
        config.alpha_pattern = {key: alpha * alphas for key, alpha in (config.alpha_pattern or {}).items()}
    return config


def _difference(weights: "dict[str, torch.Tensor]", less: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """B A less B₀ A₀, exactly: [B, -B₀] times A above A₀.

    peft's own conversion drops everything else (magnitudes, tokens) and doubles the alphas of rsLoRA.
    """
    import torch

    for name, first in less.items():
        now = weights[name].detach().cpu().float()
        weights[name] = torch.cat([now, first], dim=0) if ".lora_A." in name else torch.cat([now, -first], dim=1)
    return weights


def leading(model: "PeftModel") -> "dict[str, torch.nn.Parameter]":
    """The weights with which each adapted module begins to learn: lora_B, or lora_A where lora_B is frozen."""
    named = dict(model.named_parameters())
    return {
        name: weight
        for name, weight in named.items()
        if weight.requires_grad
        and ("lora_B" in name or ("lora_A" in name and not named[name.replace("lora_A", "lora_B")].requires_grad))
    }


def refuse_asleep(model: "PeftModel", asleep: set[str]) -> None:
    """Stop where modules that are to be trained do not take part in what the model computes.

    `asleep` names their leading weights. Of a model with experts some may have met no token, so only all of them count.

    Raises:
        Diverged: names some of the modules.
    """
    every = leading(model).keys()
    config = model.config.get_text_config()
    has_experts = any(getattr(config, key, None) for key in ("num_experts", "num_local_experts", "n_routed_experts"))
    if asleep and (asleep >= every or not has_experts):
        modules = sorted(name.partition(".lora_")[0].removeprefix("base_model.model.") for name in asleep)
        raise Diverged(
            f"training: {len(asleep)} of {len(every)} adapted modules learn nothing, their weights stay as they began: "
            f"{', '.join(modules[:3])}{' and others' if len(modules) > 3 else ''}; nothing was written",
            hint="name in lora.target_modules only what the model computes with, and raise trainer.learning_rate",
        )


def digest(directory: Path) -> str:
    """The adapter's identity: the sha256 of its weights."""
    return sha256_file(directory / "adapter_model.safetensors")


def manifest(directory: Path) -> dict[str, Any]:
    """What an adapter belongs to, unchecked."""
    found: dict[str, Any] = read_json(directory / "manifest.json")
    return found


def verify(directory: Path, *, base: Base, prompt_digest: str) -> dict[str, Any]:
    """Check that an adapter is whole, harmless and belongs to this base and this prompt; return its manifest.

    Raises:
        UserError: a file is missing, changed or does not belong there, the weights are not those that the configuration
            declares, or base or prompt are others.
    """
    refuse_unsafe(directory)
    held = _read_manifest(directory)
    problems = [
        f"{directory / name}: differs from the manifest; it was changed after training"
        for name in FILES
        if sha256_file(directory / name) != held["files"].get(name)
    ]
    if held["base"]["digest"] != base.digest:
        problems.append(f"{directory}: was trained on another base ({held['base']['name']}), not on this {base.name}")
    if held["prompt_digest"] != prompt_digest:
        problems.append(f"{directory}: was trained with another prompt: template, tokenizer or system message differ")
    if problems:
        raise UserError(problems)
    return held


def refuse_unsafe(directory: Path) -> None:
    """Refuse what is no adapter, or one that could do more than add what its configuration declares.

    Nothing of it is loaded for that: of the weights the header is read, and every number is looked at.

    Raises:
        UserError: a file is missing, a link or none of an adapter's (a pickle, a module), the configuration names code,
            or a tensor is not declared by it or holds what is no number.
    """
    names = {*FILES, MANIFEST}
    problems = [f"{directory / name}: missing" for name in sorted(names) if not (directory / name).is_file()]
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            problems.append(f"{path}: a link; an adapter's files lie in its directory")
        elif path.suffix in PICKLES:
            problems.append(f"{path}: pickled weights are not read")
        elif name not in names:
            problems.append(f"{path}: does not belong to an adapter; no code and no other weights are read")
    if problems:
        raise UserError(problems, hint="an adapter is a directory that `tunesmith train` wrote")
    config = _object(directory / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        problems.append(f"{directory / 'adapter_config.json'}: peft_type is {config.get('peft_type')!r}, not LORA")
    problems += [
        f"{directory / 'adapter_config.json'}: holds `{key}`, which names code to run; no code from models runs"
        for key in NAMES_CODE
        if config.get(key)
    ]
    path = directory / "adapter_model.safetensors"
    tensors = weights.header(path)
    problems += [f"{path}: {problem}" for problem in weights.unfit_for_adapter(tensors, config)]
    problems += [f"{path}: {name}: not all numbers are finite" for name in weights.not_finite(path, tensors)]
    if problems:
        raise UserError(problems)


def _read_manifest(directory: Path) -> dict[str, Any]:
    manifest = _object(directory / MANIFEST)
    files, base = manifest.get("files"), manifest.get("base")
    if not isinstance(files, dict) or not isinstance(base, dict) or not {"name", "digest"} <= base.keys():
        raise UserError(f"{directory / MANIFEST}: not one that `tunesmith train` wrote")
    return {"prompt_digest": None, **manifest}


def _object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; a cut or damaged file")
    return value


def attach(model: "PreTrainedModel", directory: Path, *, trainable: bool = False) -> "PeftModel":
    """Attach a verified adapter to its base: for inference, or to go on training it.

    Raises:
        UserError: it is not safe to load, or peft attached other weights than the file's, or none for they do not fit.
    """
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    refuse_unsafe(directory)
    try:
        attached: PeftModel = PeftModel.from_pretrained(model, directory, is_trainable=trainable)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{directory}: does not fit the base: {str(error).splitlines()[0][:160]}") from None
    stored = load_file(directory / "adapter_model.safetensors")
    loaded = get_peft_model_state_dict(attached, save_embedding_layers=False)
    same = stored.keys() == loaded.keys() and all(
        torch.equal(stored[name].float(), loaded[name].float().cpu()) for name in stored
    )
    if not same:
        raise UserError(f"{directory}: its tensors do not fit the base; the adapter would have been random weights")
    attached.eval()
    return attached
