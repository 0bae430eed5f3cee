"""A run: one directory under runs/, and the record of what is finished in it.

A run is named by its recipe and by the digest of everything that decides its outcome, so the same command always meets
its own earlier work. A stage writes into a scratch directory; its files are moved into place when it is done, and its
record last. A record counts only while its inputs and the bytes of its outputs are the same: whatever was killed,
whenever, a later command redoes exactly what is not finished.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tunesmith import __version__
from tunesmith.errors import UserError
from tunesmith.files import publish, read_json, refuse_links, sha256_file, sha256_json, sha256_tree, write_json

LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "llguidance", "bm25s", "scipy")


def versions() -> dict[str, str]:
    """The versions that decide what a run computes."""
    return {"tunesmith": __version__} | {name: version(name) for name in LIBRARIES}


class Run:
    """A run's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = FileLock(directory / ".lock", timeout=0)

    @classmethod
    def of(cls, runs: Path, recipe_name: str, identity: Mapping[str, Any]) -> "Run":
        """The run of a recipe and everything else that decides its outcome."""
        return cls(runs / f"{recipe_name}-{sha256_json(identity)[:12]}")

    def path(self, name: str) -> Path:
        """The place of a file in this run."""
        return self.directory / name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for one process.

        Raises:
            UserError: another process holds it, or a link lies in it.
        """
        # A checkpoint that is a link is set aside by who reads checkpoints.
        refuse_links(self.directory, but=("checkpoints",))
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            with self._lock:
                yield
        except Timeout:
            raise UserError(
                f"{self.directory}: another tunesmith is at work in this run; wait for it or stop it"
            ) from None

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let processes that this one started hold the run while the block runs."""
        self._lock.release(force=True)
        yield
        self._lock.acquire()

    def is_done(self, stage: str, inputs: Mapping[str, Any]) -> bool:
        """Whether a stage finished with these inputs and its outputs still have the bytes it wrote."""
        path = self._record_path(stage)
        if not path.is_file():
            return False
        record = read_json(path)
        if record["inputs"] != sha256_json(inputs):
            return False
        return all(
            self.path(name).is_file() and sha256_file(self.path(name)) == digest
            for name, digest in record["outputs"].items()
        )

    @contextmanager
    def stage(self, stage: str, inputs: Mapping[str, Any]) -> Iterator[Path]:
        """Give a scratch directory; on a clean end move what was written there into the run and record the stage.

        On any error nothing is published and the scratch directory is removed at the next attempt.
        """
        scratch = self.directory / ".scratch" / stage.replace("/", "-")
        if scratch.exists():
            shutil.rmtree(scratch)
        scratch.mkdir(parents=True)
        self._record_path(stage).unlink(missing_ok=True)
        began = time.monotonic()
        yield scratch
        outputs = sha256_tree(scratch)
        for entry in _publishable(scratch, scratch, self.directory):
            publish(scratch / entry, self.directory / entry)
        shutil.rmtree(scratch)
        write_json(
            self._record_path(stage),
            {
                "stage": stage,
                "inputs": sha256_json(inputs),
                "outputs": outputs,
                "seconds": round(time.monotonic() - began, 1),
            },
        )

    @contextmanager
    def aside(self) -> Iterator[Path]:
        """Give a scratch directory of which nothing is kept: of processes that train together only the first writes."""
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)

    def _record_path(self, stage: str) -> Path:
        return self.directory / "stages" / f"{stage.replace('/', '-')}.json"


# Directories that several stages share: their files move one by one. Any other is one stage's and moves whole.
SHARED = {"arms", "arms/dev", "again", "diagnosis"}


def _publishable(directory: Path, scratch: Path, target: Path) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        relative = path.relative_to(scratch)
        if path.is_dir() and relative.as_posix() in SHARED:
            yield from _publishable(path, scratch, target)
        else:
            yield relative
