"""Parts of the gate rows, each looked at for harm: an average may hide one.

Every slice that the recipe names and that is large enough has its one-sided test that the adapter is worse there than
the incumbent. Many tests find harm by chance, so Holm's correction holds their common error at alpha. That no harm is
shown is no proof of safety: a slice's bound stands beside it.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from scipy import optimize

from tunesmith.gate.evidence import Arm, Evidence
from tunesmith.recipe import Recipe
from tunesmith.stats import holm, paired_interval

WITHOUT = "(none)"
"""The value of rows that do not have one."""


def slices(evidence: Evidence, recipe: Recipe, alpha: float) -> list[dict[str, Any]]:
    """Every slice as verdict.json holds it, `p_holm` against `alpha` where it was assessed."""
    adapter, incumbent, metric = evidence.arms["adapter"], evidence.incumbent, recipe.score.primary
    found: list[dict[str, Any]] = []
    for section in recipe.gate.slices:
        places: dict[str, list[int]] = defaultdict(list)
        for index, row_id in enumerate(adapter.ids):
            places[evidence.slices.get(section.by, {}).get(row_id, WITHOUT)].append(index)
        for value, rows in sorted(places.items()):
            groups = [adapter.groups[i] for i in rows]
            one: dict[str, Any] = {
                "by": section.by,
                "value": value,
                "n": len(rows),
                "clusters": len(set(groups)),
                "harmed": False,
            }
            one["assessed"] = one["n"] >= section.min_rows and one["clusters"] > 1
            if one["assessed"]:
                ours, theirs = (_of(arm, metric, rows) for arm in (adapter, incumbent))
                interval = paired_interval(ours, theirs, groups, alpha)
                one |= {"estimate": interval.estimate, "ci_low": interval.low, "ci_high": interval.high}
                one["p"] = harm_p(ours, theirs, groups)
            found.append(one)
    assessed = [one for one in found if one["assessed"]]
    adjusted = holm({f"{place}": one["p"] for place, one in enumerate(assessed)})
    for place, one in enumerate(assessed):
        one["p_holm"], one["harmed"] = adjusted[f"{place}"], adjusted[f"{place}"] <= alpha
    return found


def harm_p(ours: Sequence[float], theirs: Sequence[float], groups: Sequence[str]) -> float:
    """How small alpha may be for the upper bound of ours - theirs to lie below 0; 1 where no alpha does it."""

    def above(alpha: float) -> float:
        return paired_interval(ours, theirs, groups, alpha).high

    least, most = 1e-9, 0.499
    if above(most) >= 0:
        return 1.0
    return least if above(least) < 0 else float(optimize.brentq(above, least, most, xtol=1e-9))


def _of(arm: Arm, metric: str, rows: Sequence[int]) -> list[float]:
    scores = arm.scores(metric)
    return [scores[i] for i in rows]
