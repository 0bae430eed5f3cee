"""The command line: thin, one function a command, heavy imports inside the commands."""

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tunesmith import __version__
from tunesmith.ending import guarded
from tunesmith.errors import ExitCode, UserError

app = typer.Typer(
    help="Fine-tune open models with LoRA and QLoRA; ship an adapter only on evidence.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
recipe_app = typer.Typer(help="Look at recipes without running them.", no_args_is_help=True)
app.add_typer(recipe_app, name="recipe")


class Judging(TyperGroup):
    """A group whose command `judge` need not be named: `gate RECIPE` is `gate judge RECIPE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take what is no command of the group for the arguments of `judge`."""
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["judge", *args]
        return super().parse_args(ctx, args)


gate_app = typer.Typer(cls=Judging, help="Judge a run's evidence, or put the gate itself to the test.")
app.add_typer(gate_app, name="gate", no_args_is_help=True)

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A name in recipes/, or a path to a YAML file.")]
BaseName = Annotated[
    str | None,
    typer.Option("--base", help="Another base: a name in bases.yaml, `org/name@<revision>`, or `./directory`."),
]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Set one value for this run: `lora.r=32`. Repeatable.")]
RunsDir = Annotated[Path, typer.Option("--runs", help="Where runs are kept.")]
DistDir = Annotated[Path, typer.Option("--dist", help="Where bundles go.")]


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


def _line(
    recipe: str,
    base: str | None,
    sets: list[str] | None,
    runs: Path,
    dist: Path = Path("dist"),
    *,
    together: bool = False,
) -> Any:
    from tunesmith.line import Line, quiet_libraries
    from tunesmith.team import here

    if here().size > 1 and not together:
        raise UserError(
            "WORLD_SIZE: a launcher has started several processes, and only `tunesmith train` works in several",
            hint="give this command by itself; it starts what the recipe's `launch:` asks for",
        )
    quiet_libraries()
    return Line(recipe, base=base, sets=sets or [], runs=runs, dist=dist)


def _report(line: Any, verdict: dict[str, Any]) -> None:
    from tunesmith.gate.evidence import read_evidence
    from tunesmith.gate.report import print_report

    print_report(verdict, read_evidence(line.run.directory), _console())


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


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
    line = _line(recipe, base, sets, runs, dist)
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
    line = _line(recipe, base, sets, Path("runs"))
    line.curate(again=curve or recut, curve=curve, recut=recut, engine=engine.value, workers=workers)
    report = line.dataset.directory / "report.html"
    typer.echo(report if report.is_file() else line.dataset.directory)


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
def check(
    recipe: RecipeName,
    base: BaseName = None,
    sets: Sets = None,
    runs: RunsDir = Path("runs"),
    show: Annotated[int, typer.Option("--show", min=0, help="How many rows to show with their loss tokens.")] = 2,
) -> None:
    """Render every training row, run all checks, and show rows with their loss tokens, here and in check.html."""
    line = _line(recipe, base, sets, runs)
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
    console = _console()
    result, faults = read_json(line.run.path("check.json")), table(line.run.directory)
    renderer = Renderer(line.base.tokenizer(), line.base.end_ids())
    rows = shown.turns_of(line.dataset.rows("train"), number)
    shown.show(result, faults, console)
    refused = {row for finding in result["checks"] if finding["name"] == "template" for row in finding["rows"]}
    rows = [row for row in rows if row.id not in refused]
    shown.show_rows(rows, renderer, console)
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

    line, console = _line(recipe, base, sets, runs), Console(highlight=False)
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
    line = _line(recipe, None, sets, runs)
    recorded = line.promote()
    for name, digest in recorded["after"].items():
        typer.echo(f"{name:<14}{recorded['before'][name][:12]} -> {digest[:12]}")
    typer.echo(line.dataset.manifest_path)


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
def baseline(recipe: RecipeName, base: BaseName = None, sets: Sets = None, runs: RunsDir = Path("runs")) -> None:
    """Answer the held-out rows without training, and choose the incumbent on dev."""
    line = _line(recipe, base, sets, runs)
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
    line = _line(recipe, base, sets, runs, together=True)
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
    show(told, _console())
    for name in ("curve.json", "curve.png"):
        typer.echo(whole.run.path(name))


@app.command()
def evaluate(recipe: RecipeName, base: BaseName = None, sets: Sets = None, runs: RunsDir = Path("runs")) -> None:
    """Answer the gate rows with every arm: without training, with the adapter, and merged."""
    line = _line(recipe, base, sets, runs)
    with line.run.locked():
        line.baseline()
        line.evaluate()
    typer.echo(line.run.path("arms"))


@gate_app.command("judge")
def gate(recipe: RecipeName, base: BaseName = None, sets: Sets = None, runs: RunsDir = Path("runs")) -> None:
    """Judge a run's evidence; the exit code is the verdict (0 SHIP, 10 BLOCK, 11 INCONCLUSIVE, 12 INVALID)."""
    line = _line(recipe, base, sets, runs)
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
    show(tested, _console())
    raise typer.Exit(ExitCode.DONE if tested.holds else ExitCode.BLOCK)


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
def export(
    recipe: RecipeName,
    base: BaseName = None,
    sets: Sets = None,
    runs: RunsDir = Path("runs"),
    dist: DistDir = Path("dist"),
) -> None:
    """Write the bundle of a run whose verdict is SHIP."""
    line = _line(recipe, base, sets, runs, dist)
    with line.run.locked():
        typer.echo(line.export())


@app.command()
def verify(bundle: Annotated[Path, typer.Argument(help="A bundle, `dist/<name>-<version>`.")]) -> None:
    """Check that a bundle holds the bytes that were judged and exported, and no others."""
    from tunesmith.export.bundle import verify_bundle

    for name, value in verify_bundle(bundle).items():
        typer.echo(f"{name:<10}{value}")


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
    import json

    from tunesmith.recipe import recipe_json_schema

    typer.echo(json.dumps(recipe_json_schema(), indent=2))


@recipe_app.command("validate")
def recipe_validate(recipe: RecipeName, base: BaseName = None, sets: Sets = None) -> None:
    """Check a recipe: keys, types, values, files, base; all problems at once."""
    from tunesmith.line import Line

    line = Line(recipe, base=base, sets=sets or [])
    typer.echo(f"{line.loaded.label}: valid")


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
