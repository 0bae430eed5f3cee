"""Commands beside the line: they look at files, logs, recipes or the machine, and judge no run."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.asked import BaseName, RecipeName, RunsDir, Sets
from tunesmith.errors import ExitCode

app = typer.Typer()
recipe_app = typer.Typer(help="Look at recipes without running them.", no_args_is_help=True)
app.add_typer(recipe_app, name="recipe")


@app.command()
def leaks(
    left: Annotated[Path, typer.Argument(help="The larger file, such as train.jsonl; rows in any form.")],
    right: Annotated[Path, typer.Argument(help="The other, such as gate.jsonl.")],
    near: Annotated[float, typer.Option("--near", min=0, max=1, help="Similarity from which texts leak.")] = 0.8,
) -> None:
    """Say what two files of rows share that they must not; exit 10 if there is anything."""
    from tunesmith.curate.leak_check import leaks_between, print_leaks

    found = leaks_between(left, right, near)
    print_leaks(found, left, right)
    raise typer.Exit(ExitCode.BLOCK if found else ExitCode.DONE)


@app.command()
def diagnose(
    what: Annotated[
        str, typer.Argument(metavar="RECIPE|LOGS.jsonl", help="A recipe, whose dev rows are tried; or a log of calls.")
    ],
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="With a log: try the interventions on it with this recipe's base.")
    ] = None,
    base: BaseName = None,
    sets: Sets = None,
    runs: RunsDir = Path("runs"),
    rows: Annotated[int, typer.Option("--rows", min=2, help="Most failing rows to try, and half as many right.")] = 200,
    prices: Annotated[Path | None, typer.Option("--prices", help="A prices file of your own.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="What serves the calls: a name in the prices.")] = None,
) -> None:
    """Say why rows fail and what would repair it, before anything is trained; exit 11 if more rows are needed."""
    from rich.console import Console

    from tunesmith.diagnose.shown import show
    from tunesmith.diagnosing import diagnosed

    path, told = diagnosed(what, recipe, base, sets or [], runs, rows, prices, model)
    show(told, Console(highlight=False, width=None if sys.stdout.isatty() else 160))
    typer.echo(path)
    raise typer.Exit(told["exit_code"])


@app.command()
def compare(
    incumbent: Annotated[Path, typer.Argument(help="lm-eval's samples_*.jsonl, Inspect's .eval, or an arms/*.jsonl.")],
    candidate: Annotated[Path, typer.Argument(help="The same of the one that would take its place.")],
    metric: Annotated[str | None, typer.Option("--metric", help="Which score decides, if there are several.")] = None,
    min_gain: Annotated[float, typer.Option("--min-gain", min=0, max=1, help="Smallest gain that is worth it.")] = 0.0,
    alpha: Annotated[float, typer.Option("--alpha", min=0.0001, max=0.4, help="One-sided error rate.")] = 0.05,
    group: Annotated[
        str | None, typer.Option("--group", help="Key of a row's document or metadata whose rows count as one.")
    ] = None,
    only: Annotated[str | None, typer.Option("--filter", help="Which of lm-eval's filters.")] = None,
) -> None:
    """Weigh two logs of another harness as the gate would; exit 0, 10, 11 or 12 as for `gate`."""
    from rich.console import Console

    from tunesmith.gate import compare as comparison
    from tunesmith.gate.interop import read_arm

    arms = [read_arm(path, group=group, only=only) for path in (incumbent, candidate)]
    found = comparison.compare(arms[0], arms[1], metric, min_gain, alpha)
    comparison.show(found, Console(highlight=False, width=None if sys.stdout.isatty() else 160))
    raise typer.Exit(found["exit_code"])


@app.command()
def doctor() -> None:
    """Say what this machine has, what the toolkit would choose on it, and which versions are installed."""
    from rich.console import Console

    from tunesmith import hardware
    from tunesmith.line import quiet_libraries
    from tunesmith.packages import cache_dir
    from tunesmith.runs import versions

    quiet_libraries()
    console = Console(highlight=False)
    found = hardware.look()
    console.print(f"device      {found.device} ({found.name}), {found.memory_gib:.1f} GiB, {found.cores} cores")
    console.print(
        f"bfloat16    {'in hardware' if found.bf16 else 'not in hardware; float32 on a CPU, float16 on a GPU'}"
    )
    console.print(f"triton      {'yes' if found.triton else 'no; the head is computed for loss tokens only by ours'}")
    console.print(f"cache       {cache_dir()}")
    for name, number in versions().items():
        console.print(f"{name:<12}{number}")


@recipe_app.command("show")
def recipe_show(recipe: RecipeName, sets: Sets = None) -> None:
    """Print every resolved value with the place that set it."""
    from tunesmith.recipe import load_recipe

    lines = load_recipe(recipe, sets=sets or []).shown()
    left = max(len(f"{key} = {value!r}") for key, value, _ in lines)
    for key, value, place in lines:
        typer.echo(f"{f'{key} = {value!r}':<{min(left, 72)}}  # {place}")


@recipe_app.command("schema")
def recipe_schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""

    from tunesmith.recipe import recipe_json_schema

    typer.echo(json.dumps(recipe_json_schema(), indent=2))


@recipe_app.command("validate")
def recipe_validate(recipe: RecipeName, base: BaseName = None, sets: Sets = None) -> None:
    """Check a recipe: keys, types, values, files, base; all problems at once."""
    from tunesmith.line import Line

    line = Line(recipe, base=base, sets=sets or [])
    typer.echo(f"{line.loaded.label}: valid")
