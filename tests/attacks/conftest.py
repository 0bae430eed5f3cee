"""What attacks share: canaries, a project that was walked from end to end without a network, and copies of it to spoil.

Commands run in forks (`tests/forks.py`), out of which no connection leaves.
"""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Workshop
from tests.forks import Forks

# Put together here, so that no scanner of secrets takes this file for a leak.
SECRETS = {
    "Hub token": "hf_" + "QxTzRbWvKpLmNsDfGhJcYaEuIoVrMtXw3k",
    "AWS key": "AKIA" + "Q3EGRT7ZK5LWPN2X",
    "private key": "-----BEGIN RSA PRIVATE" + " KEY-----\n" + "MIIEpAIBAAKCAQEA7bq2Zk9xQwErTyUiOpAs" * 4 + "\n"
    "-----END RSA PRIVATE" + " KEY-----",
}
IN_ROWS = SECRETS
IN_ENVIRONMENT = {
    "HF_TOKEN": "hf_" + "ZbYcXdWeVfUgThSiRjQkPlOmNn4a5b6c7d",
    "AWS_ACCESS_KEY_ID": "AKIA" + "Z7XW3VRT5KQPLN2M",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI7K7MDENG" + "bPxRfiCYzEXAMPLEKE4",
    "DEPLOY_KEY": SECRETS["private key"].replace("MIIE", "MIIF"),
}
OPTIONS = (
    "--set", "curate.steps=[control_tokens, privacy, empty, completion, contradictions]",
    "--set", "curate.privacy.secret=redact",
    "--set", "curate.split.shares={train: 0.45, dev: 0.05, gate: 0.1, confirm: 0.4}",
    "--set", "gate.accept_power=0.05",
    "--set", "trainer.num_train_epochs=6",
)  # fmt: skip
"""The whole line with less to answer and less to learn."""

SPY = """
import os, sys

def hook(event, arguments, log=os.environ["NETWORK_LOG"]):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}:
        with open(log, "a") as stream:
            stream.write(f"{event} {arguments[1:]!r}\\n")
        raise OSError(f"{event}: there is no network")

sys.addaudithook(hook)
"""
"""Refuses every socket in a process and in all that it starts. Nothing in the process can take such a hook away."""

SCRIPT = """
import runpy
from pathlib import Path

plain = runpy.run_path(str(Path(__file__).with_name("plain.py")))
ABOUT, LICENCES = plain["ABOUT"], plain["LICENCES"]
SECRETS = {secrets!r}

def rows(sources, sieve):
    for number, row in enumerate(plain["rows"](sources, sieve)):
        if number % 40 == 7:
            *before, asked = row.messages
            asked = asked.model_copy(update={{"content": f"{{asked.content}} {{SECRETS[number % len(SECRETS)]}}"}})
            row = row.model_copy(update={{"messages": [*before, asked]}})
        yield row
"""


class Pickled:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@dataclass(frozen=True)
class Canary:
    """A file that appears as soon as anything of an attack runs."""

    path: Path

    @property
    def pickle(self) -> bytes:
        """A pickle that creates it."""
        return pickle.dumps(Pickled(self.path))

    @property
    def module(self) -> str:
        """Python that creates it when it is imported, and would do for a model, a configuration or a tokenizer."""
        return f"open({str(self.path)!r}, 'w').close()\nclass Canary:\n    pass\n"

    def sings(self) -> bool:
        """Whether anything ran."""
        return self.path.exists()


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    """A canary that must be silent at the end, and was shown to be able to sing."""
    one = Canary(tmp_path / "canary")
    yield one
    assert not one.sings()
    pickle.loads(one.pickle)
    assert one.sings()
    one.path.unlink()
    subprocess.run([sys.executable, "-c", one.module], check=True)
    assert one.sings()


@dataclass(frozen=True)
class Walked:
    """A project in which the whole line was walked, what was said, and the connections that were tried."""

    root: Path
    said: str
    tried: str

    @property
    def run(self) -> Path:
        """The only run."""
        (directory,) = (self.root / "runs").glob("smoke-*")
        return directory


@pytest.fixture(scope="session")
def walked(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, repository: Path) -> Walked:
    """`tunesmith run smoke` with every socket refused, secrets in the environment, and secrets in rows."""
    place = tmp_path_factory.mktemp("walked")
    root, spy = place / "project", place / "spy"
    shutil.copytree(repository / "recipes", root / "recipes")
    (root / "scripts").mkdir()
    shutil.copy(repository / "scripts" / "curate_smoke.py", root / "scripts" / "plain.py")
    (root / "scripts" / "curate_smoke.py").write_text(SCRIPT.format(secrets=list(IN_ROWS.values())))
    (root / "data" / "smoke").mkdir(parents=True)
    shutil.copy(repository / "data" / "smoke" / "schema.json", root / "data" / "smoke")
    (root / ".cache").mkdir()
    (root / ".cache" / "tiny-base").symlink_to(tiny_base)
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(SPY)
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | IN_ENVIRONMENT
    paths = [str(spy), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "NETWORK_LOG": str(place / "network"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tunesmith.cli", "run", "smoke", *OPTIONS]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    log = place / "network"
    return Walked(root, said, log.read_text() if log.exists() else "")


class Spoiled(Workshop):
    """A copy of the walked project, for an attack; each command has the options that it was walked with."""

    def do(self, command: str, *more: str) -> Any:
        """Run a command on the recipe."""
        return self(command, "smoke", *OPTIONS, *more)

    @property
    def run(self) -> Path:
        """The only run."""
        (directory,) = (self.root / "runs").glob("smoke-*")
        return directory

    def refuses(self, command: str, *words: str, more: tuple[str, ...] = ()) -> str:
        """Run a command that must end as the user's fault, without a traceback, and say these words."""
        done = self.do(command, *more)
        said = " ".join(done.said.split())
        assert done.code == 2, done.said
        assert "Traceback" not in done.said
        for word in words:
            assert word in said, done.said
        return str(done.said)


@pytest.fixture
def spoiled(tmp_path: Path, walked: Walked, server: Forks) -> Spoiled:
    """A copy of the walked project for one test."""
    root = tmp_path / "spoiled"
    shutil.copytree(walked.root, root, symlinks=True)
    base = (root / ".cache" / "tiny-base").resolve()
    (root / ".cache" / "tiny-base").unlink()
    shutil.copytree(base, root / ".cache" / "tiny-base")
    return Spoiled(root, server)
