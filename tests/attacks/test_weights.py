"""S7: safetensors whose header lies, and adapters that hold more, or other, than their configuration declares."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file

from tests.attacks.conftest import Spoiled
from tests.attacks.test_code import answer_again, sign_again
from tunesmith import adapters, weights
from tunesmith.bases import load_model
from tunesmith.errors import UserError
from tunesmith.files import read_json, write_json

F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


def raw(told: Any, body: bytes, *, size: int | None = None) -> bytes:
    header = told if isinstance(told, bytes) else json.dumps(told).encode()
    return struct.pack("<Q", len(header) if size is None else size) + header + body


LIES = {
    "a header of an exbibyte": raw(b"{}", b"", size=1 << 60),
    "a header over the format's limit": raw(b"{" + b" " * 100_000_001 + b"}", b""),
    "a header that goes on after the end": raw({"a": F32}, b"", size=4096),
    "overlapping offsets": raw({"a": F32, "b": F32 | {"data_offsets": [8, 24]}}, bytes(24)),
    "a gap": raw({"a": F32, "b": F32 | {"data_offsets": [32, 48]}}, bytes(48)),
    "offsets outside": raw({"a": F32 | {"data_offsets": [0, 1 << 40]}}, bytes(16)),
    "offsets that run backwards": raw({"a": F32 | {"data_offsets": [16, 0]}}, bytes(16)),
    "a shape that is no size": raw({"a": F32 | {"shape": [1 << 40, 1 << 40]}}, bytes(16)),
    "a negative shape": raw({"a": F32 | {"shape": [-4]}}, bytes(16)),
    "bytes that nobody names": raw({"a": F32}, bytes(32)),
    "an unknown dtype": raw({"a": F32 | {"dtype": "OBJECT"}}, bytes(16)),
    "no JSON": raw(b"[" * 3000, b""),
    "nothing": b"",
    "a pickle": b"\x80\x04N.",
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES.keys())
def test_a_header_that_lies_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: not whole safetensors"):
        weights.header(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_what_is_no_number_is_found_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, value: float
) -> None:
    from safetensors.torch import save_file as save

    monkeypatch.setattr(weights, "LOOKED_AT", 100)
    largest = torch.finfo(dtype).max
    for place in (0, 99, 100, 999):
        bad = torch.full((1000,), largest, dtype=torch.float64)
        bad[place] = value
        whole = torch.full((7,), -largest, dtype=torch.float64).to(dtype)
        save({"whole": whole, "bad": bad.to(dtype), "ids": torch.arange(3)}, tmp_path / "w.safetensors")
        path = tmp_path / "w.safetensors"
        assert weights.not_finite(path, weights.header(path)) == ["bad"]


SPOILT: dict[str, tuple[Callable[[dict[str, Any], str], Any], str]] = {
    "a header that lies": (lambda w, n: LIES["overlapping offsets"], "not whole safetensors"),
    "NaN": (lambda w, n: w | {n: w[n] * np.nan}, "not all numbers are finite"),
    "infinity": (lambda w, n: w | {n: w[n] + np.inf}, "not all numbers are finite"),
}


@pytest.mark.parametrize(("spoil", "says"), SPOILT.values(), ids=SPOILT.keys())
@pytest.mark.parametrize("part", ["base", "adapter"])
def test_weights_that_are_broken_are_refused_by_the_command(
    spoiled: Spoiled, part: str, spoil: Callable[..., Any], says: str
) -> None:
    base = part == "base"
    path = spoiled.root / ".cache/tiny-base/model.safetensors" if base else spoiled.run / "adapter" / adapters.FILES[1]
    held = load_file(path)
    content = spoil(held, min(held))
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_file(content, path, metadata={"format": "pt"})
    if base:
        spoiled.refuses("check", says)
    else:
        sign_again(spoiled.run)
        answer_again(spoiled)
        spoiled.refuses("evaluate", says)


# ---------------------------------------------------------------------- what an adapter may hold

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": "all-linear"},
    "names": {"target_modules": ["q_proj", "down_proj"]},
    "a pattern": {"target_modules": r".*layers\.0\..*_proj"},
    "DoRA": {"target_modules": "all-linear", "use_dora": True},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6, 7]},
    "tokens of a layer": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 6]}},
    "ranks of their own": {"target_modules": "all-linear", "rank_pattern": {r"layers\.0\..*q_proj": 9, "v_proj": 2}},
    "an embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "a head": {"target_modules": ["q_proj", "lm_head"]},
    "modules that are saved": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    "PiSSA": {"target_modules": ["q_proj"], "init_lora_weights": "pissa"},
    "rsLoRA": {"target_modules": ["q_proj"], "use_rslora": True, "r": 512},
}


def saved(tiny_base: Path, directory: Path, settings: dict[str, Any], *, twice: bool = False) -> Path:
    """An adapter as peft writes it; `twice` as the difference to how it began, whose rank is twice as high."""
    model = load_model(tiny_base, dtype=torch.float32)
    peft = get_peft_model(model, LoraConfig(**{"r": 4, "task_type": "CAUSAL_LM"} | settings))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    options: dict[str, Any] = {}
    if twice:
        peft.peft_config["default"].init_lora_weights = True
        began = directory.with_name("began")
        peft.save_pretrained(began)
        options = {"path_initial_model_for_weight_conversion": str(began)}
        peft.peft_config["default"].init_lora_weights = settings["init_lora_weights"]
    peft.save_pretrained(directory, save_embedding_layers=False, **options)
    (directory / "README.md").unlink(missing_ok=True)
    write_json(directory / "manifest.json", {})
    return directory


@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS.keys())
def test_what_peft_writes_is_what_its_configuration_declares(
    tiny_base: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    directory = saved(tiny_base, tmp_path / "adapter", settings)
    adapters.refuse_unsafe(directory)
    # Each of these, said of an adapter of plain lora, is one tensor too many.
    if {"use_dora", "trainable_token_indices", "modules_to_save"} & settings.keys():
        path = directory / "adapter_config.json"
        plain = {"use_dora": False, "trainable_token_indices": None, "modules_to_save": None}
        write_json(path, read_json(path) | plain)
        with pytest.raises(UserError, match=r"not declared by adapter_config\.json"):
            adapters.refuse_unsafe(directory)


def test_an_adapter_that_became_a_difference_has_twice_the_rank(tiny_base: Path, tmp_path: Path) -> None:
    settings = {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}
    directory = saved(tiny_base, tmp_path / "adapter", settings, twice=True)
    assert read_json(directory / "adapter_config.json")["r"] == 8
    adapters.refuse_unsafe(directory)


Q = "base_model.model.model.layers.0.self_attn.q_proj."
ONES = np.ones((4, 128), dtype=np.float32)
STRANGERS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "a weight of the base": (
        lambda w: {"base_model.model.model.layers.0.self_attn.q_proj.weight": np.ones((128, 128), np.float32)},
        "not declared",
    ),
    "the embeddings": (lambda w: {"base_model.model.model.embed_tokens.weight": ONES}, "not declared"),
    "the head": (lambda w: {"base_model.model.lm_head.weight": ONES}, "not declared"),
    "a module that is not targeted": (
        lambda w: {Q.replace("q_proj", "k_proj") + f"lora_{x}.weight": ONES for x in "AB"},
        "not declared",
    ),
    "a name that ends alike": (lambda w: {Q.replace("q_proj", "evilq_proj") + "lora_A.weight": ONES}, "not declared"),
    "a name from outside the model": (lambda w: {"__class__": ONES}, "not declared"),
    "a path": (lambda w: {"../../lora_A.weight": ONES}, "not declared"),
    "another rank": (lambda w: {Q + "lora_A.weight": np.ones((5, 128), np.float32)}, "rank 5, where"),
    "another rank in B": (lambda w: {Q + "lora_B.weight": np.ones((128, 8), np.float32)}, "rank 8, where"),
    "a vector": (lambda w: {Q + "lora_A.weight": np.ones(4, np.float32)}, "is no matrix"),
    "integers": (lambda w: {Q + "lora_A.weight": np.ones((4, 128), np.int8)}, "I8, not one of"),
    "A alone": (lambda w: {Q + "lora_B.weight": None}, "stands without its lora_B"),
    "magnitudes without DoRA": (lambda w: {Q + "lora_magnitude_vector": np.ones(128, np.float32)}, "not declared"),
}


@pytest.fixture(scope="module")
def plain(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plain") / "adapter"
    return saved(tiny_base, directory, {"target_modules": ["q_proj"]})


@pytest.mark.parametrize(("more", "says"), STRANGERS.values(), ids=STRANGERS.keys())
def test_a_tensor_that_is_not_declared_is_refused(
    plain: Path, tmp_path: Path, more: Callable[..., Any], says: str
) -> None:
    path = plain / "adapter_model.safetensors"
    held = load_file(path)
    tensors = {name: tensor for name, tensor in (held | more(held)).items() if tensor is not None}
    save_file(tensors, tmp_path / "spoilt.safetensors")
    config = read_json(plain / "adapter_config.json")
    assert weights.unfit_for_adapter(weights.header(path), config) == []
    problems = weights.unfit_for_adapter(weights.header(tmp_path / "spoilt.safetensors"), config)
    assert any(says in problem for problem in problems), problems


@pytest.mark.parametrize("rank", [0, -1, 1025, 10**9, "8", None])
def test_a_rank_beyond_reason_is_refused(plain: Path, rank: Any) -> None:
    config = read_json(plain / "adapter_config.json") | {"r": rank}
    problems = weights.unfit_for_adapter(weights.header(plain / "adapter_model.safetensors"), config)
    assert len(problems) == 8 // 2
    assert "not between 1 and 1024" in problems[0] or "not between 1 and 1024" in " ".join(problems)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter_config.json", b"[]"),
        ("adapter_config.json", b"[" * 100_000),
        ("adapter_config.json", b'{"peft_type": "PREFIX_TUNING"}'),
        ("manifest.json", b"{}"),
        ("manifest.json", b"\xff\xfe"),
    ],
)
def test_a_description_that_is_none_is_the_users_fault(spoiled: Spoiled, name: str, content: bytes) -> None:
    (spoiled.run / "adapter" / name).write_bytes(content)
    if name != "manifest.json":
        sign_again(spoiled.run)
    answer_again(spoiled)
    spoiled.refuses("evaluate", "adapter")
