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

    def left(self) -> float | None:
        """Seconds until the end at the present speed; none while nothing is known of it."""
        return self._progress.tasks[0].time_remaining


@contextmanager
def bar(label: str, total: int) -> Iterator[Bar]:
    """Show a bar while the block runs; off a terminal, one line at its end. Without a label none is shown."""
    columns = (
        TextColumn("{task.description}"),
        # On a narrow terminal the bar gives way to what stands beside it.
        BarColumn(bar_width=max(8, min(28, stderr.width - 88))),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    # By rich's own half minute of memory, a step that takes longer would never have a speed.
    with Progress(*columns, console=stderr, transient=False, disable=not label, speed_estimate_period=600) as progress:
        yield Bar(progress, total, f"  {label:<24}")


def say(text: str) -> None:
    """One line for a person, on stderr."""
    stderr.print(text, soft_wrap=True, markup=False)


def duration(seconds: float) -> str:
    """A length of time for a person: `1.9 s`, `40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
