"""S1, S2, S3: pickles and Python that lie where weights, checkpoints and models are read."""

import json
import shutil
from pathlib import Path

import pytest

from tests.attacks.conftest import OPTIONS, Canary, Spoiled
from tests.faults.test_faults import PICKLES
from tunesmith.errors import ExitCode
from tunesmith.files import read_json, sha256_file, sha256_json, write_json
from tunesmith.runs import Run


def sign_again(run: Path) -> None:
    """Make manifest and record of training agree with what lies there now, as one would who can write everything."""
    adapter = run / "adapter"
    manifest = read_json(adapter / "manifest.json")
    manifest["files"] = {name: sha256_file(adapter / name) for name in manifest["files"] if (adapter / name).is_file()}
    write_json(adapter / "manifest.json", manifest)
    record = Run(run)._record_path("train")
    outputs = {name: sha256_file(run / name) for name in read_json(record)["outputs"] if (run / name).is_file()}
    write_json(record, read_json(record) | {"outputs": outputs})


def answer_again(spoiled: Spoiled) -> None:
    """Forget the answers of the adapter, so that evaluation has to load it."""
    for name in ("merge", "arm-adapter", "arm-merged"):
        (spoiled.run / "stages" / f"{name}.json").unlink()


# ---------------------------------------------------------------------- S1


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "training_args.bin", "extra/state.pkl"])
def test_pickles_beside_an_adapter_are_refused(spoiled: Spoiled, canary: Canary, name: str) -> None:
    planted = spoiled.run / "adapter" / name
    planted.parent.mkdir(exist_ok=True)
    planted.write_bytes(canary.pickle)
    answer_again(spoiled)
    spoiled.refuses("evaluate", f"{name}: pickled weights are not read")


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
def test_a_pickle_instead_of_an_adapters_weights_is_refused(spoiled: Spoiled, canary: Canary, name: str) -> None:
    """peft would fall back to the pickle."""
    (spoiled.run / "adapter" / "adapter_model.safetensors").unlink()
    (spoiled.run / "adapter" / name).write_bytes(canary.pickle)
    sign_again(spoiled.run)
    answer_again(spoiled)
    spoiled.refuses("evaluate", "adapter_model")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_instead_of_a_bases_weights_is_refused(spoiled: Spoiled, canary: Canary, name: str) -> None:
    base = spoiled.root / ".cache" / "tiny-base"
    (base / "model.safetensors").unlink()
    (base / name).write_bytes(canary.pickle)
    spoiled.refuses("check", "pickled weights are not read" if name.endswith(".bin") else "not whole safetensors")


# ---------------------------------------------------------------------- S2


def test_a_checkpoint_of_pickles_with_a_seal_of_its_own_is_not_read(spoiled: Spoiled, canary: Canary) -> None:
    """Whoever can write a checkpoint can seal it: its files are still read as safetensors and JSON, or not at all."""
    another = ("--set", "seed=1", "--set", "checkpoints.every_steps=2")
    stopped = spoiled("train", "smoke", *OPTIONS, *another, fault={"at": "step", "call": 5, "signals": ["KILL"]})
    assert stopped.code == -9, stopped.said
    newest = max(spoiled.root.glob("runs/*/checkpoints/step-*"))
    for name in (*PICKLES, "state.pt", "adapter.safetensors", "state.safetensors"):
        (newest / name).write_bytes(canary.pickle)
    manifest = read_json(newest / "manifest.json")
    manifest.pop("seal")
    manifest["files"] = {
        path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in newest.iterdir()
        if path.name != "manifest.json"
    }
    write_json(newest / "manifest.json", manifest | {"seal": sha256_json(manifest)})
    spoiled.refuses("train", "adapter.safetensors: not whole safetensors", more=another)


# ---------------------------------------------------------------------- S3


AUTO = {"AutoConfig": "modeling_canary.Canary", "AutoModelForCausalLM": "modeling_canary.Canary"}
CODE = {
    "a module": ({}, "modeling_canary.py: Python in a model directory"),
    "a model's class": ({"config.json": {"auto_map": AUTO, "model_type": "canary"}}, "holds `auto_map`"),
    "a tokenizer's class": (
        {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["modeling_canary.Canary", None]}}},
        "holds `auto_map`",
    ),
    "a class of a part": ({"config.json": {"text_config": {"auto_map": AUTO}}}, "holds `auto_map`"),
    "a class of a processor": ({"processor_config.json": {"auto_map": AUTO}}, "holds `auto_map`"),
    "a kernel of the Hub": ({"config.json": {"attn_implementation": "canary/kernel"}}, "holds `attn_implementation`"),
}


@pytest.mark.parametrize("place", ["base", "merged"])
@pytest.mark.parametrize(("configs", "says"), CODE.values(), ids=CODE.keys())
def test_a_model_that_brings_code_is_refused(
    spoiled: Spoiled, canary: Canary, place: str, configs: dict[str, dict[str, object]], says: str
) -> None:
    directory = spoiled.root / ".cache" / "tiny-base" if place == "base" else spoiled.run / "merged"
    for name, more in configs.items():
        path = directory / name
        write_json(path, (read_json(path) if path.is_file() else {}) | more)
    if says.startswith("modeling"):
        (directory / "modeling_canary.py").write_text(canary.module)
    if place == "base":
        spoiled.refuses("check", says, more=("--runs", "elsewhere"))
        return
    # As one would who can write everything: what merging recorded agrees.
    record = Run(spoiled.run)._record_path("merge")
    outputs = {f"merged/{path.name}": sha256_file(path) for path in directory.iterdir()}
    write_json(record, read_json(record) | {"outputs": outputs})
    (spoiled.run / "stages" / "arm-merged.json").unlink()
    spoiled.refuses("evaluate", says)


@pytest.mark.parametrize("key", ["auto_mapping", "megatron_config"])
def test_an_adapter_whose_configuration_names_code_is_refused(spoiled: Spoiled, canary: Canary, key: str) -> None:
    """peft imports the module that `parent_library` or `megatron_core` names."""
    (spoiled.root / "canary_module.py").write_text(canary.module)
    path = spoiled.run / "adapter" / "adapter_config.json"
    named = {"parent_library": "canary_module", "base_model_class": "Canary"}
    write_json(path, read_json(path) | {key: named, "megatron_core": "canary_module"})
    sign_again(spoiled.run)
    answer_again(spoiled)
    spoiled.refuses("evaluate", f"adapter_config.json: holds `{key}`, which names code to run")


def test_python_in_an_adapters_directory_is_refused(spoiled: Spoiled, canary: Canary) -> None:
    (spoiled.run / "adapter" / "modeling_canary.py").write_text(canary.module)
    answer_again(spoiled)
    spoiled.refuses("evaluate", "modeling_canary.py: does not belong to an adapter; no code")


@pytest.mark.parametrize("key", ["lora.megatron_core", "lora.megatron_config", "trainer.trust_remote_code"])
def test_a_recipe_that_names_code_is_refused(spoiled: Spoiled, canary: Canary, key: str) -> None:
    (spoiled.root / "canary_module.py").write_text(canary.module)
    value = "{a: 1}" if key.endswith("config") else "canary_module"
    done = spoiled("recipe", "validate", "smoke", "--set", f"{key}={value}")
    assert done.code == ExitCode.USER
    assert f"{key}: " in done.said


def test_an_index_that_names_weights_outside_the_base_is_refused(spoiled: Spoiled) -> None:
    """They would not be in the digest by which the base is known."""
    base = spoiled.root / ".cache" / "tiny-base"
    shutil.move(base / "model.safetensors", spoiled.root / "model-00001.safetensors")
    shutil.copy(spoiled.root / "model-00001.safetensors", base / "other.safetensors")
    shards = {"weight_map": {"model.norm.weight": "../../model-00001.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(shards))
    spoiled.refuses("check", "names weights that do not lie beside it (../../model-00001.safetensors)")
