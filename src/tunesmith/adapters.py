"""LoRA weights on disk: written with what they belong to, and never attached to anything else.

An adapter is `adapter_config.json`, `adapter_model.safetensors` and `manifest.json`. The manifest binds it to its base,
its prompt and its data by digest. peft would load a file whose keys all mismatch and go on with random weights; here
what was attached is compared with the file, tensor by tensor.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import weights
from tunesmith.bases import Base
from tunesmith.errors import Diverged, UserError
from tunesmith.files import read_json, sha256_file, write_json
from tunesmith.runs import versions

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

FILES = ("adapter_config.json", "adapter_model.safetensors")
MANIFEST = "manifest.json"
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
NAMES_CODE = ("auto_mapping", "auto_map", "megatron_config")
"""Keys of a configuration at whose word peft imports a module."""


def save(model: "PeftModel", directory: Path, *, base: Base, bound: dict[str, Any]) -> None:
    """Write a trained adapter. `bound` goes into the manifest: what else the adapter belongs to.

    Raises:
        Diverged: a weight is not finite, or a lora_B is still zero: of that module the adapter is no adapter.
    """
    import torch

    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in trained.values()):
        raise Diverged("training: the adapter holds weights that are not numbers; nothing was written")
    refuse_asleep(model, {name for name, tensor in trained.items() if "lora_B" in name and not bool(tensor.any())})
    # The path of the base on this machine is neither a name nor part of the adapter.
    model.peft_config["default"].base_model_name_or_path = base.name
    model.save_pretrained(directory, safe_serialization=True, save_embedding_layers=False)
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
    """Check that an adapter is whole, harmless and belongs to this base and this prompt; return its manifest.

    Raises:
        UserError: a file is missing, changed or does not belong there, the weights are not those that the configuration
            declares, or base or prompt are others.
    """
    refuse_unsafe(directory)
    manifest = _read_manifest(directory)
    problems = [
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


def attach(model: "PreTrainedModel", directory: Path) -> "PeftModel":
    """Attach a verified adapter to its base, for inference.

    Raises:
        UserError: it is not safe to load, or peft attached other weights than the file's, or none for they do not fit.
    """
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    refuse_unsafe(directory)
    try:
        attached: PeftModel = PeftModel.from_pretrained(model, directory)
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
