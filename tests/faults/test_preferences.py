"""Preference tuning keeps the promise too: the same adapter whatever happens on the way, or none."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import SETTINGS, Outcome, Workshop
from tunesmith.errors import ExitCode

# What names an SFT run of a few steps, and a DPO run of a few more.
SFT = [*(text for text in SETTINGS if "dropout" not in text and "max_steps" not in text), "trainer.max_steps=4"]
DPO = [
    *SFT,
    "trainer.max_steps=6",
    "trainer.logging_steps=2",
    "trainer.learning_rate=1e-2",
    "hardware.batch_tokens=800",
]


class Preferences(Workshop):
    """A workshop whose commands are those of preference tuning."""

    def train(self, *sets: str, more: tuple[str, ...] = (), **order: Any) -> Outcome:
        """`tunesmith train smoke-dpo`, begun from the run of `smoke`."""
        (began,) = (self.root / "runs").glob("smoke-" + 12 * "[0-9a-f]")
        pairs = [part for text in (*DPO, f"after=runs/{began.name}", *sets) for part in ("--set", text)]
        return self("train", "smoke-dpo", *pairs, *more, **order)

    @property
    def run(self) -> Path:
        """The run of preference tuning."""
        (directory,) = (self.root / "runs").glob("smoke-dpo-*")
        return directory


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, made: Path, server: Any) -> tuple[Path, dict[str, bytes]]:
    """A project with a trained adapter and curated pairs, and what tuning publishes where nothing happens to it."""
    root = tmp_path_factory.mktemp("tuned") / "project"
    shutil.copytree(made, root, symlinks=True, ignore=shutil.ignore_patterns("runs"))
    shop = Preferences(root, server)
    for command, recipe, sets in (("train", "smoke", SFT), ("curate", "smoke-dpo", DPO)):
        done = shop(command, recipe, *(part for text in sets for part in ("--set", text)))
        assert done.code == ExitCode.DONE, done.said
    clean = root.with_name("clean")
    shutil.copytree(root, clean, symlinks=True)
    shop = Preferences(clean, server)
    done = shop.train()
    assert done.code == ExitCode.DONE, done.said
    return root, published(shop)


@pytest.fixture
def shop(tmp_path: Path, tuned: tuple[Path, dict[str, bytes]], server: Any) -> Preferences:
    shutil.copytree(tuned[0], tmp_path / "project", symlinks=True)
    return Preferences(tmp_path / "project", server)


def published(shop: Preferences) -> dict[str, bytes]:
    return {name: (shop.run / name).read_bytes() for name in ("adapter/adapter_model.safetensors", "train.jsonl")}


@pytest.mark.parametrize(("seam", "call"), [("step", 7), ("manifest", 2)])
def test_killed_it_goes_on_to_the_same_adapter_and_log(
    shop: Preferences, tuned: tuple[Path, dict[str, bytes]], seam: str, call: int
) -> None:
    assert shop.train(fault={"at": seam, "call": call, "signals": ["KILL"]}).code == -9
    again = shop.train()
    assert again.code == ExitCode.DONE, again.said
    assert "goes on after step" in again.said
    assert published(shop) == tuned[1]
    assert not (shop.run / "checkpoints").exists()


def test_asked_to_stop_it_saves_and_goes_on(shop: Preferences, tuned: tuple[Path, dict[str, bytes]]) -> None:
    stopped = shop.train(fault={"at": "step", "call": 6, "signals": ["TERM"]})
    assert stopped.code == ExitCode.INTERRUPTED, stopped.said
    assert shop.adapter() is None
    assert shop.train().code == ExitCode.DONE
    assert published(shop) == tuned[1]


def test_a_weight_that_becomes_no_number_publishes_nothing(shop: Preferences) -> None:
    done = shop.train(fault={"at": "step", "call": 5, "poison": "lora_B.default"})
    assert done.code == ExitCode.DIVERGED, done.said
    said = " ".join(done.said.split())
    assert "the loss became nan at step" in said
    assert shop.adapter() is None


def test_another_adapter_to_begin_from_is_another_run_and_its_checkpoint_is_refused(shop: Preferences) -> None:
    assert shop.train(fault={"at": "step", "call": 7, "signals": ["KILL"]}).code == -9
    first = shop.run
    (began,) = (shop.root / "runs").glob("smoke-" + 12 * "[0-9a-f]")
    shutil.rmtree(began)
    sets = [part for text in (*SFT, "seed=1") for part in ("--set", text)]
    assert shop("train", "smoke", *sets).code == ExitCode.DONE
    done = shop.train(more=("--resume", str(first)))
    assert done.code == ExitCode.USER
    assert "after: '" in done.said
