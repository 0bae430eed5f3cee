"""The dollars of a verdict, from the tokens of its arms."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.gate.conftest import MakeEvidence
from tunesmith.gate.cost import priced
from tunesmith.gate.evidence import Evidence
from tunesmith.gate.verdict import cost
from tunesmith.prices import read_prices
from tunesmith.recipe import LoadedRecipe, load_recipe
from tunesmith.sections import CostSection

CALL = 40 * 0.25e-6 + 8 * 2e-6
"""The fixture's 40 tokens in and 8 out at gpt-5-mini's prices."""


def loaded(repository: Path, **settings: Any) -> LoadedRecipe:
    found = load_recipe("smoke", root=repository)
    section = CostSection(**{"serves": "gpt-5-mini", "tuned": "gpt-5-mini"} | settings)
    recipe = found.recipe.model_copy(update={"cost": section})
    return cast("LoadedRecipe", SimpleNamespace(recipe=recipe, prices_path=None))


def evidence(make_evidence: MakeEvidence) -> Evidence:
    made = make_evidence([True] * 30 + [False] * 10, [True] * 20 + [False] * 20)
    adapter = made.arms["adapter"]
    return replace(
        made, arms=made.arms | {"adapter": replace(adapter, about=adapter.about | {"weights": {"adapter": "a"}})}
    )


def told(made: Evidence, recipe: LoadedRecipe) -> dict[str, Any]:
    return priced({name: cost(arm) for name, arm in made.arms.items()}, made, recipe)


def test_dollars_stand_beside_the_tokens(repository: Path, make_evidence: MakeEvidence) -> None:
    found = told(evidence(make_evidence), loaded(repository, cache_hits=0.8))
    factor = 0.8 * 0.1 + 0.2
    call = CALL - 10 * 0.25e-6 * (1 - factor)
    assert found["retrieval"]["tokens_in"] == 1600
    assert found["retrieval"]["usd_per_1000_calls"] == pytest.approx(1000 * call)
    assert found["retrieval"]["usd_per_1000_right"] == pytest.approx(1000 * call / 0.5)
    assert found["adapter"]["usd_per_1000_right"] == pytest.approx(1000 * call / 0.75)
    assert found["adapter"]["cache_factor"] == pytest.approx(factor)
    assert "break_even_calls_a_month" not in found["retrieval"]


def test_tuning_never_pays_where_a_call_costs_as_much(repository: Path, make_evidence: MakeEvidence) -> None:
    assert told(evidence(make_evidence), loaded(repository))["adapter"]["break_even_calls_a_month"] == "never"


def test_tuning_pays_from_so_many_calls_where_the_tuned_model_is_cheaper(
    repository: Path, make_evidence: MakeEvidence
) -> None:
    recipe = loaded(repository, tuned="gpt-5-nano", hosting=100.0, one_off=1200.0, retrains=4.0, fallback=0.1)
    nano = 40 * 0.05e-6 + 8 * 0.4e-6 + 0.1 * CALL
    found = told(evidence(make_evidence), recipe)["adapter"]
    assert found["usd_per_1000_calls"] == pytest.approx(1000 * nano)
    assert found["break_even_calls_a_month"] == pytest.approx((100 + 400) / (CALL - nano), abs=1)


def test_an_arm_that_no_model_answered_costs_nothing(repository: Path, make_evidence: MakeEvidence) -> None:
    made = evidence(make_evidence)
    rows = [row | {"tokens_in": 0, "tokens_out": 0} for row in made.arms["adapter"].rows]
    trivial = replace(made.arms["adapter"], name="majority", rows=rows)
    found = told(replace(made, arms=made.arms | {"majority": trivial}), loaded(repository))
    assert "usd_per_1000_calls" not in found["majority"]


def test_the_recipes_names_are_looked_up(repository: Path, make_evidence: MakeEvidence) -> None:
    from tunesmith.errors import UserError

    with pytest.raises(UserError, match="holds no price of `nobody`"):
        told(evidence(make_evidence), loaded(repository, serves="nobody"))
    assert read_prices().about["file"] == "shipped"
