"""What is merged is base plus adapter, shown on an adapter whose B is not zero."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from tunesmith import adapters
from tunesmith.bases import Base, load_model
from tunesmith.errors import Diverged, UserError
from tunesmith.export.merge import effect_kept, merge
from tunesmith.files import read_json, sha256_json, sha256_tree, write_json
from tunesmith.findings import Finding
from tunesmith.line import Line


def write_adapter(
    line: Line, directory: Path, *, scale: float = 0.1, prompt_digest: str | None = None, **settings: Any
) -> Path:
    """An adapter with random weights in A and in B, and in whatever else is trained."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | settings, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = get_peft_model(line.base.model(dtype=torch.float32), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or (parameter.requires_grad and "lora_A" not in name):
            parameter.data = torch.randn_like(parameter) * scale
    bound = {"prompt_digest": prompt_digest or line.arena.prompt_digest, "quantization": "none"}
    adapters.save(model, directory, base=line.base, bound=bound)
    return directory


def merged_from(line: Line, adapter: Path, out: Path) -> dict[str, Finding]:
    """Merge, as the line does; returns what was found, by name."""
    renderer = line.arena.renderer
    probes = [renderer.render(row) for row in line.dataset.rows("dev")]
    found = merge(line.base, adapter, line.dataset.manifest()["systems"], probes, out)
    return {finding.name: finding for finding in found}


def logits(model: object, line: Line) -> torch.Tensor:
    ids = torch.tensor([line.arena.renderer.prompt_ids(line.dataset.rows("gate")[0].messages)])
    with torch.inference_mode():
        result: torch.Tensor = model(input_ids=ids).logits  # type: ignore[operator]
    return result


def test_merged_computes_what_base_and_adapter_compute(line: Line, tmp_path: Path) -> None:
    adapter = write_adapter(line, tmp_path / "adapter")
    merged_from(line, adapter, tmp_path / "merged")
    with_adapter = logits(adapters.attach(line.base.model(dtype=torch.float32), adapter), line)
    merged = logits(load_model(tmp_path / "merged", dtype=torch.float32), line)
    base = logits(line.base.model(dtype=torch.float32), line)
    assert torch.allclose(merged, with_adapter, atol=1e-4)
    assert float((merged - base).abs().max()) > 0.1


def test_each_weight_is_the_base_plus_scaled_b_a(line: Line, tmp_path: Path) -> None:
    adapter = write_adapter(line, tmp_path / "adapter")
    merged_from(line, adapter, tmp_path / "merged")
    base = load_file(line.base.directory / "model.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    lora = load_file(adapter / "adapter_model.safetensors")
    assert merged.keys() == base.keys()
    moved = 0
    for name, weight in base.items():
        stem = "base_model.model." + name.removesuffix(".weight")
        expected = weight
        if f"{stem}.lora_A.weight" in lora:
            expected = weight + 2.0 * lora[f"{stem}.lora_B.weight"] @ lora[f"{stem}.lora_A.weight"]
            moved += 1
        assert torch.allclose(merged[name], expected, atol=1e-5), name
    assert moved == 14


def test_the_merged_directory_carries_the_bases_tokenizer_byte_for_byte(line: Line, tmp_path: Path) -> None:
    adapter = write_adapter(line, tmp_path / "adapter")
    merged_from(line, adapter, tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "merged" / name).read_bytes() == (line.base.directory / name).read_bytes()


def test_the_manifest_lists_every_file(line: Line, tmp_path: Path) -> None:
    adapter = write_adapter(line, tmp_path / "adapter")
    merged_from(line, adapter, tmp_path / "merged")
    manifest = read_json(tmp_path / "merged" / "manifest.json")
    there = {path.name for path in (tmp_path / "merged").iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == there
    assert manifest["adapter"] == adapters.digest(adapter)


def test_an_adapter_of_another_prompt_is_refused(line: Line, tmp_path: Path) -> None:
    adapter = write_adapter(line, tmp_path / "adapter", prompt_digest="0" * 64)
    with pytest.raises(UserError, match="was trained with another prompt"):
        merged_from(line, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_another_base_is_refused(line: Line, tmp_path: Path) -> None:
    adapter = write_adapter(line, tmp_path / "adapter")
    manifest = read_json(adapter / "manifest.json")
    manifest["base"]["digest"] = "0" * 64
    write_json(adapter / "manifest.json", manifest)
    with pytest.raises(UserError, match="was trained on another base"):
        adapters.verify(adapter, base=line.base, prompt_digest=line.arena.prompt_digest)


def test_a_changed_adapter_is_refused(line: Line, tmp_path: Path) -> None:
    adapter = write_adapter(line, tmp_path / "adapter")
    weights = adapter / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(UserError, match="differs from the manifest"):
        adapters.verify(adapter, base=line.base, prompt_digest=line.arena.prompt_digest)


def test_pickled_weights_beside_an_adapter_are_refused(line: Line, tmp_path: Path) -> None:
    adapter = write_adapter(line, tmp_path / "adapter")
    (adapter / "adapter_model.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(UserError, match="pickled weights are not read"):
        adapters.verify(adapter, base=line.base, prompt_digest=line.arena.prompt_digest)


def test_an_adapter_whose_keys_do_not_fit_is_refused(line: Line, tmp_path: Path) -> None:
    """peft would go on with random weights and say nothing."""
    from safetensors.torch import save_file

    adapter = write_adapter(line, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace("layers.", "blocks."): tensor for name, tensor in weights.items()}
    save_file(renamed, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"not declared by adapter_config\.json"):
        adapters.attach(line.base.model(dtype=torch.float32), adapter)
    fewer = {name: tensor for name, tensor in weights.items() if "q_proj" not in name}
    save_file(fewer, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="its tensors do not fit the base"):
        adapters.attach(line.base.model(dtype=torch.float32), adapter)


def test_an_adapter_that_learned_nothing_is_not_written(line: Line, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="adapted modules learn nothing, their weights stay as they began"):
        write_adapter(line, tmp_path / "adapter", scale=0.0)
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_of_nan_is_not_written(line: Line, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="not numbers"):
        write_adapter(line, tmp_path / "adapter", scale=float("nan"))
    assert not (tmp_path / "adapter").exists()


PARTS = {
    "a copy of the head": ({"modules_to_save": ["lm_head"]}, "would untie the base's head from its embeddings"),
    "an adapter on the head": ({"target_modules": ["lm_head"]}, "whose weights are the base's head and embeddings"),
    "tokens of the head": ({"trainable_token_indices": {"lm_head": [3]}}, "whose weights are the base's head"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("settings", "message"), PARTS.values(), ids=PARTS.keys())
def test_a_head_is_not_parted_from_its_embeddings(
    line: Line, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    adapter = write_adapter(line, tmp_path / "adapter", **settings)
    with pytest.raises(UserError, match=message):
        merged_from(line, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_trained_tokens_are_merged_into_head_and_embeddings_at_once(line: Line, tmp_path: Path) -> None:
    adapter = write_adapter(line, tmp_path / "adapter", trainable_token_indices=[3, 5])
    merged_from(line, adapter, tmp_path / "merged")
    base, merged = (load_file(at / "model.safetensors") for at in (line.base.directory, tmp_path / "merged"))
    assert merged.keys() == base.keys()
    changed = (merged["model.embed_tokens.weight"] != base["model.embed_tokens.weight"]).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [3, 5]
    assert read_json(tmp_path / "merged" / "config.json")["tie_word_embeddings"] is True


def test_two_processes_would_write_the_same_adapter(line: Line, tmp_path: Path) -> None:
    first, second = (write_adapter(line, tmp_path / name) for name in ("one", "two"))
    for name in ("adapter_config.json", "adapter_model.safetensors", "manifest.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def stored_in_bfloat16(line: Line, directory: Path) -> Base:
    """The line's base, its weights rounded to bfloat16."""
    shutil.copytree(line.base.directory, directory)
    line.base.model(dtype=torch.bfloat16).save_pretrained(directory)
    return Base("narrow", directory, sha256_json(sha256_tree(directory)), {})


@pytest.mark.parametrize(("scale", "status"), [(0.1, "PASS"), (1e-5, "FAIL")])
def test_a_merge_that_rounds_the_adapter_away_is_seen(line: Line, tmp_path: Path, scale: float, status: str) -> None:
    line.__dict__["base"] = stored_in_bfloat16(line, tmp_path / "narrow")
    adapter = write_adapter(line, tmp_path / "adapter", scale=scale)
    found = merged_from(line, adapter, tmp_path / "merged")
    assert found["adapter not erased"].status == status, found
    assert found["merged into"].status == found["tie kept"].status == found["template and tokenizer"].status == "PASS"


def test_in_float32_even_a_faint_adapter_is_kept(line: Line, tmp_path: Path) -> None:
    found = merged_from(line, write_adapter(line, tmp_path / "adapter", scale=1e-3), tmp_path / "merged")
    assert {finding.status for finding in found.values()} == {"PASS"}


def test_a_quantised_base_is_refused_before_anything_is_merged(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = write_adapter(line, tmp_path / "adapter")
    load = Base.model
    monkeypatch.setattr(Base, "model", lambda base, **options: load(base, **(options | {"quantization": "nf4"})))
    with pytest.raises(Diverged, match="`merged into` fails: a quantised base"):
        merged_from(line, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_merge_that_changes_the_template_is_seen(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = write_adapter(line, tmp_path / "adapter")

    def careless(source: Path, target: Path) -> None:
        Path(target).write_bytes(Path(source).read_bytes().replace(b"im_end", b"im_ends"))

    monkeypatch.setattr("tunesmith.export.merge.shutil.copyfile", careless)
    assert merged_from(line, adapter, tmp_path / "merged")["template and tokenizer"].status == "FAIL"


def test_what_is_kept_of_an_effect() -> None:
    generator = torch.Generator().manual_seed(0)
    base, adapter = (torch.randn(5, 7, generator=generator).log_softmax(-1) for _ in range(2))

    def kept(merged: torch.Tensor) -> list[str]:
        return [finding.status for finding in effect_kept([adapter], [base], [merged], "float32")]

    assert kept(adapter) == ["PASS", "PASS"]
    assert kept(base) == ["FAIL", "WARN"]
    assert kept((adapter + 0.2 * (base - adapter)).log_softmax(-1)) == ["PASS", "WARN"]
    # An adapter without an effect leaves nothing to keep; its run is INVALID at the gate.
    assert [finding.status for finding in effect_kept([base], [base], [base], "float32")] == ["WARN", "WARN"]
