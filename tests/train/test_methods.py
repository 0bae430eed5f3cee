"""Every LoRA method moves an adapter, and what it publishes is the model that was trained, on a base that nobody touched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.test_trainer import fresh, made
from tunesmith import adapters
from tunesmith.bases import load_model
from tunesmith.export.merge import merge
from tunesmith.files import read_json
from tunesmith.line import Line
from tunesmith.train import stage

NAMES = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "token_adapter.trainable_tokens_delta")
STEPS = ["trainer.max_steps=5", "trainer.warmup_steps=0", "trainer.learning_rate=5e-3"]

PLAIN = {"lora.r": "8", "lora.lora_alpha": "24"}
METHODS: dict[str, dict[str, str]] = {
    "lora": {},
    "rslora": {"lora.use_rslora": "true"},
    "dora": {"lora.use_dora": "true"},
    "gaussian": {"lora.init_lora_weights": "gaussian"},
    "orthogonal": {"lora.init_lora_weights": "orthogonal"},
    "mica": {"lora.init_lora_weights": "mica"},
    "eva": {"lora.init_lora_weights": "eva"},
    "pissa": {"lora.init_lora_weights": "pissa"},
    "pissa_niter": {"lora.init_lora_weights": "pissa_niter_4"},
    "olora": {"lora.init_lora_weights": "olora"},
    "lora+": {"lora_plus_ratio": "8"},
    "neftune": {"trainer.neftune_noise_alpha": "5"},
    "patterns": {"lora.rank_pattern": "{q_proj: 4, down_proj: 12}", "lora.alpha_pattern": "{q_proj: 40}"},
    "tokens": {"lora.trainable_token_indices": "[1, 2, 10]"},
    "parameters": {"lora.target_modules": "[]", "lora.target_parameters": "[mlp.gate_proj.weight]"},
    "qlora": {"quantization": "nf4"},
    "qlora dora": {"quantization": "nf4", "lora.use_dora": "true"},
    "qlora tokens": {"quantization": "nf4", "lora.trainable_token_indices": "[1, 2, 10]"},
    "qlora eva": {"quantization": "nf4", "lora.init_lora_weights": "eva"},
    "pissa, all at once": {
        "lora.init_lora_weights": "pissa",
        "lora.use_rslora": "true",
        "lora.use_dora": "true",
        "lora.rank_pattern": "{q_proj: 4}",
        "lora.alpha_pattern": "{q_proj: 10, up_proj: 30}",
        "lora.trainable_token_indices": "[1, 2, 10]",
        "lora.lora_dropout": "0.1",
    },
    "olora, patterns": {"lora.init_lora_weights": "olora", "lora.rank_pattern": "{q_proj: 4}", "lora.use_rslora": "true"},
}


@pytest.fixture
def opened(project: Path) -> Callable[..., Line]:
    def line(settings: dict[str, str], *more: str) -> Line:
        found = Line("smoke", sets=[*STEPS, *(f"{key}={value}" for key, value in (PLAIN | settings).items()), *more])
        found.curate()
        return found

    return line


def probe(line: Line) -> torch.Tensor:
    return torch.tensor([line.arena.renderer.render(line.dataset.rows("gate")[0]).input_ids])


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=ids).logits.float()
    return found


def publish(line: Line, out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, torch.Tensor, Any]:
    """Train by the stage itself: the adapter, the logits of the model as trained, and that model."""
    ids, held = probe(line), {}
    save = adapters.save

    def seen(model: Any, *args: Any, **kwargs: Any) -> None:
        held["model"], held["logits"] = model, logits(model, ids)
        save(model, *args, **kwargs)

    monkeypatch.setattr(stage.adapters, "save", seen)
    stage.train(line.loaded, line.dataset, line.base, made(out), tokens=out, resumption=fresh(out))
    return out / "adapter", held["logits"], held["model"]


@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS.keys())
def test_what_is_published_is_the_model_that_was_trained(
    opened: Callable[..., Line], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]
) -> None:
    line = opened(settings)
    adapter, trained, _ = publish(line, tmp_path / "run", monkeypatch)
    ids = probe(line)
    quantization = settings.get("quantization", "none")
    assert read_json(adapter / "manifest.json")["quantization"] == quantization
    assert all(name.endswith(NAMES) for name in load_file(adapter / "adapter_model.safetensors"))

    base = logits(line.base.model(dtype=torch.float32, quantization=quantization), ids)
    attached = logits(adapters.attach(line.base.model(dtype=torch.float32, quantization=quantization), adapter), ids)
    unquantised = logits(adapters.attach(line.base.model(dtype=torch.float32), adapter), ids)
    merge(line.base, adapter, line.dataset.manifest()["systems"], tmp_path / "merged")
    merged = load_model(tmp_path / "merged", dtype=torch.float32)
    assert merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    print("XX", float((trained-base).abs().max()), float((attached-trained).abs().max()), float((logits(merged, ids)-unquantised).abs().max()), float(base.abs().max()))
    assert float((trained - base).abs().max()) > 0.5
    assert float((attached - trained).abs().max()) < 1e-4
    assert float((logits(merged, ids) - unquantised).abs().max()) < 1e-4
