"""Two arms of any harness, weighed as the gate weighs: paired, by group, with an answer that may be "not settled"."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from tunesmith.errors import ExitCode, UserError
from tunesmith.gate.evidence import Arm
from tunesmith.gate.interop import metrics_of
from tunesmith.gate.terms import Term, paired_gain
from tunesmith.gate.verdict import decide
from tunesmith.gate.words import outcome, share
from tunesmith.stats import mean_interval


def compare(incumbent: Arm, candidate: Arm, metric: str | None, min_gain: float, alpha: float) -> dict[str, Any]:
    """Whether the candidate beats the incumbent by more than noise, and by `min_gain`, on the same rows.

    Raises:
        UserError: the metric is not in both, or is not between 0 and 1, or none was named and there are several.
    """
    both = [name for name in metrics_of(incumbent) if name in metrics_of(candidate)]
    if metric is None and len(both) == 1:
        metric = both[0]
    if metric is None or metric not in both:
        asked = "name one by --metric" if metric is None else f"there is no {metric!r}"
        raise UserError(
            f"{incumbent.name}, {candidate.name}: {asked}; both have: {', '.join(both) or 'none in common'}"
        )
    for arm in (incumbent, candidate):
        if not all(0 <= score <= 1 for score in arm.scores(metric)):
            raise UserError(f"{arm.name}: {metric}: scores lie outside 0 to 1; bounds hold for scores within it")
    order = {row_id: place for place, row_id in enumerate(incumbent.ids)}
    same = set(order) == set(candidate.ids)
    terms = [
        Term(
            "same_rows",
            "integrity",
            "pass" if same else "fail",
            f"both answered the same {len(order)} rows"
            if same
            else f"{len(set(order) ^ set(candidate.ids))} rows stand in one log only: questions or references differ",
        )
    ]
    means: dict[str, Any] = {}
    if same:
        aligned = Arm("the candidate", {}, sorted(candidate.rows, key=lambda row: order[row["id"]]))
        other = replace(incumbent, name="the incumbent")
        terms.append(paired_gain("gain", aligned, other, metric, min_gain, alpha))
        means = {
            role: mean_interval(arm.scores(metric), arm.groups, alpha)
            for role, arm in (("incumbent", incumbent), ("candidate", candidate))
        }
        pairs = list(zip(aligned.rows, incumbent.rows, strict=True))
    else:
        pairs = []
    verdict = decide(terms)
    return {
        "verdict": verdict,
        "exit_code": int(ExitCode[verdict]),
        "metric": metric,
        "ci_level": 1 - 2 * alpha,
        "incumbent": incumbent.name,
        "candidate": candidate.name,
        "means": {role: {"mean": m.estimate, "ci_low": m.low, "ci_high": m.high} for role, m in means.items()},
        "terms": [term.as_dict() for term in terms],
        "fixed": [a["id"] for a, b in pairs if a["scores"][metric] > b["scores"][metric]],
        "broken": [a["id"] for a, b in pairs if a["scores"][metric] < b["scores"][metric]],
    }


WORDS = {
    "SHIP": "better by more than noise, and by enough",
    "BLOCK": "not better by as much as was asked; more rows would not change that",
    "INCONCLUSIVE": "not settled by these rows",
    "INVALID": "not comparable",
}


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print means, the difference and the outcome."""
    table = Table(box=None, pad_edge=False)
    for column in ("", found["metric"], f"{found['ci_level']:.0%} interval"):
        table.add_column(column, overflow="fold")
    for role, mean in found["means"].items():
        name = f"{role}: {found[role]}"
        table.add_row(name, share(mean["mean"]), f"{share(mean['ci_low'])} to {share(mean['ci_high'])}")
    console.print(table)
    for term in found["terms"]:
        told = f"  {outcome(term):<5} {term['says']}"
        if term["estimate"] is not None:
            told += (
                f": {term['estimate']:+.3f} ({term['ci_low']:+.3f} to {term['ci_high']:+.3f}, n {term['n']}, "
                f"groups {term['clusters']})"
            )
        if term["n_needed"]:
            told += f"; about {term['n_needed']} rows would settle it"
        console.print(told, markup=False, soft_wrap=True)
    if found["means"]:
        console.print(f"  fixed {len(found['fixed'])} rows, broken {len(found['broken'])}")
    console.print(f"[bold]{found['verdict']}[/bold]: {WORDS[found['verdict']]}")
