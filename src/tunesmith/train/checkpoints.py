"""A run's checkpoints on the disk: whole or absent, verified before they are read, never of another run.

A checkpoint is written under another name, flushed file by file, sealed by a manifest with the digest of every file
and of itself, and only then renamed to `step-<n>`. So a kill at any instant leaves the checkpoints of before and
perhaps rubbish under a name that nobody reads. The reader takes the newest one whose bytes are those of its manifest; a
bad one is set aside for a person to look at, not deleted.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from os import getpid, replace
from pathlib import Path
from shutil import rmtree
from typing import Any

from tunesmith.errors import UserError
from tunesmith.files import read_json, sha256_file, sha256_json, sync_directory, sync_tree, write_json
from tunesmith.progress import say

SCHEMA = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose bytes were verified."""

    path: Path
    step: int
    binding: Mapping[str, Any]
    """What it belongs to: everything that decides what training computes."""


class Checkpoints:
    """The directory of a run's checkpoints; one process at a time writes it."""

    def __init__(self, directory: Path, binding: Mapping[str, Any], keep: int = 2) -> None:
        self.directory = directory
        self.binding = binding
        self.keep = keep

    def publish(self, step: int, write: Callable[[Path], None]) -> None:
        """Write a checkpoint by `write(directory)`, and let go of the oldest; whatever fails, nothing is half there."""
        self.directory.mkdir(parents=True, exist_ok=True)
        target = self.directory / f"step-{step:08d}"
        temporary = self.directory / f".{target.name}.{getpid()}.tmp"
        rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            write(temporary)
            files = {
                path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size}
                for path in sorted(temporary.iterdir())
            }
            sync_tree(temporary)
            manifest = {"schema": SCHEMA, "step": step, "binding": dict(self.binding), "files": files}
            write_json(temporary / MANIFEST, {**manifest, "seal": sha256_json(manifest)})
            sync_directory(temporary)
            if target.exists():
                rmtree(target)
            replace(temporary, target)
            sync_directory(self.directory)
        except BaseException:
            rmtree(temporary, ignore_errors=True)
            raise
        for old in self._steps()[self.keep :]:
            rmtree(old, ignore_errors=True)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; those newer that are not are set aside, and it is said."""
        for path in self._steps():
            try:
                return read(path)
            except UserError as error:
                aside = self._aside(path)
                say(f"  {error.problems[0]}; set aside as {aside.name}")
        return None

    def _steps(self) -> list[Path]:
        """Directories that were given a checkpoint's name, the newest first; by step, for clocks go wrong."""
        return sorted((path for path in self.directory.glob("step-*") if path.is_dir()), reverse=True)

    def _aside(self, path: Path) -> Path:
        number = next(n for n in range(1, 10_000) if not (self.directory / f"bad-{n}-{path.name}").exists())
        return path.rename(self.directory / f"bad-{number}-{path.name}")


def read(path: Path) -> Checkpoint:
    """A checkpoint, if every file of it has the bytes that its manifest names.

    Raises:
        UserError: it is no checkpoint, or not whole.
    """
    try:
        manifest = read_json(path / MANIFEST)
        seal = manifest.pop("seal")
        schema, step, files, binding = (manifest[key] for key in ("schema", "step", "files", "binding"))
        expected = {str(name): (str(entry["sha256"]), int(entry["bytes"])) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path / MANIFEST}: missing or cut off; this checkpoint was not finished") from None
    if (path / MANIFEST).is_symlink() or seal != sha256_json(manifest):
        raise UserError(f"{path / MANIFEST}: was changed after it was written; this checkpoint is not whole")
    if schema != SCHEMA:
        raise UserError(f"{path}: was written in form {schema}, this version reads form {SCHEMA}")
    for name, (digest, size) in expected.items():
        file = path / name
        if Path(name).name != name or file.is_symlink() or not file.is_file():
            raise UserError(f"{file}: missing; this checkpoint is not whole")
        if file.stat().st_size != size or sha256_file(file) != digest:
            raise UserError(f"{file}: differs from its manifest; this checkpoint is not whole")
    return Checkpoint(path, int(step), binding)


def drift(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two bindings differ, each as `lora.r: 8 → 16`."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    keys = sorted(old.keys() | new.keys())
    return [f"{key}: {old.get(key)!r} → {new.get(key)!r}" for key in keys if old.get(key) != new.get(key)]


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        where = f"{path}.{key}" if path else str(key)
        if isinstance(item, Mapping):
            yield from _leaves(item, where)
        else:
            yield where, list(item) if isinstance(item, tuple) else item
