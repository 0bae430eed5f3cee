"""A project to break, and a way to run commands in it that are killed, starved and lied to."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SETTINGS = [
    "trainer.max_steps=14",
    "trainer.warmup_steps=0",
    "trainer.num_train_epochs=2",
    "lora.lora_dropout=0.1",
    "checkpoints.every_steps=2",
    "curate.split.shares={train: 0.12, dev: 0.05, gate: 0.73, confirm: 0.1}",
]
"""Fourteen steps in two epochs: small enough to be killed often, with all that a long run has."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended (an exit code, or minus the signal) and what it said."""

    code: int
    said: str


class Workshop:
    """A project, and the server that runs commands in it."""

    def __init__(self, root: Path, server: "subprocess.Popen[str]") -> None:
        self.root = root
        self.server = server

    def __call__(self, *arguments: str, **order: Any) -> Outcome:
        """Run a command; see `server` for what can go wrong in it."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        told = {"arguments": list(arguments), "directory": str(self.root), **order}
        self.server.stdin.write(json.dumps(told) + "\n")
        self.server.stdin.flush()
        return Outcome(**json.loads(self.server.stdout.readline()))

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
def server() -> Iterator["subprocess.Popen[str]"]:
    """The process that forks all others."""
    command = [sys.executable, str(Path(__file__).with_name("server.py"))]
    # One thread: the steps are small, and other tests may share the cores.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    yield process
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


@pytest.fixture(scope="session")
def made(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, repository: Path, server: "subprocess.Popen[str]"
) -> Path:
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
def workshop(tmp_path: Path, made: Path, server: "subprocess.Popen[str]") -> Workshop:
    """A project of its own for each test."""
    root = tmp_path / "a project, föhnig"
    shutil.copytree(made, root, symlinks=True)
    return Workshop(root, server)


@pytest.fixture(scope="session")
def killed_at_9(tmp_path_factory: pytest.TempPathFactory, made: Path, server: "subprocess.Popen[str]") -> Path:
    """A project whose run was killed in its ninth step."""
    root = tmp_path_factory.mktemp("killed") / "project"
    shutil.copytree(made, root, symlinks=True)
    done = Workshop(root, server).train(fault={"at": "step", "call": 9, "signals": ["KILL"]})
    assert done.code == -9, done.said
    return root


@pytest.fixture
def stopped(tmp_path: Path, killed_at_9: Path, server: "subprocess.Popen[str]") -> Workshop:
    """A project of its own for each test, whose run was killed in its ninth step."""
    root = tmp_path / "a project, föhnig"
    shutil.copytree(killed_at_9, root, symlinks=True)
    return Workshop(root, server)


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory, made: Path, server: "subprocess.Popen[str]") -> dict[str, bytes]:
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
