"""A project to break, and a way to run commands in it that are killed, starved and lied to."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.forks import Forks, Outcome

SETTINGS = [
    "trainer.max_steps=14",
    "trainer.warmup_steps=0",
    "trainer.num_train_epochs=2",
    "lora.lora_dropout=0.1",
    "checkpoints.every_steps=2",
    "curate.split.shares={train: 0.12, dev: 0.05, gate: 0.73, confirm: 0.1}",
]
"""Fourteen steps in two epochs: small enough to be killed often, with all that a long run has."""


class Workshop:
    """A project, and the server that runs commands in it."""

    def __init__(self, root: Path, server: Forks) -> None:
        self.root = root
        self.server = server

    def __call__(self, *arguments: str, **order: Any) -> Outcome:
        """Run a command; see `forks` for what can go wrong in it."""
        return self.server(*arguments, directory=self.root, **order)

    def train(self, *sets: str, more: tuple[str, ...] = (), **order: Any) -> Outcome:
        """`tunesmith train smoke` with the settings of these tests."""
        pairs = [part for text in (*SETTINGS, *sets) for part in ("--set", text)]
        return self("train", "smoke", *pairs, *more, **order)

    @property
    def run(self) -> Path:
        """The only run."""
        (directory,) = filter(Path.is_dir, (self.root / "runs").iterdir())
        return directory

    def adapter(self) -> bytes | None:
        """The weights that are published, if they are."""
        path = self.run / "adapter" / "adapter_model.safetensors"
        return path.read_bytes() if path.is_file() else None

    def steps(self) -> list[int]:
        """The checkpoints that lie there under their final name."""
        return sorted(int(path.name.removeprefix("step-")) for path in (self.run / "checkpoints").glob("step-*"))

    def forget(self) -> None:
        """Begin anew."""
        shutil.rmtree(self.root / "runs")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, repository: Path, server: Forks) -> Path:
    """A project whose rows are curated."""
    root = tmp_path_factory.mktemp("made") / "a project, föhnig"
    for name in ("recipes", "scripts"):
        shutil.copytree(repository / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "data" / "smoke").mkdir(parents=True)
    shutil.copy(repository / "data" / "smoke" / "schema.json", root / "data" / "smoke")
    (root / ".cache").mkdir()
    (root / ".cache" / "tiny-base").symlink_to(tiny_base)
    pairs = [part for text in SETTINGS for part in ("--set", text)]
    for stage in ("curate", "check"):
        done = Workshop(root, server)(stage, "smoke", *pairs)
        assert done.code == 0, done.said
    return root


@pytest.fixture
def workshop(tmp_path: Path, made: Path, server: Forks) -> Workshop:
    """A project of its own for each test."""
    root = tmp_path / "a project, föhnig"
    shutil.copytree(made, root, symlinks=True)
    return Workshop(root, server)


@pytest.fixture(scope="session")
def killed_at_9(tmp_path_factory: pytest.TempPathFactory, made: Path, server: Forks) -> Path:
    """A project whose run was killed in its ninth step."""
    root = tmp_path_factory.mktemp("killed") / "project"
    shutil.copytree(made, root, symlinks=True)
    done = Workshop(root, server).train(fault={"at": "step", "call": 9, "signals": ["KILL"]})
    assert done.code == -9, done.said
    return root


@pytest.fixture
def stopped(tmp_path: Path, killed_at_9: Path, server: Forks) -> Workshop:
    """A project of its own for each test, whose run was killed in its ninth step."""
    root = tmp_path / "a project, föhnig"
    shutil.copytree(killed_at_9, root, symlinks=True)
    return Workshop(root, server)


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory, made: Path, server: Forks) -> dict[str, bytes]:
    """What a run that nothing happened to publishes."""
    root = tmp_path_factory.mktemp("clean") / "project"
    shutil.copytree(made, root, symlinks=True)
    shop = Workshop(root, server)
    done = shop.train()
    assert done.code == 0, done.said
    return {name: (shop.run / name).read_bytes() for name in ("adapter/adapter_model.safetensors", "train.jsonl")}


Same = Callable[[Workshop], None]


@pytest.fixture
def same(clean: dict[str, bytes]) -> Same:
    """Hold what a workshop has published against the run that nothing happened to."""

    def compare(workshop: Workshop) -> None:
        for name, content in clean.items():
            assert (workshop.run / name).read_bytes() == content, name
        assert not (workshop.run / "checkpoints").exists()

    return compare
