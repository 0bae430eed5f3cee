"""Leaks between any two files of rows, in whatever form they come."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from tunesmith.curate import formats
from tunesmith.curate.chunks import chunks
from tunesmith.curate.formats import Malformed
from tunesmith.curation import SourceSection
from tunesmith.errors import UserError
from tunesmith.leaks import KINDS, Leak, find_leaks, row_texts
from tunesmith.rows import Row

SHOWN = 20


def leaks_between(left: Path, right: Path, near: float | None) -> list[Leak]:
    """The leaks of two files; see `tunesmith.leaks`.

    Raises:
        UserError: a file is missing, or lines of it are no rows.
    """
    with TemporaryDirectory() as scratch:
        held = list(row_texts(rows_of(right, Path(scratch))))
        return find_leaks(row_texts(rows_of(left, Path(scratch))), held, near)


def rows_of(path: Path, scratch: Path) -> Iterator[Row]:
    """The rows of a file in any known form; of a conversation, one whole.

    Raises:
        UserError: the file is missing, or lines of it are no rows; after the last line, all at once.
    """
    source = SourceSection(name="file", licence="unknown", path=str(path))
    problems: list[str] = []
    for chunk in chunks(0, source, Path(), scratch):
        for place, value, problem in chunk.lines():
            try:
                if problem is not None:
                    raise Malformed(problem)
                form = chunk.form or formats.detect(value, {})
                yield from formats.read(value, form, columns={}, system=None, turns="whole")
            except Malformed as error:
                problems += [f"{place}: {text}" for text in error.problems]
    if problems:
        raise UserError(problems)


def print_leaks(leaks: Sequence[Leak], left: Path, right: Path, console: Console | None = None) -> None:
    """Say what leaks: counts by kind, and some of each."""
    console = console or Console(highlight=False)
    counts = Counter(leak.kind for leak in leaks)
    if not leaks:
        console.print(f"no leak from {left} to {right} ({', '.join(KINDS)})", soft_wrap=True)
        return
    console.print(f"{len(leaks)} rows of {left} stand in {right} too:", soft_wrap=True)
    table = Table("kind", "rows", box=None, pad_edge=False)
    for kind in KINDS:
        table.add_row(kind, str(counts[kind]))
    console.print(table)
    for leak in leaks[:SHOWN]:
        console.print(f"  {leak.kind}: {leak.left} and {leak.right}: {leak.says}", soft_wrap=True, markup=False)
