"""What tests share: a tiny base made on the spot, a project of its own in a temporary directory, no network."""

import gc
import os
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.forks import Forks, Outcome
from tunesmith.line import Line

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")

REPOSITORY = Path(__file__).parent.parent


# The files that take longest, first: a file is one process's, and none should begin with minutes of work as the last.
LONGEST = ["test_line.py", "test_faults.py", "test_processes.py", "test_cli.py", "test_methods.py", "test_dev.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collection: training collects often, and would look through all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout under test."""
    return REPOSITORY


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random base with a tokenizer and template of its own."""
    directory = tmp_path_factory.mktemp("tiny-base")
    runpy.run_path(str(REPOSITORY / "scripts" / "make_tiny_base.py"))["make"](directory)
    return directory


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project directory with our recipes and scripts, the tiny base in its place, and nothing made yet."""
    root = tmp_path / "project"
    for name in ("recipes", "scripts"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for task in filter(Path.is_dir, (REPOSITORY / "data").iterdir()):
        committed = [task / name for name in ("schema.json", "sources.lock") if (task / name).is_file()]
        (root / "data" / task.name).mkdir(parents=True)
        for path in committed:
            shutil.copy(path, root / "data" / task.name)
    (root / ".cache").mkdir()
    (root / ".cache" / "tiny-base").symlink_to(tiny_base)
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="session")
def smoke_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the rows of smoke lie, once a test has curated them."""
    return tmp_path_factory.mktemp("smoke-rows")


@pytest.fixture
def line(project: Path, smoke_rows: Path) -> Line:
    """The smoke recipe in a project of its own, its rows curated: once for all tests."""
    line, target = Line("smoke"), project / "data" / "smoke"
    if not (smoke_rows / "manifest.json").exists():
        line.curate()
        shutil.copytree(target, smoke_rows, dirs_exist_ok=True)
    shutil.copytree(smoke_rows, target, dirs_exist_ok=True)
    return line


@pytest.fixture(scope="session")
def server() -> Iterator[Forks]:
    """The process that others are forked from."""
    forks = Forks()
    yield forks
    forks.end()


Tunesmith = Callable[..., Outcome]


@pytest.fixture
def tunesmith(project: Path, server: Forks) -> Tunesmith:
    """Run the `tunesmith` command in the project, in a fork that has imported torch already."""

    def run(*arguments: str) -> Outcome:
        return server(*arguments, directory=project, environment=dict(os.environ))

    return run


def as_a_user(directory: Path, *arguments: str) -> Outcome:
    """Run the `tunesmith` command with nothing imported: dear, and for what forks cannot show."""
    command = [sys.executable, "-m", "tunesmith.cli", *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Refuse every connection but to this machine itself, except where a test says that it needs the package index."""
    if request.node.get_closest_marker("package_index"):
        yield
        return
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> object:
        host = address[0] if isinstance(address, tuple) else ""
        if self.family in {socket.AF_INET, socket.AF_INET6} and host not in {"127.0.0.1", "::1", "localhost"}:
            raise OSError(f"a test tried to reach {host}")
        return connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield
