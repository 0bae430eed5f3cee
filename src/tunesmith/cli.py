"""The command line: thin, one function a command, heavy imports inside the commands."""

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tunesmith import __version__, beside
from tunesmith.asked import BaseName, DistDir, RecipeName, RunsDir, Sets, console, open_line
from tunesmith.ending import guarded
from tunesmith.errors import ExitCode

app = typer.Typer(
    help="Fine-tune open models with LoRA and QLoRA; ship an adapter only on evidence.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


class Judging(TyperGroup):
    """A group whose command `judge` need not be named: `gate RECIPE` is `gate judge RECIPE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take what is no command of the group for the arguments of `judge`."""
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["judge", *args]
        return super().parse_args(ctx, args)


app.add_typer(beside.app)
gate_app = typer.Typer(cls=Judging, help="Judge a run's evidence, or put the gate itself to the test.")
app.add_typer(gate_app, name="gate", no_args_is_help=True)


class Stage(StrEnum):
    """A stage that `run` can end with."""

    CHECK = "check"
    BASELINE = "baseline"
    PLAN = "plan"
    TRAIN = "train"
    EVALUATE = "evaluate"
    GATE = "gate"
    EXPORT = "export"


class Engine(StrEnum):
    """Where curation works."""

    LOCAL = "local"
    RAY = "ray"


def _report(line: Any, verdict: dict[str, Any]) -> None:
    from tunesmith.gate.evidence import read_evidence
    from tunesmith.gate.report import print_report

    print_report(verdict, read_evidence(line.run.directory), console())


@app.command()
def run(
    recipe: RecipeName,
    base: BaseName = None,
    sets: Sets = None,
    until: Annotated[Stage, typer.Option("--until", help="The last stage to run.")] = Stage.EXPORT,
    runs: RunsDir = Path("runs"),
    dist: DistDir = Path("dist"),
) -> None:
    """Run the whole line: curate, check, baseline, plan, train, evaluate, gate, export."""
    line = open_line(recipe, base, sets, runs, dist)
    line.curate()
    with line.run.locked():
        for stage in list(Stage)[: list(Stage).index(until) + 1]:
            if stage is Stage.GATE:
                _finish(line, export=until is Stage.EXPORT)
                return
            getattr(line, stage.value)()
    _say_times(line)


def _finish(line: Any, *, export: bool) -> None:
    """Judge, report, export what ships, and leave with the verdict's exit code."""
    verdict = line.gate()
    _report(line, verdict)
    if export and verdict["verdict"] == "SHIP":
        line.export()
    _say_times(line)
    raise typer.Exit(verdict["exit_code"])


def _say_times(line: Any) -> None:
    from tunesmith.progress import say

    total = sum(line.times.values())
    parts = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in line.times.items())
    say(f"\ntook {total / 60:.1f} min: {parts}\n{line.run.directory}")


@app.command()
def curate(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name in recipes/, or a path to a YAML file.")] = "",
    sets: Sets = None,
    base: BaseName = None,
    curve: Annotated[bool, typer.Option("--curve", help="Also write 1/8, 1/4, 1/2 and all of train, nested.")] = False,
    recut: Annotated[bool, typer.Option("--recut", help="Cut anew; rows may move between splits.")] = False,
    engine: Annotated[Engine, typer.Option("--engine", help="Where the rows are worked on.")] = Engine.LOCAL,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes; else one a core.")] = None,
    diff: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--diff", metavar="OLD NEW", help="Instead: what changed between two dataset directories."),
    ] = None,
) -> None:
    """Make the recipe's rows and splits from their sources, with a report.html that shows what became of them."""
    if diff is not None:
        from tunesmith.curate.diff import compare, print_difference

        print_difference(compare(*diff))
        return
    if not recipe:
        raise typer.BadParameter("name a recipe, or give --diff OLD NEW", param_hint="RECIPE")
    line = open_line(recipe, base, sets, Path("runs"))
    line.curate(again=curve or recut, curve=curve, recut=recut, engine=engine.value, workers=workers)
    report = line.dataset.directory / "report.html"
    typer.echo(report if report.is_file() else line.dataset.directory)


@app.command()
def check(
    recipe: RecipeName,
    base: BaseName = None,
    sets: Sets = None,
    runs: RunsDir = Path("runs"),
    show: Annotated[int, typer.Option("--show", min=0, help="How many rows to show with their loss tokens.")] = 2,
) -> None:
    """Render every training row, run all checks, and show rows with their loss tokens, here and in check.html."""
    line = open_line(recipe, base, sets, runs)
    with line.run.locked():
        try:
            line.check()
        finally:
            _show_check(line, show)
    typer.echo(line.run.path("check.json"))


def _show_check(line: Any, number: int) -> None:
    """Tell what a check found, whatever it was."""
    from tunesmith.check import shown
    from tunesmith.files import read_json
    from tunesmith.findings import table
    from tunesmith.prompt import Renderer

    if not line.run.path("check.json").is_file():
        return
    out = console()
    result, faults = read_json(line.run.path("check.json")), table(line.run.directory)
    renderer = Renderer(line.base.tokenizer(), line.base.end_ids())
    rows = shown.turns_of(line.dataset.rows("train"), number)
    shown.show(result, faults, out)
    refused = {row for finding in result["checks"] if finding["name"] == "template" for row in finding["rows"]}
    rows = [row for row in rows if row.id not in refused]
    shown.show_rows(rows, renderer, out)
    shown.write_page(line.run.path("check.html"), line.recipe.name, result, faults, rows, renderer)
    typer.echo(line.run.path("check.html"))


@app.command()
def plan(
    recipe: RecipeName,
    base: BaseName = None,
    sets: Sets = None,
    runs: RunsDir = Path("runs"),
    memory: Annotated[bool, typer.Option("--memory", help="Only memory and time, without loading a weight.")] = False,
) -> None:
    """Say what training takes of this machine and what the gate rows can show, and fix what the run is judged by.

    Exit 21 if training cannot fit, 2 if the gate rows are too few to show what the recipe wants.
    """
    from rich.console import Console

    line, console = open_line(recipe, base, sets, runs), Console(highlight=False)
    path = line.forecast(console)
    if path is not None:
        typer.echo(path)
    if memory or path is None:
        return
    with line.run.locked():
        line.baseline()
        line.show_plan(console)
        line.plan()
    typer.echo(line.run.path("gate.lock"))


@app.command()
def promote(recipe: RecipeName, sets: Sets = None, runs: RunsDir = Path("runs")) -> None:
    """Make the confirm rows the new gate split, where the old one has had its looks; those rows join dev."""
    line = open_line(recipe, None, sets, runs)
    recorded = line.promote()
    for name, digest in recorded["after"].items():
        typer.echo(f"{name:<14}{recorded['before'][name][:12]} -> {digest[:12]}")
    typer.echo(line.dataset.manifest_path)


@app.command()
def baseline(recipe: RecipeName, base: BaseName = None, sets: Sets = None, runs: RunsDir = Path("runs")) -> None:
    """Answer the held-out rows without training, and choose the incumbent on dev."""
    line = open_line(recipe, base, sets, runs)
    with line.run.locked():
        line.baseline()
    typer.echo(line.run.path("selection.json"))


@app.command()
def train(
    recipe: RecipeName,
    base: BaseName = None,
    sets: Sets = None,
    runs: RunsDir = Path("runs"),
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Begin from another run's newest checkpoint, or from this one.")
    ] = None,
    allow_drift: Annotated[
        bool, typer.Option("--allow-drift", help="Go on from a checkpoint that was made otherwise; it is recorded.")
    ] = False,
    curve: Annotated[
        bool, typer.Option("--curve", help="Train on 1/8, 1/4, 1/2 and all rows; say what more would bring.")
    ] = False,
) -> None:
    """Train the adapter (after the check); a run that was stopped goes on from its newest checkpoint."""
    from tunesmith.team import here

    if curve:
        if resume or allow_drift:
            raise typer.BadParameter("goes on by itself where it was stopped; leave --resume and --allow-drift out")
        _train_curve(recipe, base=base, sets=sets or [], runs=runs)
        return
    line = open_line(recipe, base, sets, runs, together=True)
    with line.held():
        line.check()
        line.train(resume=resume, allow_drift=allow_drift)
    if here().leads:
        typer.echo(line.run.path("adapter"))


def _train_curve(recipe: str, **options: Any) -> None:
    from tunesmith.curve.stage import show
    from tunesmith.line import quiet_libraries
    from tunesmith.sizes import train_curve

    quiet_libraries()
    whole, told = train_curve(recipe, options)
    show(told, console())
    for name in ("curve.json", "curve.png"):
        typer.echo(whole.run.path(name))


@app.command()
def evaluate(recipe: RecipeName, base: BaseName = None, sets: Sets = None, runs: RunsDir = Path("runs")) -> None:
    """Answer the gate rows with every arm: without training, with the adapter, and merged."""
    line = open_line(recipe, base, sets, runs)
    with line.run.locked():
        line.baseline()
        line.evaluate()
    typer.echo(line.run.path("arms"))


@gate_app.command("judge")
def gate(recipe: RecipeName, base: BaseName = None, sets: Sets = None, runs: RunsDir = Path("runs")) -> None:
    """Judge a run's evidence; the exit code is the verdict (0 SHIP, 10 BLOCK, 11 INCONCLUSIVE, 12 INVALID)."""
    line = open_line(recipe, base, sets, runs)
    with line.run.locked():
        verdict = line.gate()
    _report(line, verdict)
    typer.echo(line.run.path("verdict.json"))
    raise typer.Exit(verdict["exit_code"])


@gate_app.command("selftest")
def gate_selftest(
    recipe: RecipeName,
    sets: Sets = None,
    runs: RunsDir = Path("runs"),
    look: Annotated[int, typer.Option("--look", min=1, help="At the level of which look at the gate split.")] = 1,
    pipelines: Annotated[int, typer.Option("--pipelines", min=20, help="Made-up runs a scenario.")] = 2000,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
) -> None:
    """Put the gate to the test on made-up runs of which the truth is known; exit 10 if it ships what it must not."""
    from tunesmith.gate.selftest import selftest_of, show
    from tunesmith.recipe import load_recipe

    tested = selftest_of(load_recipe(recipe, sets=sets or []), runs, look=look, pipelines=pipelines, seed=seed)
    show(tested, console())
    raise typer.Exit(ExitCode.DONE if tested.holds else ExitCode.BLOCK)


@app.command()
def export(
    recipe: RecipeName,
    base: BaseName = None,
    sets: Sets = None,
    runs: RunsDir = Path("runs"),
    dist: DistDir = Path("dist"),
) -> None:
    """Write the bundle of a run whose verdict is SHIP."""
    line = open_line(recipe, base, sets, runs, dist)
    with line.run.locked():
        typer.echo(line.export())


@app.command()
def verify(bundle: Annotated[Path, typer.Argument(help="A bundle, `dist/<name>-<version>`.")]) -> None:
    """Check that a bundle holds the bytes that were judged and exported, and no others."""
    from tunesmith.export.bundle import verify_bundle

    for name, value in verify_bundle(bundle).items():
        typer.echo(f"{name:<10}{value}")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the `tunesmith` command."""
    # A polite stop is an interruption like Ctrl-C: finished stages are kept, and the exit code says so.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(guarded(app))


if __name__ == "__main__":
    main()
