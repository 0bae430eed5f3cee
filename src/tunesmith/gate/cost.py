"""What each arm costs, in dollars: a thousand calls, a thousand right answers, and from when on tuning pays."""

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from tunesmith.cost import Use, break_even_calls_a_month, cache_factor, per_call, per_right_answer, with_fallback
from tunesmith.gate.evidence import Arm, Evidence
from tunesmith.prices import read_prices
from tunesmith.recipe import LoadedRecipe

NEVER = "never"


def priced(counted: Mapping[str, Mapping[str, Any]], evidence: Evidence, loaded: LoadedRecipe) -> dict[str, Any]:
    """The verdict's `cost` with dollars beside the tokens of each arm that a model answered.

    The adapter's call holds the incumbent's for the part that falls back. `break_even_calls_a_month` stands at the arms
    that were tuned: calls a month from which they cost less than the incumbent, or `never`.

    Raises:
        UserError: the prices cannot be read, or do not hold what the recipe names.
    """
    cost = loaded.recipe.cost
    prices = read_prices(loaded.prices_path)
    served, tuned = prices.price(cost.serves), prices.price(cost.tuned)
    incumbent = evidence.incumbent
    told: dict[str, Any] = {}
    for name, tokens in counted.items():
        told[name] = dict(tokens)
        arm = evidence.arms[name]
        if not any(row["tokens_in"] for row in arm.rows):
            continue
        use = use_of(arm)
        is_tuned = not {"adapter", "merged"}.isdisjoint(arm.about["weights"])
        price = tuned if is_tuned else served
        dollars = per_call(use, price, hits=cost.cache_hits)
        before = per_call(use_of(incumbent), served, hits=cost.cache_hits)
        if is_tuned:
            dollars = with_fallback(dollars, before, cost.fallback)
        right = per_right_answer(dollars, fmean(arm.scores(loaded.recipe.score.primary)), cost.miss)
        told[name] |= {
            "usd_per_1000_calls": 1000 * dollars,
            "usd_per_1000_right": None if math.isinf(right) else 1000 * right,
            "cache_factor": cache_factor(cost.cache_hits, price),
        }
        if is_tuned:
            calls = break_even_calls_a_month(cost.hosting, cost.one_off, cost.retrains, before, dollars)
            told[name]["break_even_calls_a_month"] = NEVER if calls is None else math.ceil(calls)
    return told


def use_of(arm: Arm) -> Use:
    """Tokens of an arm's call, on the mean; what all its prompts begin with is what a cache would hold."""
    read, written = (fmean(row[key] for row in arm.rows) for key in ("tokens_in", "tokens_out"))
    shared = min(read, float(arm.about.get("prefix_tokens", 0)))
    return Use(shared=shared, own=read - shared, output=written)
