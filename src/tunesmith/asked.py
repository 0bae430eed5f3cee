"""What commands ask for alike, and the line that they open with it."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tunesmith.errors import UserError

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A name in recipes/, or a path to a YAML file.")]
BaseName = Annotated[
    str | None,
    typer.Option("--base", help="Another base: a name in bases.yaml, `org/name@<revision>`, or `./directory`."),
]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Set one value for this run: `lora.r=32`. Repeatable.")]
RunsDir = Annotated[Path, typer.Option("--runs", help="Where runs are kept.")]
DistDir = Annotated[Path, typer.Option("--dist", help="Where bundles go.")]


def open_line(
    recipe: str,
    base: str | None,
    sets: list[str] | None,
    runs: Path,
    dist: Path = Path("dist"),
    *,
    together: bool = False,
) -> Any:
    """The line of a recipe, with the libraries kept quiet.

    Raises:
        UserError: anything that was asked for is wrong.
    """
    from tunesmith.line import Line, quiet_libraries
    from tunesmith.team import here

    if here().size > 1 and not together:
        raise UserError(
            "WORLD_SIZE: a launcher has started several processes, and only `tunesmith train` works in several",
            hint="give this command by itself; it starts what the recipe's `launch:` asks for",
        )
    quiet_libraries()
    return Line(recipe, base=base, sets=sets or [], runs=runs, dist=dist)


def console() -> Any:
    """Where tables are printed: as wide as the terminal, or wide enough for a file."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)
