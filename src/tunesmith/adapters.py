"""LoRA weights on disk: written with what they belong to, and never attached to anything else.

An adapter is `adapter_config.json`, `adapter_model.safetensors` and `manifest.json`. The manifest binds it to its base,
its prompt and its data by digest. peft would load a file whose keys all mismatch and go on with random weights; here
what was attached is compared with the file, tensor by tensor.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.bases import Base
from tunesmith.errors import Diverged, UserError
from tunesmith.files import read_json, sha256_file, write_json
from tunesmith.runs import versions

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

FILES = ("adapter_config.json", "adapter_model.safetensors")


def save(
    model: "PeftModel",
    directory: Path,
    *,
    base: Base,
    bound: dict[str, Any],
    weights: "dict[str, torch.Tensor] | None" = None,
) -> None:
    """Write a trained adapter. `bound` goes into the manifest: what else the adapter belongs to.

    `weights` are its own, by name, where the model holds only parts of them.

    Raises:
        Diverged: a weight is not finite, or a lora_B is still zero: of that module the adapter is no adapter.
    """
    import torch

    state = weights
    weights = weights or {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
        raise Diverged("training: the adapter holds weights that are not numbers; nothing was written")
    refuse_asleep(model, {name for name, tensor in weights.items() if "lora_B" in name and not bool(tensor.any())})
    # The path of the base on this machine is neither a name nor part of the adapter.
    model.peft_config["default"].base_model_name_or_path = base.name
    model.save_pretrained(directory, safe_serialization=True, save_embedding_layers=False, state_dict=state)
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


def refuse_asleep(model: "PeftModel", asleep: set[str]) -> None:
    """Stop where modules that are to be trained do not take part in what the model computes.

    `asleep` names their lora_B weights. Of a model with experts some may have met no token, so only all of them count.

    Raises:
        Diverged: names some of the modules.
    """
    every = {name for name, _ in model.named_parameters() if "lora_B" in name}
    config = model.config.get_text_config()
    has_experts = any(getattr(config, key, None) for key in ("num_experts", "num_local_experts", "n_routed_experts"))
    if asleep and (asleep >= every or not has_experts):
        modules = sorted(name.partition(".lora_B")[0].removeprefix("base_model.model.") for name in asleep)
        raise Diverged(
            f"training: {len(asleep)} of {len(every)} adapted modules learn nothing, their lora_B stays zero: "
            f"{', '.join(modules[:3])}{' and others' if len(modules) > 3 else ''}; nothing was written",
            hint="name in lora.target_modules only what the model computes with, and raise trainer.learning_rate",
        )


def digest(directory: Path) -> str:
    """The adapter's identity: the sha256 of its weights."""
    return sha256_file(directory / "adapter_model.safetensors")


def verify(directory: Path, *, base: Base, prompt_digest: str) -> dict[str, Any]:
    """Check that an adapter is whole and belongs to this base and this prompt; return its manifest.

    Raises:
        UserError: a file is missing or changed, pickled weights lie there, or base or prompt are others.
    """
    problems = [
        f"{directory / name}: missing" for name in (*FILES, "manifest.json") if not (directory / name).is_file()
    ]
    if (directory / "adapter_model.bin").exists():
        problems.append(f"{directory / 'adapter_model.bin'}: pickled weights are not read")
    if problems:
        raise UserError(problems, hint="an adapter is a directory that `tunesmith train` wrote")
    manifest: dict[str, Any] = read_json(directory / "manifest.json")
    problems += [
        f"{directory / name}: differs from the manifest; it was changed after training"
        for name in FILES
        if sha256_file(directory / name) != manifest["files"].get(name)
    ]
    if manifest["base"]["digest"] != base.digest:
        problems.append(
            f"{directory}: was trained on another base ({manifest['base']['name']}), not on this {base.name}"
        )
    if manifest["prompt_digest"] != prompt_digest:
        problems.append(f"{directory}: was trained with another prompt: template, tokenizer or system message differ")
    if problems:
        raise UserError(problems)
    return manifest


def attach(model: "PreTrainedModel", directory: Path) -> "PeftModel":
    """Attach a verified adapter to its base, for inference.

    Raises:
        UserError: peft attached other weights than the file's.
    """
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    attached: PeftModel = PeftModel.from_pretrained(model, directory)
    stored = load_file(directory / "adapter_model.safetensors")
    loaded = get_peft_model_state_dict(attached, save_embedding_layers=False)
    same = stored.keys() == loaded.keys() and all(
        torch.equal(stored[name].float(), loaded[name].float().cpu()) for name in stored
    )
    if not same:
        raise UserError(f"{directory}: its tensors do not fit the base; the adapter would have been random weights")
    attached.eval()
    return attached
