"""A run that was killed publishes the same best adapter, and stops early at the same step, bit for bit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Workshop
from tunesmith.errors import ExitCode
from tunesmith.files import read_json

FILES = ("adapter/adapter_model.safetensors", "adapter/manifest.json", "choice.json", "train.jsonl")
# A learning rate that rises until the adapter gets worse: the best look is in the midst.
EARLY = (
    "dev.rows=6",
    "dev.every_steps=2",
    "dev.keep=best",
    "dev.patience=3",
    "trainer.learning_rate=0.1",
    "trainer.lr_scheduler_type=constant_with_warmup",
    "trainer.warmup_steps=14",
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, made: Path, server: Any) -> dict[str, bytes]:
    """What a run that nothing happened to publishes."""
    root = tmp_path_factory.mktemp("undisturbed") / "project"
    shutil.copytree(made, root, symlinks=True)
    shop = Workshop(root, server)
    shop.forget()
    done = shop.train(*EARLY)
    assert done.code == ExitCode.DONE, done.said
    choice = read_json(shop.run / "choice.json")
    # Else the tests below could not fail.
    assert choice["chosen"] <= 8
    assert choice["stopped_early"]
    assert choice["looks"][-1]["step"] == choice["chosen"] + 6
    return {name: (shop.run / name).read_bytes() for name in FILES}


KILLED = {
    "in a step after the best look": {"at": "step", "call": 9, "signals": ["KILL"]},
    "in a look": {"at": "dev", "call": 4, "signals": ["KILL"]},
    "while it publishes": {"at": "publish", "call": 3, "signals": ["KILL"]},
    "asked to stop in a look": {"at": "dev", "call": 4, "signals": ["TERM"]},
}


@pytest.mark.parametrize("fault", KILLED.values(), ids=KILLED.keys())
def test_the_same_adapter_is_chosen(workshop: Workshop, undisturbed: dict[str, bytes], fault: dict[str, Any]) -> None:
    workshop.forget()
    ended = workshop.train(*EARLY, fault=fault)
    assert ended.code in (-9, ExitCode.INTERRUPTED), ended.said
    assert workshop.adapter() is None
    again = workshop.train(*EARLY)
    assert again.code == ExitCode.DONE, again.said
    assert "goes on after step" in again.said
    for name, content in undisturbed.items():
        assert (workshop.run / name).read_bytes() == content, name


def test_asked_to_stop_in_the_look_that_ends_training_it_is_done(
    workshop: Workshop, undisturbed: dict[str, bytes]
) -> None:
    workshop.forget()
    last = len(json.loads(undisturbed["choice.json"])["looks"])
    done = workshop.train(*EARLY, fault={"at": "dev", "call": last, "signals": ["TERM"]})
    assert done.code == ExitCode.DONE, done.said
    for name, content in undisturbed.items():
        assert (workshop.run / name).read_bytes() == content, name
