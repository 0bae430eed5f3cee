"""Digests, and files that are whole or absent.

Everything that a stage publishes goes through here: written beside its place, flushed to the disk, then renamed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex digest of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def sha256_tree(directory: Path) -> dict[str, str]:
    """Digest of every file under a directory, keyed by its relative POSIX path, sorted."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): sha256_file(path) for path in files}


def refuse_links(directory: Path, *, but: Collection[str] = ()) -> None:
    """Refuse a directory that is a link or holds one: what is written there must not land elsewhere.

    `but` names entries that are not looked into.

    Raises:
        UserError: names each link.
    """
    found = [directory] if directory.is_symlink() else []
    for place, directories, names in os.walk(directory):
        if Path(place) == directory:
            directories[:] = [name for name in directories if name not in but or Path(place, name).is_symlink()]
        found += [path for name in (*directories, *names) if (path := Path(place, name)).is_symlink()]
    if found:
        raise UserError([f"{path}: a link; files are written where they are said to be; remove it" for path in found])


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old bytes or all of the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, values: Iterable[Any]) -> None:
    """Write JSON Lines, atomically."""
    write_atomic(path, "".join(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n" for value in values))


def read_json(path: Path) -> Any:
    """Read a JSON file that we wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path: Path) -> list[Any]:
    """Read one JSON value a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sync_tree(directory: Path) -> None:
    """Flush every file under a directory to the disk, so that a later rename cannot outrun its bytes."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def sync_directory(directory: Path) -> None:
    """Flush a directory itself, so that a rename in it outlives a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(source: Path, target: Path) -> None:
    """Move a finished file or directory to its place, replacing what was there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        sync_tree(source)
        if target.exists():
            shutil.rmtree(target)
    os.replace(source, target)
