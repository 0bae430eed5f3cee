"""Each kind of file as values with their lines: CSV, TSV, JSON, Parquet, and a directory of documents.

A reader takes an open file and yields what stands in it: a line number, and the value or what is wrong with it. It goes
on where it can and says so where it cannot. JSON Lines needs no reader: chunks are cut out of it as it lies.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Collection, Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

from tunesmith.rows import STRICT

Read = tuple[int, Any, str | None]
"""A line number, and the value that stands there or what is wrong with it."""

DOCUMENTS = (".txt", ".md")
COMPLETIONS = (".json", ".completion.txt", ".completion.md")
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
    decoder = json.JSONDecoder(**STRICT)
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
    for key in ("messages", "conversations", "prompt", "completion", "chosen", "rejected"):
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


def listing(directory: Path) -> IO[bytes]:
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


def plain(value: Any) -> Any:
    """A cell of a table as JSON knows it."""
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
