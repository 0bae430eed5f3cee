"""One function from evidence to verdict; text, JSON and exit code all come from what it returns.

SHIP: every term passes. INVALID: the comparison itself is broken. BLOCK: a term is shown to be unmet; more rows would
not help. INCONCLUSIVE: neither; the verdict says how many rows would settle it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, quantiles
from typing import Any

from tunesmith.errors import ExitCode
from tunesmith.gate.evidence import Arm, Evidence
from tunesmith.gate.guards import not_assessed, told
from tunesmith.gate.slices import slices
from tunesmith.gate.terms import Term, all_terms, noise
from tunesmith.recipe import Recipe
from tunesmith.stats import clustered_t, mean_interval, spent

SCHEMA = 1
KINDS = ("right", "wrong", "missed")


def judge(evidence: Evidence, recipe: Recipe, about: Mapping[str, Any], bound: Sequence[Term] = ()) -> dict[str, Any]:
    """Weigh the evidence; returns the content of verdict.json.

    `about` adds digests, versions and names to it, and says which look this is: that decides alpha. `bound` are the
    integrity terms of lock and ledger.
    """
    look = int(about.get("look", 1))
    alpha = spent(recipe.gate.alpha, look)
    terms = all_terms(evidence, recipe, alpha, bound)
    verdict = decide(terms)
    adapter, incumbent = evidence.arms["adapter"], evidence.incumbent
    complete = verdict != "INVALID"
    pairs = list(zip(adapter.rows, incumbent.rows, strict=False)) if complete else []
    metric = recipe.score.primary
    return {
        "schema": SCHEMA,
        "verdict": verdict,
        "exit_code": int(ExitCode[verdict]),
        "reasons": reasons(terms, verdict),
        "terms": [term.as_dict() for term in terms],
        "primary": metric,
        "score": {"kind": recipe.score.kind, "columns": recipe.score.columns},
        "look": look,
        "alpha": alpha,
        "ci_level": 1 - 2 * alpha,
        "arms": {name: describe(arm, alpha) for name, arm in evidence.arms.items()} if complete else {},
        "trivial": {name: fmean(arm.scores(metric)) for name, arm in evidence.trivial.items()} if complete else {},
        "servers": {name: describe(arm, alpha) for name, arm in evidence.servers.items()},
        "incumbent": incumbent.name,
        "fixed": [a["id"] for a, b in pairs if a["scores"][metric] > b["scores"][metric]],
        "broken": [a["id"] for a, b in pairs if a["scores"][metric] < b["scores"][metric]],
        "failure_classes": {name: failures(arm) for name, arm in evidence.arms.items()},
        "guards": told(evidence, recipe, alpha) if complete else {},
        "cost": {name: cost(arm) for name, arm in evidence.arms.items()},
        "tuning_by_retrieval": tuning_by_retrieval(evidence, recipe, alpha) if complete else None,
        "noise": noise(evidence, recipe),
        "slices": (parts := slices(evidence, recipe, alpha) if complete else []),
        "not_assessed": [
            *(not_assessed(evidence, recipe, alpha) if complete else []),
            *(
                {"guard": f"slice {one['by']} = {one['value']}", "why": f"{one['n']} rows"}
                for one in parts
                if not one["assessed"]
            ),
        ],
        "next_evidence": [{"term": term.name, "n_needed": term.n_needed} for term in terms if term.outcome == "open"],
        **about,
    }


def decide(terms: list[Term]) -> str:
    """The verdict that follows from the terms."""
    if any(term.kind == "integrity" and term.outcome == "fail" for term in terms):
        return "INVALID"
    if all(term.outcome == "pass" for term in terms):
        return "SHIP"
    return "BLOCK" if any(term.outcome == "fail" for term in terms) else "INCONCLUSIVE"


def reasons(terms: list[Term], verdict: str) -> list[str]:
    """One sentence for each term that stands in the way; for SHIP, the gain."""
    if verdict == "SHIP":
        return [_numbers(term) for term in terms if term.kind == "superiority"]
    words = {"fail": "not met", "open": "not settled"}
    told = []
    for term in terms:
        if term.outcome != "pass":
            more = f"; about {term.n_needed} rows would settle it" if term.n_needed and term.outcome == "open" else ""
            told.append(f"{words[term.outcome]}: {_numbers(term)}{more}")
    return told


def describe(arm: Arm, alpha: float) -> dict[str, Any]:
    """An arm's metrics with intervals, its fields where its scorer has them, tokens and latency."""
    metrics = list(arm.rows[0]["scores"])
    described: dict[str, Any] = {}
    for metric in metrics:
        interval = mean_interval(arm.scores(metric), arm.groups, alpha)
        described[metric] = {
            "mean": interval.estimate,
            "ci_low": interval.low,
            "ci_high": interval.high,
            "n": interval.n,
        }
    if any("fields" in row for row in arm.rows):
        described["fields"] = fields(arm)
        described["fields_micro"] = micro(arm)
    if corpus := arm.about.get("corpus"):
        described["corpus"] = corpus
    if judged := arm.about.get("judge"):
        described["judge"] = judged
    described |= cost(arm)
    return described


def tuning_by_retrieval(evidence: Evidence, recipe: Recipe, alpha: float) -> dict[str, Any] | None:
    """The base and the adapter, each alone and with what retrieval finds, and what both do beyond the sum of each.

    That is the mean over rows of both - tuned - retrieval + plain, with its bounds. None where one did not answer.
    """
    found = "documents" if "documents" in evidence.arms else "retrieval"
    names = {"plain": "zero_shot", "retrieval": found, "tuned": "adapter", "both": "adapter_retrieval"}
    if not all(name in evidence.arms for name in names.values()):
        return None
    scores = {cell: evidence.arms[name].scores(recipe.score.primary) for cell, name in names.items()}
    cells = zip(scores["both"], scores["tuned"], scores["retrieval"], scores["plain"], strict=True)
    more = [both - tuned - retrieval + plain for both, tuned, retrieval, plain in cells]
    interval = clustered_t(more, evidence.arms["adapter"].groups, alpha)
    return {
        "arms": names,
        "means": {cell: fmean(each) for cell, each in scores.items()},
        "interaction": {"estimate": interval.estimate, "ci_low": interval.low, "ci_high": interval.high},
    }


def fields(arm: Arm) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 of each field over all rows."""
    right, wrong, missed = (Counter(path for row in arm.rows for path in row["fields"][kind]) for kind in KINDS)
    return {path: _prf(right[path], wrong[path], missed[path]) for path in sorted({*right, *wrong, *missed})}


def micro(arm: Arm) -> dict[str, float]:
    """Precision, recall and F1 of all fields of all rows together."""
    return _prf(*(sum(len(row["fields"][kind]) for row in arm.rows) for kind in KINDS))


def failures(arm: Arm) -> dict[str, int]:
    """How many rows failed in which way."""
    return dict(sorted(Counter(row["failure"] for row in arm.rows if row["failure"]).items()))


def cost(arm: Arm) -> dict[str, Any]:
    """Tokens read and written over all rows, and the wall time of the batches that the rows were answered in.

    A latency is measured: rows replayed from the cache have none, and an arm of such rows alone has null.
    """
    seconds = sorted(row["seconds"] for row in arm.rows if not row.get("replayed"))
    cuts = quantiles(seconds, n=20, method="inclusive") if len(seconds) > 1 else seconds * 19
    return {
        "tokens_in": sum(row["tokens_in"] for row in arm.rows),
        "tokens_out": sum(row["tokens_out"] for row in arm.rows),
        "latency_p50_s": round(cuts[9], 3) if cuts else None,
        "latency_p95_s": round(cuts[18], 3) if cuts else None,
    }


def _prf(right: int, wrong: int, missed: int) -> dict[str, float]:
    return {
        "precision": right / (right + wrong) if right + wrong else 0.0,
        "recall": right / (right + missed) if right + missed else 0.0,
        "f1": 2 * right / (2 * right + wrong + missed) if right + wrong + missed else 0.0,
        "n": right + missed,
    }


def _numbers(term: Term) -> str:
    if term.estimate is None:
        return term.says
    return f"{term.says}: {term.estimate:+.3f} ({term.ci_low:+.3f} to {term.ci_high:+.3f}, n {term.n})"
