"""Files of any kind as chunks of JSON lines, each with its place.

In: what a recipe says of a source. Out: chunks, each a range of bytes of a file of JSON lines, small enough to hold. A
file that is JSON Lines already is read where it lies; any other is first written into the scratch directory, one line
for each thing in it with the line it came from. Nothing is read whole but a `.json` file.
"""

import gzip
import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith.curate.formats import detect
from tunesmith.curate.readers import DIRECTORY, JSON_LINES, KINDS, READERS, Read, listing, plain
from tunesmith.curation import Format, SourceSection
from tunesmith.errors import EnvironmentFault, UserError
from tunesmith.rows import Row, parse

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Chunk:
    """Some lines of a file: bytes `start` to `end`, the first of them line `line`."""

    source: int
    label: str
    """How messages name the file."""
    path: Path
    start: int
    end: int
    line: int
    form: Format | None
    """What the file's first line showed; none where it could not be read."""
    spooled: bool
    """Whether lines are `{"line", "value"}` or `{"line", "problem"}` of a file that is no JSON Lines."""

    def lines(self) -> Iterator[tuple[str, Any, str | None]]:
        """Each line's place, and its value or what is wrong with it."""
        with self.path.open("rb") as stream:
            stream.seek(self.start)
            raw = stream.read(self.end - self.start)
        for number, line in enumerate(raw.split(b"\n"), start=self.line):
            if number == 1 and not self.spooled:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                value = parse(line)
            except ValueError as error:
                yield f"{self.label}:{number}", None, str(error)
                continue
            if self.spooled:
                yield f"{self.label}:{value['line']}", value.get("value"), value.get("problem")
            else:
                yield f"{self.label}:{number}", value, None


def chunks(index: int, source: SourceSection, root: Path, scratch: Path) -> Iterator[Chunk]:
    """The chunks of a recipe's source, in the order of its files.

    Raises:
        UserError: there are no such files, or of a kind that is not read.
        EnvironmentFault: the Hub cannot be reached.
    """
    opened = _hub_files(source) if source.hub else _local_files(source, root)
    for number, (label, suffix, open_file, path) in enumerate(opened):
        spool = scratch / f"source-{index}-{number}.jsonl"
        if suffix not in JSON_LINES and suffix not in READERS:
            raise UserError(f"{label}: files of this kind are not read; there are: {', '.join(KINDS)}")
        try:
            if suffix in READERS:
                told = {"named": frozenset(source.columns.values())} if suffix == ".parquet" else {}
                with open_file() as stream:
                    write_spool(spool, READERS[suffix](stream, **told))
            elif path is None:
                _copy(open_file, spool)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{label}:1: not gzip, or cut off ({error}); nothing of it was taken") from None
        except _network_faults(source) as error:
            raise EnvironmentFault(f"{label}: cannot be read from the Hub ({type(error).__name__})") from None
        yield from cut(index, label, path or spool, source, spooled=suffix in READERS)


def chunks_of_rows(index: int, label: str, rows: Iterable[Row], scratch: Path) -> Iterator[Chunk]:
    """The chunks of what a script makes; a row's number stands for its line."""
    spool = scratch / f"source-{index}-0.jsonl"
    write_spool(spool, ((number, row.as_dict(), None) for number, row in enumerate(rows, start=1)))
    yield from cut(index, label, spool, None, spooled=True)


def write_spool(path: Path, read: Iterable[Read]) -> None:
    """Write what was read as JSON lines."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for line, value, problem in read:
            entry = {"line": line, "problem": problem} if problem else {"line": line, "value": value}
            try:
                text = json.dumps(entry, ensure_ascii=False, allow_nan=False, default=plain)
                text.encode()
            except (ValueError, RecursionError) as error:
                half = isinstance(error, UnicodeEncodeError)
                says = "half a surrogate pair, which is no character" if half else f"what JSON does not know: {error}"
                text = json.dumps({"line": line, "problem": f"holds {says}"})
            stream.write(text + "\n")


def cut(index: int, label: str, path: Path, source: SourceSection | None, *, spooled: bool) -> Iterator[Chunk]:
    """Cut a file of JSON lines into chunks that end where lines end."""
    form = _form(path, source, spooled=spooled)
    start, line = 0, 1
    with path.open("rb") as stream:
        while block := stream.read(CHUNK_BYTES):
            block += stream.readline()
            end = start + len(block)
            yield Chunk(index, label, path, start, end, line, form, spooled)
            start, line = end, line + block.count(b"\n")


FIRST_LINES = 100


def _form(path: Path, source: SourceSection | None, *, spooled: bool) -> Format | None:
    """The form that a recipe states, or that the first line shows which can be read."""
    if source is None:
        return "rows"
    if source.format != "auto":
        return source.format
    with path.open("rb") as stream:
        for _, line in zip(range(FIRST_LINES), stream, strict=False):
            try:
                value = parse(line.removeprefix(b"\xef\xbb\xbf"))
                return detect(value.get("value") if spooled else value, source.columns)
            except ValueError:
                continue
    return None


# ---------------------------------------------------------------------- files

Opened = tuple[str, str, Callable[[], Any], Path | None]
"""Label, suffix, how to open it, and the path where it can be read in place."""


def _local_files(source: SourceSection, root: Path) -> Iterator[Opened]:
    place = root / source.path
    if place.is_dir():
        yield source.path, DIRECTORY, partial(listing, place), None
        return
    paths = [place]
    if any(c in source.path for c in "*?[") and not place.is_file():
        try:
            paths = sorted(path for path in root.glob(source.path) if path.is_file())
        except (ValueError, NotImplementedError) as error:
            raise UserError(f"curate.sources: {source.name}: {source.path!r} is no pattern ({error})") from None
    if not paths or not all(path.is_file() for path in paths):
        raise UserError(f"curate.sources: {source.name}: no such file or directory {source.path!r}")
    for path in paths:
        suffix, packed = _suffix(path.name)
        label = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        yield (
            label,
            suffix,
            partial(_unpacked, partial(path.open, "rb"), packed),
            path if suffix in JSON_LINES and not packed else None,
        )


def _hub_files(source: SourceSection) -> Iterator[Opened]:
    """Files of a Hub data set, streamed as they lie there: no conversion fills in keys that were not written."""
    assert source.hub is not None
    repository, _, revision = source.hub.partition("@")
    files = hub()
    try:
        paths = sorted(files.glob(f"datasets/{repository}@{revision}/{source.path}"))
    except _network_faults(source) as error:
        raise EnvironmentFault(f"{source.hub}: cannot be read from the Hub ({type(error).__name__})") from None
    if not paths:
        raise UserError(f"curate.sources: {source.name}: {source.hub} holds no file {source.path!r}")
    for path in paths:
        suffix, packed = _suffix(path)
        label = f"{repository}/{path.rpartition('@' + revision + '/')[2]}"
        yield label, suffix, partial(_unpacked, partial(files.open, path, "rb"), packed), None


def _network_faults(source: SourceSection) -> tuple[type[Exception], ...]:
    """What may be raised where the Hub cannot be reached: its own errors are no OSError until they have an answer."""
    if source.hub is None:
        return ()
    import httpx2

    return (OSError, httpx2.HTTPError)


def hub() -> Any:
    """The Hub as a file system."""
    from huggingface_hub import HfFileSystem

    return HfFileSystem()


def _suffix(name: str) -> tuple[str, bool]:
    packed = name.endswith(".gz")
    return Path(name.removesuffix(".gz")).suffix.lower(), packed


def _unpacked(open_file: Callable[[], Any], packed: bool) -> Any:
    return _Unpacked(fileobj=open_file()) if packed else open_file()


class _Unpacked(gzip.GzipFile):
    """A gzip file that closes what it reads from."""

    def close(self) -> None:
        packed: Any = self.fileobj
        super().close()
        if packed is not None:
            packed.close()


def _copy(open_file: Callable[[], Any], target: Path) -> None:
    with open_file() as stream, target.open("wb") as copy:
        shutil.copyfileobj(stream, copy)
