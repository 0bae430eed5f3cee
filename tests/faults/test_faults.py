"""Whatever happens to a run: it publishes what an undisturbed run publishes, bit for bit, or nothing, and says so."""

import errno
import json
import os
import pickle
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.faults.conftest import SETTINGS, Same, Workshop
from tunesmith.errors import ExitCode

KILL = {"signals": ["KILL"]}
IN_A_SAVE = ["weights", "values", "sync", "manifest", "rename", "let go"]


def test_the_same_seed_twice_is_the_same_adapter(workshop: Workshop, same: Same) -> None:
    assert workshop.train().code == ExitCode.DONE
    same(workshop)


# ---------------------------------------------------------------------- killed


@pytest.mark.parametrize("step", [1, 8, 14])
def test_killed_in_a_step(workshop: Workshop, same: Same, step: int) -> None:
    assert workshop.train(fault={"at": "step", "call": step} | KILL).code == -9
    assert workshop.adapter() is None
    assert workshop.train().code == ExitCode.DONE
    same(workshop)


@pytest.mark.parametrize("seam", IN_A_SAVE)
def test_killed_in_the_midst_of_a_save(workshop: Workshop, same: Same, seam: str) -> None:
    killed = workshop.train(fault={"at": seam, "call": 3} | KILL)
    assert killed.code == -9, killed.said
    assert workshop.adapter() is None
    again = workshop.train()
    assert again.code == ExitCode.DONE, again.said
    assert "goes on after step" in again.said
    same(workshop)


@pytest.mark.parametrize("seam", ["adapter", "publish", "record"])
def test_killed_while_it_publishes(workshop: Workshop, same: Same, seam: str) -> None:
    calls = {"adapter": 1, "publish": 3, "record": 1}
    assert workshop.train(fault={"at": seam, "call": calls[seam]} | KILL).code == -9
    assert workshop.train().code == ExitCode.DONE
    same(workshop)


def test_killed_at_any_time_again_and_again(workshop: Workshop, same: Same) -> None:
    """Five kills, or as many as TUNESMITH_KILLS says: `make faults`."""
    wanted, rng = int(os.environ.get("TUNESMITH_KILLS", "5")), random.Random(0)
    began = time.monotonic()
    assert workshop.train().code == ExitCode.DONE
    whole = time.monotonic() - began
    killed = finished = 0
    while killed < wanted:
        ended = workshop.train(kill_after=rng.uniform(0, 1.1 * whole))
        assert ended.code in (ExitCode.DONE, -9), ended.said
        killed += ended.code == -9
        if ended.code == ExitCode.DONE:
            same(workshop)
            workshop.forget()
            finished += 1
    assert workshop.train().code == ExitCode.DONE
    same(workshop)
    print(f"{killed} kills, {finished + 1} runs finished, each with the same adapter")


# ---------------------------------------------------------------------- asked to stop


@pytest.mark.parametrize("name", ["TERM", "INT"])
@pytest.mark.parametrize(("seam", "call"), [("step", 5), ("rename", 2), ("dev", 1)])
def test_asked_to_stop(workshop: Workshop, same: Same, name: str, seam: str, call: int) -> None:
    stopped = workshop.train(fault={"at": seam, "call": call, "signals": [name]})
    assert stopped.code == ExitCode.INTERRUPTED, stopped.said
    assert f"SIG{name}: stopping after this step" in stopped.said
    assert "which is saved; the same command goes on from there" in " ".join(stopped.said.split())
    assert workshop.adapter() is None
    assert workshop.train().code == ExitCode.DONE
    same(workshop)


def test_asked_to_stop_in_the_last_step_it_is_done(workshop: Workshop, same: Same) -> None:
    assert workshop.train(fault={"at": "step", "call": 14, "signals": ["TERM"]}).code == ExitCode.DONE
    same(workshop)


def test_asked_twice_it_stops_at_once(workshop: Workshop, same: Same) -> None:
    stopped = workshop.train(fault={"at": "step", "call": 5, "signals": ["TERM", "TERM"]})
    assert stopped.code == ExitCode.INTERRUPTED
    assert workshop.steps() == [2, 4]
    assert workshop.train().code == ExitCode.DONE
    same(workshop)


def test_asked_to_stop_before_it_trains(workshop: Workshop, same: Same) -> None:
    workshop.forget()
    stopped = workshop.train(fault={"at": "render", "signals": ["TERM"]})
    assert (stopped.code, stopped.said.count("Traceback")) == (ExitCode.INTERRUPTED, 0)
    assert workshop.train().code == ExitCode.DONE
    same(workshop)


# ---------------------------------------------------------------------- the machine fails


@pytest.mark.parametrize(
    ("seam", "number"),
    [
        ("weights", errno.ENOSPC),
        ("sync", errno.EIO),
        ("manifest", errno.EDQUOT),
        ("rename", errno.EXDEV),
        ("rename", errno.EROFS),
    ],
)
def test_a_disk_that_fails_in_a_save(workshop: Workshop, same: Same, seam: str, number: int) -> None:
    failed = workshop.train(fault={"at": seam, "call": 3, "errno": number})
    assert failed.code == ExitCode.ENVIRONMENT, failed.said
    assert "Traceback" not in failed.said
    assert workshop.adapter() is None
    assert workshop.steps() == [2, 4]
    assert list((workshop.run / "checkpoints").glob(".*")) == []
    assert workshop.train().code == ExitCode.DONE
    same(workshop)


def test_a_file_size_limit(workshop: Workshop, same: Same) -> None:
    failed = workshop.train(largest_file=100_000)
    # Which is less than an adapter takes.
    assert failed.code == ExitCode.ENVIRONMENT, failed.said
    assert "Traceback" not in failed.said
    assert workshop.adapter() is None
    assert workshop.train().code == ExitCode.DONE
    same(workshop)


def test_out_of_memory(workshop: Workshop, same: Same) -> None:
    failed = workshop.train(fault={"at": "step", "call": 5, "out_of_memory": True})
    assert failed.code == ExitCode.ENVIRONMENT
    assert "out of memory" in failed.said
    assert "hardware.batch_tokens" in failed.said
    assert workshop.adapter() is None
    assert workshop.steps() == [2, 4]
    assert workshop.train().code == ExitCode.DONE
    same(workshop)


def test_another_environment(stopped: Workshop, same: Same) -> None:
    """Another time zone, the locale C, no home."""
    environment = {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "LANG": "C", "HOME": "/nonexistent"}
    done = stopped.train(environment=environment)
    assert done.code == ExitCode.DONE, done.said
    same(stopped)


# ---------------------------------------------------------------------- checkpoints that lie


def newest(workshop: Workshop) -> Path:
    return workshop.run / "checkpoints" / f"step-{workshop.steps()[-1]:08d}"


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("adapter.safetensors", "flipped"),
        ("state.safetensors", "half"),
        ("state.json", "flipped"),
        ("trainer_state.json", "gone"),
        ("manifest.json", "gone"),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    stopped: Workshop, same: Same, file: str, damage: str
) -> None:
    path = newest(stopped) / file
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "half":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    again = stopped.train()
    assert again.code == ExitCode.DONE, again.said
    assert f"step-00000008/{file}" in again.said
    assert "goes on after step 6" in again.said
    same(stopped)


def test_with_no_whole_checkpoint_it_begins_anew(stopped: Workshop, same: Same) -> None:
    for path in (stopped.run / "checkpoints").glob("step-*"):
        (path / "state.json").unlink()
    again = stopped.train()
    assert again.code == ExitCode.DONE
    assert "goes on after" not in again.said
    same(stopped)


class Canary:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


PICKLES = ["optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "training_args.bin", "adapter_model.bin"]


def test_pickles_in_a_checkpoint_are_not_read(stopped: Workshop, same: Same, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for name in PICKLES:
        (newest(stopped) / name).write_bytes(pickle.dumps(Canary(canary)))
    assert stopped.train().code == ExitCode.DONE
    same(stopped)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists()


def test_a_directory_of_pickles_is_no_checkpoint(workshop: Workshop, tmp_path: Path) -> None:
    canary, foreign = tmp_path / "canary", tmp_path / "checkpoint-10"
    foreign.mkdir()
    for name in PICKLES:
        (foreign / name).write_bytes(pickle.dumps(Canary(canary)))
    refused = workshop.train(more=("--resume", str(foreign)))
    assert refused.code == ExitCode.USER, refused.said
    assert "this checkpoint was not finished" in refused.said
    assert not canary.exists()


# ---------------------------------------------------------------------- drift


DRIFT = {
    "alpha": ("lora.lora_alpha=64", "recipe.lora.lora_alpha: 32 → 64"),
    "learning rate": ("trainer.learning_rate=1e-3", "recipe.trainer.learning_rate: 0.003 → 0.001"),
    "batch": ("trainer.per_device_train_batch_size=4", "recipe.trainer.per_device_train_batch_size: 8 → 4"),
}


@pytest.mark.parametrize(("setting", "told"), DRIFT.values(), ids=DRIFT.keys())
def test_going_on_with_other_settings_is_refused(stopped: Workshop, setting: str, told: str) -> None:
    before = stopped.run
    again = stopped.train(setting, fault={"at": "step", "call": 1} | KILL)
    assert f"{before.name} holds a training that was stopped, with other settings" in " ".join(again.said.split())
    refused = stopped.train(setting, more=("--resume", str(before)))
    assert refused.code == ExitCode.USER, refused.said
    assert f"was made otherwise: {told}" in refused.said
    assert "--allow-drift" in refused.said
    assert not list((stopped.root / "runs").glob("*/adapter"))


def test_drift_that_is_allowed_is_recorded(stopped: Workshop) -> None:
    before = stopped.run
    done = stopped.train("trainer.learning_rate=1e-3", more=("--resume", str(before), "--allow-drift"))
    assert done.code == ExitCode.DONE, done.said
    (manifest,) = (stopped.root / "runs").glob("*/adapter/manifest.json")
    assert "recipe.trainer.learning_rate: 0.003 → 0.001" in json.loads(manifest.read_text())["drift"]


def test_a_run_with_a_checkpoint_of_its_own_says_that_it_needs_no_other(stopped: Workshop, same: Same) -> None:
    done = stopped.train(more=("--resume", "elsewhere"))
    assert done.code == ExitCode.DONE, done.said
    assert "--resume elsewhere is not needed: this run has a checkpoint of its own" in " ".join(done.said.split())
    same(stopped)


def test_another_number_of_threads_is_drift(workshop: Workshop) -> None:
    assert workshop.train(fault={"at": "step", "call": 9} | KILL, threads=1).code == -9
    refused = workshop.train(threads=2)
    assert refused.code == ExitCode.USER
    assert "machine.threads: 1 → 2" in refused.said
    assert workshop.train(threads=1).code == ExitCode.DONE


def test_other_rows_are_another_run(stopped: Workshop) -> None:
    before = stopped.run
    again = [part for text in (*SETTINGS, "curate.split.seed=1") for part in ("--set", text)]
    assert stopped("curate", "smoke", *again, "--recut").code == ExitCode.DONE
    refused = stopped.train("curate.split.seed=1", more=("--resume", str(before)))
    assert refused.code == ExitCode.USER, refused.said
    assert "was made otherwise: data.train: " in refused.said
    done = stopped.train("curate.split.seed=1")
    assert done.code == ExitCode.DONE, done.said
    assert "goes on after" not in done.said
    assert not (before / "adapter").exists()


def test_a_base_that_was_changed_is_another_run(stopped: Workshop, tmp_path: Path) -> None:
    before = stopped.run
    base = stopped.root / ".cache" / "tiny-base"
    other = shutil.copytree(base.resolve(), tmp_path / "other-base")
    base.unlink()
    base.symlink_to(other)
    weights = load_file(other / "model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, other / "model.safetensors", metadata={"format": "pt"})
    refused = stopped.train(more=("--resume", str(before)))
    assert refused.code == ExitCode.USER, refused.said
    assert "was made otherwise: base: " in refused.said


# ---------------------------------------------------------------------- numbers


POISON: dict[str, tuple[dict[str, Any], str]] = {
    "a weight that is no number": ({"poison": "lora_A"}, "the loss became nan"),
    "an infinite weight": ({"poison": "lora_B", "value": "inf"}, "the loss became"),
    "a weight so large that its gradient overflows": ({"poison": "lora_B", "value": 1e38}, " became "),
}


@pytest.mark.parametrize(("poison", "says"), POISON.values(), ids=POISON.keys())
def test_a_loss_or_gradient_that_is_no_number_publishes_nothing(
    workshop: Workshop, same: Same, poison: dict[str, Any], says: str
) -> None:
    stopped = workshop.train(fault={"at": "step", "call": 5, **poison})
    assert stopped.code == ExitCode.DIVERGED, stopped.said
    assert says in stopped.said
    assert "at step 5, rows " in stopped.said
    assert workshop.adapter() is None
    assert workshop.steps() == [2, 4]
    # What was poisoned never reached a checkpoint.
    assert workshop.train().code == ExitCode.DONE
    same(workshop)


# ---------------------------------------------------------------------- two at once


def test_two_runs_on_one_directory(workshop: Workshop, same: Same) -> None:
    from filelock import FileLock

    assert workshop.train(fault={"at": "step", "call": 3} | KILL).code == -9
    # The lock file of a process that is gone keeps nobody out; one that is held does.
    assert (workshop.run / ".lock").exists()
    with FileLock(workshop.run / ".lock"):
        refused = workshop.train()
        assert refused.code == ExitCode.USER
        assert "another tunesmith is at work in this run" in refused.said
    assert workshop.train().code == ExitCode.DONE
    same(workshop)


def test_a_run_through_a_link_is_the_same_run(workshop: Workshop, same: Same, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(workshop.root)
    elsewhere = Workshop(link, workshop.server)
    assert elsewhere.train(fault={"at": "step", "call": 9} | KILL).code == -9
    assert workshop.train().code == ExitCode.DONE
    same(workshop)
    shutil.rmtree(workshop.root)
