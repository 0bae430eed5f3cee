"""What the check found, and rows with their loss tokens visible: on the terminal and as a page."""

from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunesmith.files import write_atomic
from tunesmith.prompt import IGNORE, Renderer
from tunesmith.rows import Row
from tunesmith.templates import fill

COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red", "LATER": "dim"}


class Span(NamedTuple):
    """Neighbouring tokens of one kind, as text."""

    text: str
    carries_loss: bool
    is_control: bool


def spans(row: Row, renderer: Renderer) -> list[Span]:
    """A row's tokens, cut where loss begins or ends and where control tokens stand."""
    rendered = renderer.render(row)
    pairs = zip(rendered.input_ids, rendered.labels, strict=True)
    return [
        Span(text, carries, control)
        for carries, run in groupby(pairs, key=lambda pair: pair[1] != IGNORE)
        for text, control in renderer.pieces([token for token, _ in run])
    ]


def turns_of(rows: Iterable[Row], number: int) -> list[Row]:
    """The first rows as training gets them, a conversation once for each turn that is learned."""
    return list(islice((turn for row in rows for turn in row.turns()), number))


def show(result: dict[str, Any], faults: Sequence[dict[str, Any]], console: Console) -> None:
    """Print every check with what it found, then the faults that a later stage looks at."""
    table = Table("check", "status", "found", box=None, pad_edge=False)
    for finding in result["checks"]:
        table.add_row(finding["name"], _status(finding["status"]), finding["evidence"])
        if finding["status"] != "PASS":
            table.add_row("", "", f"wanted: {finding['says']}; {finding['remedy']}")
    console.print(table)
    console.print(
        f"{result['rows']} rows, {result['tokens']['mean']} tokens on average, longest {result['tokens']['longest']}"
    )
    counts = {status: sum(fault["status"] == status for fault in faults) for status in COLOURS}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    console.print(f"{len(faults)} known silent faults: {told}")


def show_rows(rows: Sequence[Row], renderer: Renderer, console: Console) -> None:
    """Print rows with their loss tokens visible."""
    for row in rows:
        console.print(f"\nrow {row.id}; the tokens between ⟦ and ⟧ carry loss:", markup=False)
        console.print(visible(row, renderer), soft_wrap=True)


def visible(row: Row, renderer: Renderer) -> Text:
    """A row's tokens as text, those with loss between ⟦ and ⟧ (and green where there is colour)."""
    text = Text()
    for carries, run in groupby(spans(row, renderer), key=lambda span: span.carries_loss):
        inside = "".join(span.text for span in run)
        text.append(f"⟦{inside}⟧" if carries else inside, style="green" if carries else "dim")
    return text


def write_page(
    path: Path,
    name: str,
    result: dict[str, Any],
    faults: Sequence[dict[str, Any]],
    rows: Sequence[Row],
    renderer: Renderer,
) -> None:
    """Write the checks, the thirty faults and some rows as one page that needs nothing else."""
    told = {
        "recipe": name,
        "result": result,
        "faults": faults,
        "rows": [{"id": row.id, "spans": spans(row, renderer)} for row in rows],
    }
    write_atomic(path, fill("tunesmith.check", "check.html.jinja", told))


def _status(status: str) -> Text:
    return Text(status, style=COLOURS[status])
