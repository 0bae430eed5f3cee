"""Files of any kind as chunks of JSON lines, each with its place.

In: what a recipe says of a source. Out: chunks, each a range of bytes of a file of JSON lines, small enough to hold. A
file that is JSON Lines already is read where it lies; any other is first written into the scratch directory, one line
for each thing in it with the line it came from. Nothing is read whole but a `.json` file.
"""

import csv
import gzip
import io
import json
import os
import shutil
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import IO, Any

from tunesmith.curate.formats import detect
from tunesmith.curation import Format, SourceSection
from tunesmith.errors import EnvironmentFault, UserError
from tunesmith.rows import Row, no_constant, no_duplicates, parse

CHUNK_BYTES = 1 << 20
DOCUMENTS = (".txt", ".md")
COMPLETIONS = (".json", ".completion.txt", ".completion.md")


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


Read = tuple[int, Any, str | None]
"""A line number, and the value that stands there or what is wrong with it."""


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
                text = json.dumps(entry, ensure_ascii=False, allow_nan=False, default=_plain)
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
        yield source.path, DIRECTORY, partial(_listing, place), None
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


# ---------------------------------------------------------------------- kinds of files


LARGEST_CELL = (1 << 31) - 1
"""Characters; Python's own limit is 128 Ki, and documents are longer."""


def _read_csv(stream: IO[bytes], delimiter: str = ",") -> Iterator[Read]:
    problems: list[Read] = []

    def decoded() -> Iterator[str]:
        for number, line in enumerate(stream, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                problems.append((number, None, f"not UTF-8 (byte {error.start}); save the file as UTF-8"))
                text = line.decode("utf-8", errors="replace")
            yield text

    csv.field_size_limit(LARGEST_CELL)
    reader, begin = csv.reader(decoded(), delimiter=delimiter, strict=True), 1
    try:
        header = next(reader, None)
        if header is None or problems:
            yield from problems
            return
        if len(set(header)) < len(header) or not all(header):
            yield 1, None, f"column names must be there and differ: {', '.join(header)}"
            return
        begin = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                yield begin, None, f"has {len(cells)} cells, the header has {len(header)}"
            elif cells and not (problems and problems[-1][0] >= begin):
                yield begin, dict(zip(header, cells, strict=True)), None
            begin = reader.line_num + 1
    except csv.Error as error:
        yield begin, None, f"not CSV ({error}); nothing after it was read"
    yield from problems


def _read_tsv(stream: IO[bytes]) -> Iterator[Read]:
    return _read_csv(stream, "\t")


def _read_json(stream: IO[bytes]) -> Iterator[Read]:
    """A list of objects, each with the line where it begins."""
    try:
        text = stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield 1, None, f"not UTF-8 (byte {error.start}); save the file as UTF-8"
        return
    decoder = json.JSONDecoder(object_pairs_hook=no_duplicates, parse_constant=no_constant)
    place, line = _blank(text, 0), 1
    if text[place : place + 1] != "[":
        yield 1, None, "must be a list of objects; one object a line is JSON Lines, a file that ends in .jsonl"
        return
    counted, place = 0, _blank(text, place + 1)
    while text[place : place + 1] != "]":
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            says = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            yield line, None, f"not JSON ({says}); nothing after it was read"
            return
        yield line, value, None
        place = _blank(text, place)
        after = _blank(text, place + 1)
        if text[place : place + 1] == "," and text[after : after + 1] != "]":
            place = after
        elif text[place : place + 1] != "]":
            yield line, None, "not JSON (a list goes on with a comma or ends with a bracket); nothing after it was read"
            return
    if text[place + 1 :].strip():
        line += text.count("\n", counted, _blank(text, place + 1))
        yield line, None, "not JSON (something stands after the list's last bracket); nothing after it was read"


def _blank(text: str, place: int) -> int:
    while text[place : place + 1] in (" ", "\t", "\n", "\r"):
        place += 1
    return place


def _read_parquet(stream: IO[bytes], named: Collection[str] = ()) -> Iterator[Read]:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        file = parquet.ParquetFile(stream)
        if len(set(names := file.schema_arrow.names)) < len(names):
            yield 1, None, f"column names must differ: {', '.join(names)}"
            return
        for batch in file.iter_batches(batch_size=1024):
            for value in batch.to_pylist():
                number += 1
                yield number, *_unfilled(value, named)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        # pyarrow raises a bare OSError for bytes that are wrong; one of another kind is the disk's or the network's.
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise
        says = next(iter(str(error).splitlines()), type(error).__name__)
        yield number + 1, None, f"not Parquet ({says}); nothing after it was read"


def _unfilled(value: dict[str, Any], named: Collection[str]) -> tuple[Any, str | None]:
    """A Parquet row without the nulls that its columns put where messages had no key; columns that are `named` stay."""
    if any(isinstance(tool, dict) for tool in _listed(value.get("tools"))):
        return None, "tools: Parquet fills nested objects with nulls; hold them as JSON text"
    for key in named:
        if any(isinstance(part, dict) for part in (value.get(key), *_listed(value.get(key)))):
            return None, f"{key}: Parquet fills nested objects with nulls; hold them as JSON text"
    for key in ("messages", "conversations", "prompt", "completion"):
        turns = value.get(key)
        if not isinstance(turns, list):
            continue
        for turn in turns:
            for call in _listed(turn.get("tool_calls")) if isinstance(turn, dict) else ():
                function = call.get("function") if isinstance(call, dict) else None
                if isinstance(function, dict) and isinstance(function.get("arguments"), dict):
                    return None, f"{key}: Parquet fills arguments with nulls; hold them as JSON text"
        value[key] = [
            {k: v for k, v in turn.items() if v is not None or k == "content"} if isinstance(turn, dict) else turn
            for turn in turns
        ]
    return {key: item for key, item in value.items() if item is not None or key in named}, None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _listing(directory: Path) -> IO[bytes]:
    """A directory's documents, as the file that `_read_documents` reads: their names."""
    paths = [path for path in sorted(directory.rglob("*")) if path.suffix.lower() in DOCUMENTS and path.is_file()]
    names = [str(path) for path in paths if not path.name.endswith(COMPLETIONS)]
    return io.BytesIO(os.fsencode("\0".join([str(directory), *names])))


def _read_documents(stream: IO[bytes]) -> Iterator[Read]:
    """Documents, each with its completion beside it: `a.txt` with `a.json` or `a.completion.txt`."""
    directory, *names = os.fsdecode(stream.read()).split("\0")
    if not names:
        yield 1, None, f"holds no document ({', '.join(DOCUMENTS)})"
    for name in names:
        path = Path(name)
        label = path.relative_to(directory).as_posix()
        beside = [path.with_name(path.stem + suffix) for suffix in COMPLETIONS]
        answers = [other for other in beside if other.is_file()]
        if len(answers) != 1:
            wanted = " or ".join(other.name for other in beside)
            yield 1, None, f"{label}: has {len(answers)} completions beside it; one is wanted, {wanted}"
            continue
        try:
            prompt, completion = (p.read_bytes().decode("utf-8-sig").strip() for p in (path, answers[0]))
        except UnicodeDecodeError as error:
            yield 1, None, f"{label}: it or its completion is not UTF-8 (byte {error.start}); save it as UTF-8"
            continue
        yield 1, {"id": label, "prompt": prompt, "completion": completion}, None


def _plain(value: Any) -> Any:
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise ValueError(f"{type(value).__name__}")


JSON_LINES = (".jsonl", ".ndjson")
DIRECTORY = "directory"
READERS: dict[str, Callable[..., Iterator[Read]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".parquet": _read_parquet,
    DIRECTORY: _read_documents,
}
KINDS = (*JSON_LINES, ".json", ".csv", ".tsv", ".parquet", "each also with .gz", "a directory of .txt and .md")
