"""One progress bar for every long stage, on stderr, with the time left."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

stderr = Console(stderr=True, highlight=False)


class Bar:
    """A bar under way."""

    def __init__(self, progress: Progress, total: int, label: str) -> None:
        self._progress = progress
        self._task = progress.add_task(label, total=total, note="")

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Move forward, and say something beside the bar."""
        self._progress.update(self._task, advance=steps)
        if note is not None:
            self._progress.update(self._task, note=note)


@contextmanager
def bar(label: str, total: int) -> Iterator[Bar]:
    """Show a bar while the block runs; off a terminal, one line at its end. Without a label none is shown."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=stderr, transient=False, disable=not label) as progress:
        yield Bar(progress, total, f"  {label:<24}")


def say(text: str) -> None:
    """One line for a person, on stderr."""
    stderr.print(text, soft_wrap=True, markup=False)
