"""A verdict in words: the same sentences for the terminal, the page, the summary and the card."""

from collections.abc import Mapping
from typing import Any

FATES = {
    "SHIP": "ships",
    "BLOCK": "does not ship",
    "INCONCLUSIVE": "does not ship yet",
    "INVALID": "has no verdict",
}

WHY = {
    "SHIP": "it beats the best arm without training by more than noise, and nothing guarded got worse",
    "BLOCK": "a condition is shown to be unmet; more rows would not change that",
    "INCONCLUSIVE": "the evidence does not settle it",
    "INVALID": "the comparison is broken",
}


def headline(verdict: Mapping[str, Any]) -> str:
    """What became of the run, and why, in one sentence."""
    return f"{verdict['name']} {FATES[verdict['verdict']]}: {WHY[verdict['verdict']]}"


def in_numbers(verdict: Mapping[str, Any]) -> str | None:
    """The gain of what ships over the incumbent, for somebody who reads one line; none where nothing was compared."""
    gain = next((term for term in verdict["terms"] if term["name"] == "gain_merged"), None)
    if gain is None or not verdict["arms"]:
        return None
    metric, incumbent = verdict["primary"], verdict["incumbent"]
    ours, theirs = (verdict["arms"][arm][metric]["mean"] for arm in ("merged", incumbent))
    low, high = 100 * gain["ci_low"], 100 * gain["ci_high"]
    return (
        f"On {gain['n']} rows that it never saw, the merged model scores {share(ours)} {metric}; the best that needs "
        f"no training, {incumbent}, {share(theirs)}: {100 * gain['estimate']:+.1f} points ({low:+.1f} to {high:+.1f})."
    )


NOT_THE_TASK = ("habit", "harmful", "benign")
"""Guards over prompts beside the task: what an adapter does there matters to whoever serves it for more than that."""


def cautions(verdict: Mapping[str, Any]) -> list[str]:
    """What was seen beside the task and no term judges, for somebody who reads no further."""
    return [one["why"] for one in verdict.get("not_assessed", []) if one["guard"] in NOT_THE_TASK]


def next_steps(verdict: Mapping[str, Any]) -> list[str]:
    """What would settle what is open: rows, by term. None where what is shown already decides."""
    if verdict["verdict"] != "INCONCLUSIVE":
        return []
    return [
        f"{one['term']}: about {one['n_needed']:,} rows, if the estimate stays"
        for one in verdict.get("next_evidence", [])
        if one.get("n_needed")
    ]


def outcome(term: Mapping[str, Any]) -> str:
    """How a term ended, in a word."""
    return "pass" if term["pass"] else "open" if term["undecided"] else "FAIL"


def share(value: float) -> str:
    """A number from 0 to 1 as a percentage."""
    return f"{100 * value:.1f} %"


def in_order(arms: Mapping[str, Any]) -> list[str]:
    """The names of arms as a reader expects them: without training first, what ships last."""
    order = ("zero_shot", "few_shot", "retrieval", "documents", "constrained", "started_from", "adapter")
    last = ("adapter_retrieval", "merged")
    place = {name: number for number, name in enumerate((*order, "", *last))}
    return sorted(arms, key=lambda name: (place.get(name, len(order)), name))
