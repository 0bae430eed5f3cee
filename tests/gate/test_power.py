"""What a gate can show on its rows: the planned figures against the gate's own bounds, in simulation."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tunesmith.gate.guards import probe_terms
from tunesmith.gate.made_up import Crowd, beside
from tunesmith.gate.power import (
    TERM_POWER,
    Assumed,
    TermPlan,
    all_pass,
    assume,
    chance_by_t,
    chance_to_show,
    plan_terms,
    power_of_all,
)
from tunesmith.recipe import Recipe
from tunesmith.stats import clustered_t, paired_interval, tango

ALPHA = 0.05


def recipe_with(recipe: Recipe, **gate: Any) -> Recipe:
    return recipe.model_copy(update={"gate": recipe.gate.model_copy(update=gate)})


def term(plans: list[TermPlan], name: str) -> TermPlan:
    return next(plan for plan in plans if plan.name == name)


def shown(
    gain: float, above: float, at_least: float, q: float, sizes: list[int], icc: float, trials: int = 1200
) -> float:
    """How often the gate's own interval lies above a threshold, in simulation."""
    crowd = Crowd(np.random.default_rng(0), sizes, icc, trials, right_or_wrong=True)
    mean = (1 - gain) / 2
    theirs = crowd.arm(mean)
    ours, base = crowd.rows(crowd.other(theirs, mean, gain, q)), crowd.rows(theirs)
    groups = [str(group) for group, size in enumerate(sizes) for _ in range(size)]
    intervals = [paired_interval(a, b, groups, ALPHA) for a, b in zip(ours.tolist(), base.tolist(), strict=True)]
    return float(np.mean([one.low > above and one.estimate >= at_least for one in intervals]))


@pytest.mark.parametrize(
    ("gain", "above", "at_least", "q", "sizes", "icc"),
    [
        (0.1, 0.0, 0.05, 0.2, [1] * 250, 0.0),
        (0.08, 0.0, 0.0, 0.3, [4] * 60, 0.3),
        (0.0, -0.02, -math.inf, 0.004, [1] * 250, 0.0),
        (0.0, -0.06, -math.inf, 0.1, [*[2] * 60, *[1] * 80], 0.1),
    ],
)
def test_the_exact_chance_is_that_of_the_gates_bound(
    gain: float, above: float, at_least: float, q: float, sizes: list[int], icc: float
) -> None:
    n = sum(sizes)
    grouped = sum(size**2 for size in sizes) / n
    each = 1 + (grouped - 1) * icc
    planned = chance_to_show(gain, above, at_least, q, n / each, n / grouped - 1, ALPHA, each=each)
    assert shown(gain, above, at_least, q, sizes, icc) == pytest.approx(planned, abs=0.03)


@pytest.mark.parametrize(("sizes", "icc"), [([2] * 120, 0.2), ([8] * 24, 0.3)])
def test_where_few_rows_differ_and_come_in_groups_the_chance_is_off_by_some_points(
    sizes: list[int], icc: float
) -> None:
    grouped = sum(size**2 for size in sizes) / sum(sizes)
    each = 1 + (grouped - 1) * icc
    worth, freedom = sum(sizes) / each, sum(sizes) / grouped - 1
    planned = chance_to_show(0.0, -0.02, -math.inf, 0.004, worth, freedom, ALPHA, each=each)
    assert shown(0.0, -0.02, -math.inf, 0.004, sizes, icc) == pytest.approx(planned, abs=0.06)


def test_every_table_is_weighed() -> None:
    """Against the sum over all tables of one row more or less, written out."""
    n, q, gain = 30, 0.3, 0.1
    expected = 0.0
    for better in range(n + 1):
        for worse in range(n + 1 - better):
            chance = math.comb(n, better) * math.comb(n - better, worse)
            chance *= 0.2**better * 0.1**worse * 0.7 ** (n - better - worse)
            estimate = (better - worse) / n
            t = clustered_t(
                [1.0] * better + [-1.0] * worse + [0.0] * (n - better - worse), list(map(str, range(n))), ALPHA
            )
            expected += chance * (min(tango(better, worse, n, ALPHA)[0], t.low) > 0 and estimate >= 0.1)
    assert chance_to_show(gain, 0.0, 0.1, q, n, n - 1, ALPHA) == pytest.approx(expected, abs=1e-9)


def test_the_chance_of_a_mean_is_that_of_its_t_bound() -> None:
    rng = np.random.default_rng(1)
    drawn = rng.normal(0.03, 0.11, (4000, 40))
    names = [str(i) for i in range(40)]
    passed = np.mean([clustered_t(rise, names, ALPHA).high < 0.08 for rise in drawn[:1500].tolist()])
    assert chance_by_t(0.03, -0.02, -math.inf, 0.11**2 + 0.03**2, 40, 39, ALPHA) > 0
    assert chance_by_t(-0.03, -0.08, -math.inf, 0.11**2 + 0.03**2, 40, 39, ALPHA) == pytest.approx(passed, abs=0.03)


def test_terms_that_go_together_pass_together() -> None:
    """The table of the probability that all of 3, 6 and 10 terms pass, correlated by 0.3."""
    for power, expected in ((0.8, (0.57, 0.40, 0.28)), (0.95, (0.87, 0.78, 0.69))):
        found = [all_pass([power] * k, 0.3 + 0.7 * np.eye(k)) for k in (3, 6, 10)]
        assert found == pytest.approx(expected, abs=0.006)
    assert all_pass([0.8, 0.8], np.eye(2)) == pytest.approx(0.64, abs=0.004)
    assert all_pass([0.8, 0.8], np.ones((2, 2))) == pytest.approx(0.8, abs=0.004)
    assert all_pass([1.0, 0.7], np.eye(2)) == pytest.approx(0.7, abs=0.004)


@pytest.mark.parametrize(("rows", "each_margin"), [(40, 0.2), (60, 0.08)])
def test_the_power_over_questions_is_that_of_the_guards_terms(recipe: Recipe, rows: int, each_margin: float) -> None:
    probes = {"names": ["piqa", "mmlu", "boolq"], "rows": rows, "pooled_margin": 0.035, "each_margin": each_margin}
    section = recipe.guards.model_copy(update={"probes": recipe.guards.probes.model_copy(update=probes)})
    asking = recipe.model_copy(update={"guards": section})
    plan = term(plan_terms(asking, [1] * 50, assume(asking), ALPHA), "probes_merged")
    assert plan.n == 3 * rows
    drawn = beside(np.random.default_rng(0), asking, assume(asking), 1000)
    passed = [
        all(one.outcome == "pass" for one in probe_terms(drawn.guards(i), "merged", asking, ALPHA)) for i in range(1000)
    ]
    assert 0.4 < plan.power < 0.95
    assert np.mean(passed) == pytest.approx(plan.power, abs=0.035)


@pytest.fixture
def assumed(recipe: Recipe) -> Assumed:
    return assume(recipe_with(recipe, min_gain=0.05))


def test_the_rows_named_give_the_power_they_are_named_for(recipe: Recipe, assumed: Assumed) -> None:
    careful = recipe_with(recipe, min_gain=0.05, merged_margin=0.03, general_nll_margin=0.1)
    few = plan_terms(careful, [2] * 50, assumed, ALPHA)
    for plan in few:
        assert plan.n_needed is not None
        groups = [2] * ((plan.n_needed + 1) // 2) if plan.n != assumed.general_documents else [2] * 50
        more = replace(assumed, general_documents=plan.n_needed if "general" in plan.name else 40)
        again = term(plan_terms(careful, groups, more, ALPHA), plan.name)
        assert again.power == pytest.approx(TERM_POWER, abs=0.03) or again.power > TERM_POWER, plan.name
    assert term(few, "gain_adapter").power < 0.8
    assert term(few, "gain_adapter").n_needed > 100  # type: ignore[operator]


def test_the_smallest_gain_shown_is_shown(recipe: Recipe, assumed: Assumed) -> None:
    careful = recipe_with(recipe, min_gain=0.05)
    found = term(plan_terms(careful, [1] * 300, assumed, ALPHA), "gain_adapter").mde
    assert found is not None
    again = plan_terms(careful, [1] * 300, replace(assumed, gain=found), ALPHA)
    assert term(again, "gain_adapter").power == pytest.approx(TERM_POWER, abs=0.01)


def test_a_gain_of_no_more_than_is_asked_for_needs_more_rows_than_there_are(recipe: Recipe, assumed: Assumed) -> None:
    careful = recipe_with(recipe, min_gain=0.05)
    plan = term(plan_terms(careful, [1] * 5000, replace(assumed, gain=0.05), ALPHA), "gain_adapter")
    assert plan.power == pytest.approx(0.5, abs=0.03)
    assert plan.n_needed is None


def test_rows_in_groups_are_worth_fewer(recipe: Recipe, assumed: Assumed) -> None:
    alike = replace(assumed, icc=0.5)
    careful = recipe_with(recipe, min_gain=0.05)
    alone, grouped = (plan_terms(careful, sizes, alike, ALPHA) for sizes in ([1] * 120, [6] * 20))
    assert term(grouped, "gain_adapter").power < term(alone, "gain_adapter").power
    assert term(grouped, "gain_adapter").n_needed > term(alone, "gain_adapter").n_needed  # type: ignore[operator]
    assert power_of_all(grouped) < power_of_all(alone)


def test_all_terms_together_pass_no_more_often_than_the_weakest(recipe: Recipe, assumed: Assumed) -> None:
    plans = plan_terms(recipe_with(recipe, min_gain=0.05), [1] * 200, assumed, ALPHA)
    together = power_of_all(plans)
    assert together <= min(plan.power for plan in plans) + 0.005
    assert together >= math.prod(plan.power for plan in plans) - 0.005
    assert together == power_of_all(plans), "repeatable"


def test_what_a_pilot_measured_takes_the_place_of_what_is_assumed(recipe: Recipe) -> None:
    usual = assume(recipe)
    assert usual.measured == ()
    found = assume(recipe, {"rows": 50, "discordance": 0.31, "icc": 0.2, "noise": 0.0, "incumbent": "retrieval"})
    assert (found.discordance, found.icc, found.merged_discordance) == (0.31, 0.2, 0.01)
    assert set(found.measured) == {"discordance", "icc", "merged_discordance"}
    assert assume(recipe, {"rows": 50, "icc": None, "noise": 0.3}).measured == ("merged_discordance",)
    rare = assume(recipe, {"rows": 50, "discordance": 0.01, "icc": 0.0, "noise": 0.1})
    assert rare.discordance == rare.gain, "who gains so much differs on that share of the rows"
