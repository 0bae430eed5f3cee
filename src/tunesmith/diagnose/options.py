"""What each way to answer would cost: a call, a right answer, and from how many calls tuning pays."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.cost import (
    Price,
    Use,
    break_even_calls_a_month,
    cache_factor,
    per_call,
    per_right_answer,
    with_fallback,
)
from tunesmith.prices import PriceList
from tunesmith.sections import CostSection

TUNED = "fine_tuned"
NEVER = "never"


@dataclass(frozen=True)
class Option:
    """One way to answer: the tokens of a call, and how often it is right, where that was measured."""

    use: Use
    accuracy: float | None = None
    retrieves: bool = False


def costs(options: Mapping[str, Option], cost: CostSection, prices: PriceList, *, about: str) -> dict[str, Any]:
    """What diagnosis.json holds of costs; `options` without training, and `fine_tuned` among them.

    A month's calls from which the tuned model costs less are given for each of the others; `never` where a call of it
    does not cost less. `about` says where the tokens come from.
    """
    served, tuned = prices.price(cost.serves), prices.price(cost.tuned)
    calls = {name: _call(option, served, cost) for name, option in options.items() if name != TUNED}
    trained = None
    if TUNED in options:
        trained = with_fallback(_call(options[TUNED], tuned, cost), min(calls.values()), cost.fallback)
    told: dict[str, Any] = {}
    for name, option in options.items():
        dollars = calls.get(name, trained)
        assert dollars is not None, "fine_tuned is priced where it is an option"
        right = None if option.accuracy is None else per_right_answer(dollars, option.accuracy, cost.miss)
        pays: float | str | None = None
        if name != TUNED and trained is not None:
            found = break_even_calls_a_month(cost.hosting, cost.one_off, cost.retrains, dollars, trained)
            pays = NEVER if found is None else math.ceil(found)
        told[name] = {
            "tokens_in": option.use.input,
            "tokens_shared": option.use.shared,
            "tokens_out": option.use.output,
            "accuracy": option.accuracy,
            "usd_per_1000_calls": 1000 * dollars,
            "usd_per_1000_right": None if right is None or math.isinf(right) else 1000 * right,
            "break_even_calls_a_month": pays,
        }
    return {
        "about": f"{cost.serves}, tuned on {cost.tuned}; {about}",
        "prices": prices.about,
        "assumed": cost.model_dump(),
        "cache_factor": cache_factor(cost.cache_hits, served),
        "options": told,
    }


def _call(option: Option, price: Price, cost: CostSection) -> float:
    return per_call(option.use, price, hits=cost.cache_hits, retrieval=cost.retrieval if option.retrieves else 0.0)
