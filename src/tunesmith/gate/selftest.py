"""The gate put to the test: made-up runs of which the truth is known, judged by the code that judges real ones.

Each scenario draws pipelines, lays their evidence before `terms.all_terms` and counts the verdicts. One that must not
ship may do so in at most alpha of the pipelines, and what a simulation of this size adds to that by chance; one that
gains what is planned must ship as often as `power` says, less three points. Beside it stand rules that people use, on
the same rows.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML
from scipy import stats

from tunesmith.gate.bench import CHECKPOINTS, Bench
from tunesmith.gate.made_up import Shape, shape_of
from tunesmith.gate.power import Assumed, TermPlan, assume, plan_terms, power_of_all
from tunesmith.progress import say
from tunesmith.recipe import LoadedRecipe, Recipe
from tunesmith.rows import Dataset
from tunesmith.stats import spent

FEWEST = 2000
"""Pipelines of a scenario that must not ship; the others, whose rates are told apart with fewer, have a part of
them."""
IN_GROUPS = 0.5
"""How alike rows of a group are in the scenario that is about groups."""
SHORT = 0.03
"""How much less often than planned an adapter may ship that gains what is planned."""
CHANCE = 0.025
"""How likely a gate that ships at just its level is said to ship too often, in one scenario."""
COMPARED = 100
"""Pipelines of a scenario, where it is one of two, that are put before the whole of `verdict.judge` too."""


@dataclass(frozen=True)
class Outcome:
    """What became of a scenario's pipelines."""

    name: str
    says: str
    pipelines: int
    verdicts: Mapping[str, int]
    at_most: float | None = None
    """How often it may ship."""
    at_least: float | None = None
    """How often it must ship."""

    @property
    def rate(self) -> float:
        """The part of the pipelines that shipped."""
        return self.verdicts.get("SHIP", 0) / self.pipelines

    @property
    def allowed(self) -> float | None:
        """The highest rate that a simulation of this size would show by chance, once in forty, were `at_most` true."""
        if self.at_most is None:
            return None
        return float(stats.binom.ppf(1 - CHANCE, self.pipelines, self.at_most)) / self.pipelines

    @property
    def holds(self) -> bool:
        """Whether it shipped no more often than it may, and no less often than it must."""
        below = self.allowed is None or self.rate <= self.allowed
        return below and (self.at_least is None or self.rate >= self.at_least - SHORT)


@dataclass(frozen=True)
class Selftest:
    """All outcomes, and the plan that they are held against."""

    name: str
    alpha: float
    assumed: Assumed
    shape: Shape
    plans: list[TermPlan]
    power: float
    outcomes: list[Outcome]
    other_rules: dict[str, float]

    @property
    def holds(self) -> bool:
        """Whether every scenario came out as promised."""
        return all(outcome.holds for outcome in self.outcomes)

    def outcome(self, name: str) -> Outcome:
        """The outcome of one scenario."""
        return next(outcome for outcome in self.outcomes if outcome.name == name)


@dataclass(frozen=True)
class Scenario:
    """Pipelines of one kind."""

    name: str
    says: str
    """What is true of them."""
    pipelines: int
    draw: Callable[[Bench, int, int], Counter[str]]
    """Draws and judges them: the bench, a number for the seed, how many."""
    at_most: float | None = None
    at_least: float | None = None


def scenarios(recipe: Recipe, assumed: Assumed, alpha: float, power: float, pipelines: int) -> list[Scenario]:
    """All that a gate is put through; fewer pipelines where rates are told apart with fewer."""
    gate, some, few = recipe.gate, max(1, pipelines // 2), max(1, pipelines // 4)
    probes = recipe.guards.probes
    # A gain that no other term stops.
    sure = min(0.9, assumed.gain + 0.3)
    clear = {"gain": sure, "discordance": sure, "incumbent": (1 - sure) / 2}
    kind = partial(partial, Bench.judged)
    return [
        Scenario(
            "no better", "an adapter no better than the incumbent", pipelines, kind(compared=COMPARED), at_most=alpha
        ),
        Scenario(
            f"best of {CHECKPOINTS}",
            f"the best on dev of {CHECKPOINTS} checkpoints, none better than the incumbent, judged once",
            pipelines,
            Bench.best_of_many,
            at_most=alpha,
        ),
        Scenario(
            f"{CHECKPOINTS} looks",
            f"all {CHECKPOINTS} judged on the same gate rows, each look at its share of alpha",
            few,
            Bench.many_looks,
            at_most=gate.alpha,
        ),
        Scenario(
            "no better, in groups",
            f"no better, and rows of a group alike by {IN_GROUPS:g}",
            pipelines,
            kind(icc=IN_GROUPS),
            at_most=alpha,
        ),
        Scenario(
            "merged at its margin",
            f"a merged model that is worse by {gate.merged_margin:g}",
            some,
            kind(**clear, merged=(-gate.merged_margin, gate.merged_margin)),
            at_most=alpha,
        ),
        Scenario(
            "forgetting at its margin",
            f"a loss on general text that rose by {gate.general_nll_margin:g}",
            some,
            kind(**clear, rise=gate.general_nll_margin),
            at_most=alpha,
        ),
        *(
            [
                Scenario(
                    "knowledge lost at its margin",
                    f"right options that get {probes.pooled_margin:g} less",
                    some,
                    kind(**clear, fall=probes.pooled_margin),
                    at_most=alpha,
                )
            ]
            if probes.names
            else []
        ),
        Scenario(
            "majority collapse",
            "the commonest answer to every row, beside a weaker incumbent",
            few,
            kind(replay="majority", incumbent=assumed.trivial / 2),
            at_most=alpha,
        ),
        Scenario(
            "erased merge",
            "a merged model that answers as the base does",
            few,
            kind(**clear, replay="base"),
            at_most=alpha,
        ),
        Scenario(
            "stale cache",
            "the incumbent's answers, replayed as the adapter's",
            few,
            kind(replay="incumbent"),
            at_most=alpha,
        ),
        Scenario("just min_gain", f"a true gain of {gate.min_gain:g}", few, kind(gain=gate.min_gain)),
        Scenario(
            "planned gain",
            f"a true gain of {assumed.gain:g}",
            pipelines,
            kind(gain=assumed.gain, compared=COMPARED),
            at_least=power,
        ),
    ]


def selftest(
    recipe: Recipe,
    shape: Shape,
    assumed: Assumed,
    *,
    look: int = 1,
    pipelines: int = FEWEST,
    seed: int = 0,
    only: Collection[str] = (),
) -> Selftest:
    """Put a recipe's gate to the test, at the level of this look; `only` names scenarios, none for all."""
    alpha = spent(recipe.gate.alpha, look)
    assumed = replace(assumed, trivial=min(shape.majority, assumed.incumbent))
    plans = plan_terms(recipe, shape.sizes, assumed, alpha)
    power = power_of_all(plans)
    bench = Bench(recipe, shape, assumed, alpha, seed)
    outcomes = []
    for place, each in enumerate(scenarios(recipe, assumed, alpha, power, pipelines)):
        if not only or each.name in only:
            say(f"  {each.name}: {each.pipelines} pipelines")
            verdicts = each.draw(bench, place, each.pipelines)
            outcomes.append(Outcome(each.name, each.says, each.pipelines, verdicts, each.at_most, each.at_least))
    others = bench.other_rules(len(outcomes), pipelines)
    return Selftest(recipe.name, alpha, assumed, shape, plans, power, outcomes, others)


def selftest_of(loaded: LoadedRecipe, runs: Path, **options: Any) -> Selftest:
    """Put a recipe's gate to the test on rows like its own, with what the newest pilot of it measured.

    Raises:
        UserError: its curated rows are not what was curated.
    """
    pilots = [
        (path.stat().st_mtime, path, pilot)
        for name in ("gate.lock", "plan.json")
        for path in runs.glob(f"{loaded.recipe.name}-*/{name}")
        if (pilot := pilot_in(path))
    ]
    newest = max(pilots, default=None, key=lambda each: each[0])
    if newest is None:
        say("  no pilot in this recipe's runs: how often arms differ, and how alike rows of a group are, is assumed")
    else:
        say(f"  pilot: {newest[1]}")
    assumed = assume(loaded.recipe, newest[2] if newest else None)
    return selftest(loaded.recipe, shape_of(Dataset(loaded.data_directory)), assumed, **options)


def pilot_in(path: Path) -> dict[str, Any]:
    """What a pilot measured, as a run's gate.lock or plan.json holds it; empty where there is none."""
    # JSON is YAML.
    held = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")) or {}
    return held.get("pilot") or held.get("plan", {}).get("pilot") or {}


def show(tested: Selftest, console: Console) -> None:
    """Print what was assumed, what came of it, and one sentence last."""
    assumed, shape = tested.assumed, tested.shape
    rows = f"{sum(shape.sizes)} gate rows in {len(shape.sizes)} groups"
    rows += "" if shape.curated else " (assumed: no rows are curated)"
    console.print(f"\n{tested.name}: {rows}; level {tested.alpha:.4f}", markup=False, soft_wrap=True)
    known = {
        "discordance": f"arms differ by {assumed.discordance:.3f}",
        "icc": f"rows of a group are alike by {assumed.icc:.2f}",
        "merged_discordance": f"merged differs from adapter by {assumed.merged_discordance:.3f}",
    }
    for word, wanted in (("measured by the pilot", True), ("assumed", False)):
        if told := [text for key, text in known.items() if (key in assumed.measured) == wanted]:
            console.print(f"{word}: {'; '.join(told)}", markup=False, soft_wrap=True)
    console.print("\nPlan\n")
    console.print(_plans(tested))
    console.print("\nThe gate\n")
    console.print(_outcomes(tested))
    console.print("\nOther rules, on adapters no better than the incumbent\n")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("rule", overflow="fold")
    table.add_column("passes", justify="right")
    for name, rate in tested.other_rules.items():
        table.add_row(name, f"{rate:.1%}")
    console.print(table)
    console.print(f"\n{sentence(tested)}", markup=False, soft_wrap=True)


def sentence(tested: Selftest) -> str:
    """What came out, in one sentence with its figures."""
    equal, picked = tested.outcome("no better"), tested.outcome(f"best of {CHECKPOINTS}")
    planned, looks = tested.outcome("planned gain"), tested.outcome(f"{CHECKPOINTS} looks")
    naive = tested.other_rules["score > base"], tested.other_rules["score > base, best of 20 on the same rows"]
    broken = [outcome.name for outcome in tested.outcomes if not outcome.holds]
    return (
        f"{'FAILS (' + ', '.join(broken) + ')' if broken else 'HOLDS'}: {tested.name}'s gate ships {equal.rate:.1%} of "
        f"{equal.pipelines} adapters no better than the incumbent, {picked.rate:.1%} when they are the best of "
        f"{CHECKPOINTS} on dev ({tested.alpha:.1%} allowed) and {looks.rate:.1%} over {CHECKPOINTS} looks, where "
        f"`score > base` ships {naive[0]:.1%} and {naive[1]:.1%}; it ships {planned.rate:.1%} of those that gain "
        f"{tested.assumed.gain:+.3f} ({tested.power:.1%} planned)."
    )


def _plans(tested: Selftest) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("term", "true value", "bound", "n", "power", "n for 95 %", "smallest shown"):
        table.add_column(column, justify="left" if column == "term" else "right", overflow="fold")
    for plan in tested.plans:
        numbers = (f"{plan.effect:+.3f}", f"{plan.margin:+.3f}", str(plan.n), f"{plan.power:.3f}")
        needed = "none" if plan.n_needed is None else str(plan.n_needed)
        table.add_row(plan.name, *numbers, needed, "none" if plan.mde is None else f"{plan.mde:.3f}")
    table.add_row("all together", "", "", "", f"{tested.power:.3f}", "", "")
    return table


def _outcomes(tested: Selftest) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("scenario", "what is true", "pipelines", "ships", "wanted", ""):
        justify: Any = "right" if column in {"pipelines", "ships", "wanted"} else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for outcome in tested.outcomes:
        wanted = "" if outcome.at_least is None else f">= {outcome.at_least - SHORT:.1%}"
        if outcome.allowed is not None:
            wanted = f"<= {outcome.allowed:.1%}"
        word = "" if not wanted else "holds" if outcome.holds else "FAILS"
        table.add_row(outcome.name, outcome.says, str(outcome.pipelines), f"{outcome.rate:.1%}", wanted, word)
    return table
