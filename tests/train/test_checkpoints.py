"""A checkpoint is whole or absent, and a run that goes on from one is the run that never stopped."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.trainer_utils import SaveStrategy

from tests.train.test_trainer import rendered, trainer_for
from tunesmith.errors import UserError
from tunesmith.files import sha256_json
from tunesmith.line import Line
from tunesmith.train import checkpoints as on_disk
from tunesmith.train import state
from tunesmith.train.checkpoints import Checkpoints, drift, read


def write(directory: Path) -> None:
    (directory / "a").write_bytes(b"first")
    (directory / "b").write_bytes(b"second")


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    made = Checkpoints(tmp_path / "checkpoints", {"seed": 1}, keep=3)
    for step in (5, 10, 200):
        made.publish(step, write)
    return made


def names(made: Checkpoints) -> list[str]:
    return sorted(path.name for path in made.directory.iterdir())


def test_the_newest_by_step_is_read_and_the_oldest_let_go(kept: Checkpoints) -> None:
    kept.publish(30, write)
    assert names(kept) == ["step-00000010", "step-00000030", "step-00000200"]
    # Clocks go wrong: the step decides.
    os.utime(kept.directory / "step-00000010")
    found = kept.newest()
    assert found is not None
    assert (found.step, found.binding) == (200, {"seed": 1})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def link(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


DAMAGE = {"cut": cut, "flipped": flip, "emptied": empty, "gone": Path.unlink, "a link": link}


@pytest.mark.parametrize("file", ["a", "b", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_one_is_set_aside_and_the_one_before_is_taken(
    kept: Checkpoints, capsys: pytest.CaptureFixture[str], file: str, damage: Any
) -> None:
    damage(kept.directory / "step-00000200" / file)
    found = kept.newest()
    assert found is not None
    assert found.step == 10
    assert {"bad-1-step-00000200", "step-00000005", "step-00000010"} <= set(names(kept))
    assert "step-00000200" not in names(kept)
    said = " ".join(capsys.readouterr().err.split())
    assert f"step-00000200/{file}" in said
    assert "set aside as bad-1-step-00000200" in said


def test_with_nothing_whole_left_there_is_nothing_to_go_on_from(kept: Checkpoints) -> None:
    for path in kept.directory.iterdir():
        (path / "a").unlink()
    assert kept.newest() is None
    assert names(kept) == ["bad-1-step-00000005", "bad-1-step-00000010", "bad-1-step-00000200"]


@pytest.mark.parametrize("fails", ["write", "fsync", "manifest", "rename"])
def test_whatever_fails_while_one_is_written_those_before_stand(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    before = names(kept)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    def half(directory: Path) -> None:
        (directory / "a").write_bytes(b"fir")
        full()

    target = {"fsync": "sync_tree", "manifest": "write_json", "rename": "replace"}.get(fails)
    if target:
        monkeypatch.setattr(on_disk, target, full)
    with pytest.raises(OSError, match="No space left"):
        kept.publish(300, half if fails == "write" else write)
    assert names(kept) == before
    monkeypatch.undo()
    found = kept.newest()
    assert found is not None
    assert found.step == 200


def test_what_a_kill_leaves_half_written_is_never_read(kept: Checkpoints) -> None:
    rubbish = kept.directory / ".step-00000300.1234.tmp"
    shutil.copytree(kept.directory / "step-00000200", rubbish)
    found = kept.newest()
    assert found is not None
    assert found.step == 200


def test_a_file_of_another_directory_is_not_read(kept: Checkpoints) -> None:
    path = kept.directory / "step-00000200"
    (kept.directory / "outside").write_bytes(b"first")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../outside"] = manifest["files"].pop("a")
    del manifest["seal"]
    manifest["seal"] = sha256_json(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="missing; this checkpoint is not whole"):
        read(path)


def test_drift_is_told_key_by_key() -> None:
    before = {"lora": {"r": 8, "lora_alpha": 16}, "seed": 1, "versions": {"torch": "2.13.0"}}
    now = {"lora": {"r": 8, "lora_alpha": 32}, "seed": 1, "versions": {"torch": "2.13.0"}, "schema": "x"}
    assert drift(before, now) == ["lora.lora_alpha: 16 → 32", "schema: None → 'x'"]
    assert drift(before, json.loads(json.dumps(before))) == []


# ---------------------------------------------------------------------- the trainer


RUNS: dict[str, dict[str, Any]] = {
    "a batch a step": {},
    "accumulation": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "rows apart": {"limits": None},
    "a quantised base": {"quantization": "nf4"},
    "a log every fourth step": {"logging_steps": 4},
}


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS.keys())
def test_a_run_that_goes_on_is_the_run_that_did_not_stop(line: Line, tmp_path: Path, settings: dict[str, Any]) -> None:
    """With dropout, at any step, in the second epoch too: the same bits, and the same log."""
    rows = rendered(line, 40)

    def run(go_on: int | None = None) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        trainer = trainer_for(line, rows, tmp_path, lora_dropout=0.1, max_steps=10, **{"logging_steps": 1} | settings)
        trainer.checkpoints = Checkpoints(tmp_path / "checkpoints", {}, keep=10)
        if go_on is None:
            trainer.args.save_strategy, trainer.args.save_steps = SaveStrategy.STEPS, 1
        path = str(tmp_path / "checkpoints" / f"step-{go_on:08d}") if go_on else None
        trainer.train(resume_from_checkpoint=path)
        assert trainer.state.global_step == 10
        log = [{k: v for k, v in entry.items() if "runtime" not in k} for entry in trainer.state.log_history[:-1]]
        return state.trained(trainer.model), log

    wanted, log = run()
    assert any(bool(weight.any()) for name, weight in wanted.items() if "lora_B" in name)
    for step in (3, 5, 8):
        found, again = run(step)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(weight, wanted[name]) for name, weight in found.items()), step
        assert again == log


def test_a_checkpoint_of_other_weights_is_not_loaded(line: Line, tmp_path: Path) -> None:
    trainer = trainer_for(line, rendered(line, 8), tmp_path)
    weights = state.trained(trainer.model)
    other = {name.replace("lora_A", "lora_X"): tensor for name, tensor in weights.items()}
    from safetensors.torch import save_file

    save_file(other, tmp_path / state.WEIGHTS)
    with pytest.raises(UserError, match="holds other weights than are trained now"):
        state.restore_weights(trainer.model, tmp_path)
    save_file({name: torch.zeros(tensor.shape[0] + 1, 1) for name, tensor in weights.items()}, tmp_path / state.WEIGHTS)
    with pytest.raises(UserError, match="holds other weights than are trained now"):
        state.restore_weights(trainer.model, tmp_path)
    assert all(torch.equal(weight, weights[name]) for name, weight in state.trained(trainer.model).items())


def test_what_is_packed_comes_back_as_it_was() -> None:
    value: dict[Any, Any] = {
        0: {"exp_avg": torch.randn(3), "step": torch.tensor(4.0)},
        "betas": (0.9, 0.999),
        "none": None,
        "l": [1, (2,)],
    }
    tensors: dict[str, torch.Tensor] = {}
    found = state._unpacked(json.loads(json.dumps(state._packed(value, tensors))), tensors)
    assert torch.equal(found[0].pop("exp_avg"), value[0].pop("exp_avg"))
    assert found == value
    with pytest.raises(TypeError, match="cannot hold a object"):
        state._packed(object(), {})
