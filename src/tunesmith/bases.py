"""The frozen model that an adapter stands on: where it comes from, and proof that it is the one that was pinned.

A base is named in `recipes/bases.yaml`, or is a Hub id with its revision, or a local directory. Whatever it is, it ends
as a verified local directory of safetensors, and its digest goes into every run. A base with Python files, an
`auto_map`, or pickled weights is refused: no code from models runs.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunesmith.errors import EnvironmentFault, UserError
from tunesmith.files import publish, read_json, sha256_json, sha256_tree, write_json
from tunesmith.packages import PackageFile, Sha256, cache_dir, fetch, read_member
from tunesmith.weights import header, refuse_broken
from tunesmith.yaml_source import read_yaml

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)@([0-9a-f]{40})")
ENTRY_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
"""Of an entry in bases.yaml: it becomes the name of a directory."""
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model"]
NAMES_CODE = ("auto_map", "custom_pipelines")
"""Keys of a configuration at whose word transformers imports a module of the model's."""
CONVERSION = 1
"""Raised when the conversion of a GGUF file would write other bytes; part of the cache key."""


class GgufMember(BaseModel):
    """A GGUF file inside a package."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    member: str
    sha256: str = Sha256


class BaseEntry(BaseModel):
    """One entry of bases.yaml: a package with a GGUF file, a Hub id with revision, or a directory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    licence: str
    package: PackageFile | None = None
    gguf: GgufMember | None = None
    hub: str | None = Field(default=None, pattern=f"^{HUB_ID.pattern}$")
    directory: str | None = None


@dataclass(frozen=True)
class Base:
    """A verified local directory with a base."""

    name: str
    directory: Path
    digest: str
    lineage: dict[str, Any]

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """Load the tokenizer."""
        from transformers import AutoTokenizer

        tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(self.directory, local_files_only=True)
        return tokenizer

    def end_ids(self) -> list[int]:
        """The token ids that the base's generation config says end an answer."""
        path = self.directory / "generation_config.json"
        found = read_json(path).get("eos_token_id") if path.is_file() else None
        return [] if found is None else [found] if isinstance(found, int) else list(found)

    def model(
        self, *, dtype: "torch.dtype", quantization: str = "none", device: str | None = None
    ) -> "PreTrainedModel":
        """Load the weights, with `quantization="nf4"` in 4 bits (QLoRA, arXiv:2305.14314)."""
        return load_model(self.directory, dtype=dtype, quantization=quantization, device=device)

    def hollow(self) -> "PreTrainedModel":
        """The model with its shapes and without its weights, on the device `meta`."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(self.directory, local_files_only=True)
        with quiet(), torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
            model.tie_weights()
        return model

    def context(self) -> int:
        """The most tokens that the base was made for, prompt and answer together."""
        config = read_json(self.directory / "config.json")
        return int(config.get("text_config", config).get("max_position_embeddings", 2048))

    def vocabulary(self) -> int:
        """The width of the logits."""
        config = read_json(self.directory / "config.json")
        return int(config.get("text_config", config)["vocab_size"])

    def cached_numbers_per_token(self) -> int:
        """How many numbers a token's keys and values are, over all layers."""
        config = read_json(self.directory / "config.json")
        config = config.get("text_config", config)
        heads = config["num_attention_heads"]
        width = config.get("head_dim") or config["hidden_size"] // heads
        return int(2 * config["num_hidden_layers"] * (config.get("num_key_value_heads") or heads) * width)

    def stored_dtype(self) -> str:
        """The dtype that the weights are stored in; configs written by older libraries call it `torch_dtype`."""
        config = read_json(self.directory / "config.json")
        return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def load_model(
    directory: Path, *, dtype: "torch.dtype", quantization: str = "none", device: str | None = None
) -> "PreTrainedModel":
    """Load a causal language model from a directory of safetensors, onto the GPU if there is one and none is named."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    refuse_unsafe(directory)
    settings: dict[str, Any] = {}
    if quantization == "nf4":
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if device is None and torch.cuda.is_available():
        settings["device_map"] = {"": torch.cuda.current_device()}
    with quiet():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            directory, local_files_only=True, use_safetensors=True, dtype=dtype, **settings
        )
    if quantization == "nf4":
        _keep_unpacked(model)
        _let_go_of_files(model)
    return model


def _let_go_of_files(model: "PreTrainedModel") -> None:
    """Copy what was not quantised on a CPU: a single tensor keeps the whole file of unquantised weights mapped."""
    from bitsandbytes.nn import Params4bit

    for parameter in model.parameters():
        if parameter.device.type == "cpu" and not isinstance(parameter, Params4bit):
            parameter.data = parameter.data.clone()


def _keep_unpacked(model: "PreTrainedModel") -> None:
    """Keep bitsandbytes from packing 4-bit weights for a CPU's bfloat16 units once a model is evaluated.

    Packed layers compute in bfloat16 whatever dtype was asked for, and pass no gradient on to their input; they stay
    packed when training goes on (bitsandbytes 0.50.2, `nn/modules.py`, `Linear4bit.forward`).
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def named_bases(root: Path) -> dict[str, BaseEntry]:
    """The entries of recipes/bases.yaml.

    Raises:
        UserError: an entry is malformed.
    """
    path = root / "recipes" / "bases.yaml"
    if not path.is_file():
        return {}
    source = read_yaml(path, "recipes/bases.yaml")
    entries, problems = {}, []
    for name, value in source.values.items():
        if not ENTRY_NAME.fullmatch(name):
            place = source.place((name,), "recipes/bases.yaml")
            problems.append(f"{place}: {name!r}: no name; a name has letters, digits, `.`, `_` and `-`")
        try:
            entries[name] = BaseEntry.model_validate(value)
        except ValidationError as error:
            for e in error.errors():
                keys = (name, *e["loc"])
                place = source.place(keys, "recipes/bases.yaml")
                problems.append(f"{place}: {'.'.join(map(str, keys))}: {e['msg']}")
    if problems:
        raise UserError(problems)
    return entries


def check_name(name: str, root: Path) -> None:
    """Check that a base's name leads somewhere, without fetching anything.

    Raises:
        UserError: it is not a named base, a Hub id with revision, or a local directory.
    """
    if HUB_ID.fullmatch(name) or _is_path(name):
        if _is_path(name) and not (root / Path(name).expanduser()).is_dir():
            raise UserError(f"base {name!r}: no such directory")
        return
    known = named_bases(root)
    if name in known:
        return
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        raise UserError(f"base {name!r}: a Hub id needs its revision; write `{name}@<40 hex digits of the commit>`")
    near = get_close_matches(name, known, n=1)
    guess = f"did you mean `{near[0]}`?" if near else f"named bases: {', '.join(known)}"
    raise UserError(f"base {name!r}: no such base; {guess}; a local directory is written `./path`")


def resolve(name: str, root: Path) -> Base:
    """Fetch, convert and verify a base, and return where it lies.

    Raises:
        UserError: the name leads nowhere or the directory holds no safe model.
        EnvironmentFault: it cannot be downloaded, or a cached file is not what it was.
    """
    check_name(name, root)
    if match := HUB_ID.fullmatch(name):
        return _from_hub(name, match[1], match[2])
    if _is_path(name):
        return _from_directory(name, root / Path(name).expanduser(), {"kind": "directory"})
    entry = named_bases(root)[name]
    if entry.hub and (match := HUB_ID.fullmatch(entry.hub)):
        return _from_hub(name, match[1], match[2], entry.licence)
    if entry.package and entry.gguf:
        return _from_gguf_package(name, entry.package, entry.gguf, entry.licence)
    if entry.directory:
        directory = root / entry.directory
        if not directory.is_dir():
            raise UserError(f"base {name!r}: {entry.directory} does not exist; `make tiny-base` makes the tiny base")
        return _from_directory(name, directory, {"kind": "directory", "licence": entry.licence})
    raise UserError(f"recipes/bases.yaml: {name}: names neither a package with its gguf, nor hub, nor directory")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep a library's own progress bars off the terminal; ours says what happens."""
    with redirect_stderr(StringIO()):
        yield


def _is_path(name: str) -> bool:
    return name.startswith(("./", "../", "/", "~")) or name in {".", ".."}


def _from_directory(name: str, directory: Path, lineage: dict[str, Any]) -> Base:
    directory = directory.resolve()
    refuse_unsafe(directory)
    refuse_broken(sorted(directory.glob("*.safetensors")))
    digests = {path: digest for path, digest in sha256_tree(directory).items() if path != "manifest.json"}
    return Base(name, directory, sha256_json(digests), lineage)


def refuse_unsafe(directory: Path) -> None:
    """Refuse a model directory that would run code, read pickles or read weights that lie elsewhere.

    Raises:
        UserError: it holds Python files, a configuration that names code, an adapter, weights that are not whole, or no
            safetensors.
    """
    problems = [f"{path}: Python in a model directory; no code from models runs" for path in directory.rglob("*.py")]
    for name in ("config.json", "tokenizer_config.json"):
        if not (path := directory / name).is_file():
            problems.append(f"{path}: missing; a base is a directory of config, tokenizer and safetensors")
    for path in sorted(directory.glob("*config.json")):
        value = _json_object(path)
        if value is None:
            problems.append(f"{path}: not a JSON object; a cut or damaged file")
        problems += [
            f"{path}: holds `{key}`, which names code to run; no code from models runs" for key in _code_named_in(value)
        ]
    adapter = directory / "adapter_config.json"
    if adapter.exists():
        problems.append(f"{adapter}: an adapter beside the base, which loading would attach in silence; move it away")
    for path in directory.glob("*.safetensors.index.json"):
        shards = (_json_object(path) or {}).get("weight_map")
        names = {str(shard) for shard in shards.values()} if isinstance(shards, dict) else {""}
        if strangers := sorted(name for name in names if Path(name).name != name or not (directory / name).is_file()):
            problems.append(f"{path}: names weights that do not lie beside it ({', '.join(strangers[:3])})")
    found = sorted(directory.glob("*.safetensors"))
    if not found:
        problems.append(f"{directory}: holds no .safetensors weights; pickled weights are not read")
    for path in found:
        try:
            header(path)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)


def _json_object(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _code_named_in(value: Any) -> Iterator[str]:
    """The keys of a configuration, at any depth, that name code; an attention by `org/name` is fetched as a kernel."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        kernel = key.endswith(("attn_implementation", "experts_implementation")) and "/" in json.dumps(inner)
        if kernel or key in NAMES_CODE:
            yield key
        else:
            yield from _code_named_in(inner)


def _from_hub(name: str, repository: str, revision: str, licence: str = "other") -> Base:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        path = snapshot_download(repository, revision=revision, allow_patterns=HUB_FILES)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise EnvironmentFault(
            f"base {name!r}: could not be downloaded from the Hub ({type(error).__name__}: {reason})",
            hint="check the network and the revision; a downloaded model can be given as a directory, `--base ./path`",
        ) from None
    return _from_directory(
        name, Path(path), {"kind": "hub", "licence": licence, "repository": repository, "revision": revision}
    )


def _from_gguf_package(name: str, package: PackageFile, gguf: GgufMember, licence: str) -> Base:
    lineage = {
        "kind": "gguf in a package, dequantised to float32",
        "licence": licence,
        "package": package.model_dump(),
        "gguf": gguf.model_dump(),
        "conversion": CONVERSION,
    }
    directory = cache_dir() / "bases" / f"{name}-{gguf.sha256[:12]}-v{CONVERSION}"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_name(directory.name + ".lock")):
        if not (directory / "manifest.json").is_file():
            _convert_gguf(package, gguf, directory, lineage)
        manifest = read_json(directory / "manifest.json")
        now = {path: digest for path, digest in sha256_tree(directory).items() if path != "manifest.json"}
        if now != manifest["files"]:
            changed = sorted(k for k in now.keys() | manifest["files"].keys() if now.get(k) != manifest["files"].get(k))
            raise EnvironmentFault(
                f"base {name!r}: the cached copy was changed: {', '.join(changed)}",
                hint=f"delete {directory} and run the same command again; it is made anew from the pinned package",
            )
    refuse_unsafe(directory)
    refuse_broken(sorted(directory.glob("*.safetensors")))
    return Base(name, directory, sha256_json(now), lineage)


def _convert_gguf(package: PackageFile, gguf: GgufMember, target: Path, lineage: dict[str, Any]) -> None:
    """Dequantise a GGUF file to float32 safetensors, once.

    transformers loads the file but cannot save that model again (its quantisation config stays on it), so the weights
    move into a fresh model of the same configuration.
    """
    import hashlib

    content = read_member(fetch(package), gguf.member)
    digest = hashlib.sha256(content).hexdigest()
    if digest != gguf.sha256:
        raise EnvironmentFault(f"{package.project}: {gguf.member} has sha256 {digest}, the pin says {gguf.sha256}")

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # One place for the unfinished copy: what a killed conversion left there is cleared away by the next.
    scratch = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    (scratch / "model.gguf").write_bytes(content)
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file="model.gguf")
        loaded = AutoModelForCausalLM.from_pretrained(scratch, gguf_file="model.gguf", dtype=torch.float32)
        settings = loaded.config.to_dict()
        settings.pop("quantization_config", None)
        # The name inside the GGUF file is a path on its maker's machine.
        settings.pop("_name_or_path", None)
        fresh = type(loaded)(type(loaded.config)(**settings))
        fresh.load_state_dict(loaded.state_dict(), strict=True)
        fresh.tie_weights()
        fresh.generation_config = loaded.generation_config
        out = scratch / "out"
        fresh.save_pretrained(out)
        tokenizer.save_pretrained(out)
    os.chmod(out / "model.safetensors", 0o644)
    write_json(out / "manifest.json", {"lineage": lineage, "files": sha256_tree(out)})
    if target.exists():
        shutil.rmtree(target)
    publish(out, target)
    shutil.rmtree(scratch)
