"""The plan of a verdict: what answers to dev rows say of how many gate rows it takes.

Before training there is no adapter to compare. How often two arms differ on a row decides how many rows a comparison
takes, and that is measured on dev: between the incumbent and the best arm that answers another prompt, and between the
incumbent and itself in batches of another size, which is the noise floor. How alike rows of a group are decides what
the gate's rows are worth together.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import floor
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from tunesmith.design import intraclass_correlation
from tunesmith.gate.evidence import Arm, again_file, read_arm
from tunesmith.gate.power import TERM_POWER, assume, plan_terms, power_of_all
from tunesmith.recipe import Recipe


@dataclass(frozen=True)
class Pilot:
    """What was measured on dev."""

    rows: int
    incumbent: str
    other: str
    """Whom it is compared with: the best arm of another prompt, or the adapter that training begins from."""
    discordance: float
    """Mean squared difference of the two arms' scores on a row; of right and wrong, how often they differ."""
    noise: float
    """The same of the incumbent and itself."""
    icc: float | None
    """How alike the differences of rows of a group are; none where no group has two rows."""


def measure(run: Path, selection: Mapping[str, Any], metric: str) -> Pilot:
    """Compare the arms that answered dev: `baseline` has written them."""
    dev, ways = run / "arms" / "dev", selection["ways"]
    label = {way["arm"]: f"{way['arm']}-{way['k']}" if way["k"] else way["arm"] for way in ways}
    (chosen,) = (way for way in ways if way["arm"] == selection["incumbent"])
    incumbent = read_arm(dev / f"{label[chosen['arm']]}.jsonl")
    again = read_arm(run / again_file(selection, 1, "dev"))
    other = _other(dev, selection, chosen, label)
    return Pilot(
        rows=len(incumbent.rows),
        incumbent=incumbent.name,
        other=other.name,
        discordance=discordance(other, incumbent, metric),
        noise=discordance(again, incumbent, metric),
        icc=_icc(_differences(other, incumbent, metric), incumbent.groups),
    )


def _other(dev: Path, selection: Mapping[str, Any], chosen: Mapping[str, Any], label: Mapping[str, str]) -> Arm:
    """The adapter that training begins from, or else the best arm that answers another prompt than the incumbent."""
    if (dev / "started_from.jsonl").is_file():
        return read_arm(dev / "started_from.jsonl")
    prompt = (chosen["shots"], chosen["k"])
    # An oracle answers gate rows alone, and is nobody's rival.
    rivals = [way for way in selection["ways"] if label[way["arm"]] in selection["dev_means"]]
    others = [way for way in rivals if (way["shots"], way["k"]) != prompt] or rivals
    best = max(others, key=lambda way: selection["dev_means"][label[way["arm"]]])
    return read_arm(dev / f"{label[best['arm']]}.jsonl")


def discordance(ours: Arm, theirs: Arm, metric: str) -> float:
    """Mean squared difference of two arms' scores on the same rows."""
    return fmean(d * d for d in _differences(ours, theirs, metric))


def _differences(ours: Arm, theirs: Arm, metric: str) -> list[float]:
    return [a - b for a, b in zip(ours.scores(metric), theirs.scores(metric), strict=True)]


def _icc(values: Sequence[float], groups: Sequence[str]) -> float | None:
    try:
        return intraclass_correlation(values, groups)
    except ValueError:
        return None


def plan_of(pilot: Pilot, recipe: Recipe, groups: Sequence[str], look: int, alpha: float) -> dict[str, Any]:
    """The plan as gate.lock holds it, its numbers to four places; `groups` are those of the gate's rows.

    `power` is the chance that all terms pass for an adapter that gains what is planned for, none of them harmed.
    """
    known = {key: value for key, value in asdict(pilot).items() if value is not None}
    assumed = assume(recipe, known)
    terms = plan_terms(recipe, sorted(Counter(groups).values()), assumed, alpha)
    told = {
        "look": look,
        "alpha": alpha,
        "power": power_of_all(terms),
        "pilot": asdict(pilot),
        "assumed": {**asdict(assumed), "measured": list(assumed.measured)},
        "terms": [asdict(term) for term in terms],
    }
    rounded: dict[str, Any] = _rounded(told)
    return rounded


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return round(value, 4) if isinstance(value, float) else value


def too_weak(plan: Mapping[str, Any], recipe: Recipe, label: str) -> list[str]:
    """Why training should not begin: the plan has less power than the recipe wants or accepts; else nothing."""
    gate = recipe.gate
    wanted = gate.power if gate.accept_power is None else gate.accept_power
    if plan["power"] >= wanted:
        return []
    weak = [term for term in plan["terms"] if term["power"] < TERM_POWER]
    told = [
        f"{label}: an adapter that is truly better by {plan['assumed']['gain']:g} would pass with a chance of "
        f"{plan['power']:.2f}; gate.power asks for {wanted:g}"
    ]
    for term in weak:
        needed = f"about {term['n_needed']} needed" if term["n_needed"] else "no number of them is enough"
        told.append(f"{label}: {term['name']}: {term['n']} rows, {needed} for a power of {TERM_POWER:g}")
    accept = floor(plan["power"] * 20) / 20
    ways = "curate more gate rows, or raise gate.min_gain or the margin"
    if accept > 0:
        ways += f"; or accept it by name, in the recipe or by `--set gate.accept_power={accept:.2f}`"
    return [*told, f"{label}: {ways}"]


def show(plan: Mapping[str, Any], recipe: Recipe, console: Console) -> None:
    """Print the pilot and what each term takes."""
    pilot = plan["pilot"]
    console.print(
        f"\nPilot on {pilot['rows']} dev rows: {pilot['incumbent']} and {pilot['other']} differ by "
        f"{pilot['discordance']:.3f}, {pilot['incumbent']} and itself by {pilot['noise']:.3f}; "
        f"rows of a group are alike by {'an unknown part' if pilot['icc'] is None else format(pilot['icc'], '.2f')}",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("term", "planned", "margin", "rows", "power", f"rows for {TERM_POWER:g}", "detectable"):
        table.add_column(column, justify="left" if column == "term" else "right", overflow="fold")
    for term in plan["terms"]:
        table.add_row(
            term["name"],
            f"{term['effect']:+.3f}",
            f"{term['margin']:+.3f}",
            str(term["n"]),
            f"{term['power']:.2f}",
            "none" if term["n_needed"] is None else str(term["n_needed"]),
            "none" if term["mde"] is None else f"{term['mde']:.3f}",
        )
    console.print(table)
    accepted = f", {recipe.gate.accept_power:g} accepted" if recipe.gate.accept_power is not None else ""
    console.print(
        f"look {plan['look']}, alpha {plan['alpha']:.4f}: all terms pass with a chance of {plan['power']:.2f} "
        f"({recipe.gate.power:g} wanted{accepted})",
        soft_wrap=True,
    )
