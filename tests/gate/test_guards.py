"""Terms over guards: what passes by its margin, what fails, what is left out because it could not have failed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.gate.conftest import MakeEvidence
from tunesmith.gate.evidence import Evidence
from tunesmith.gate.guards import certifiable, guard_terms, kept, length, not_assessed, rare, ratio, told
from tunesmith.gate.terms import Term
from tunesmith.gate.verdict import judge
from tunesmith.recipe import Recipe, load_recipe
from tunesmith.stats import spent


@pytest.fixture(scope="module")
def recipe(repository: Path) -> Recipe:
    """The smoke recipe, which judges form; and habits too."""
    return load_recipe("smoke", root=repository, sets=["guards.habits.leak_margin=0.1"]).recipe


N = 80
RNG = np.random.default_rng(0)
BASE = [round(float(share), 4) for share in RNG.uniform(0.3, 0.8, 2 * N)]


def entry(*sets: str, moves: bool = True, base: float = 0.55, chance: float = 0.25) -> dict[str, Any]:
    """What evaluate says of some sets of questions."""
    says = f"under planted noise it goes by {'-0.200' if moves else '-0.001'}"
    return {"sets": list(sets), "moves": moves, "base": base, "chance": chance, "says": says}


KEEN = {"piqa": entry("piqa"), "mmlu": entry("mmlu"), "pooled": entry("piqa", "mmlu")}


def shares(fall: float = 0.0) -> list[float]:
    """The base's shares less a fall, with the scatter of a narrow adapter."""
    scatter = np.random.default_rng(1).normal(0, 0.02, 2 * N)
    scatter -= scatter.mean()
    return [float(np.clip(share - fall + more, 0, 1)) for share, more in zip(BASE, scatter, strict=True)]


def model(given: list[Any], *, harmful: int = 30, benign: int = 1) -> dict[str, Any]:
    return {
        "share_of_right": given,
        "correct": [None if share is None else float(share > 0.5) for share in given],
        "refused": {"harmful": [n < harmful for n in range(40)], "benign": [n < benign for n in range(40)]},
        "drift": {"task": {"rows": 2, "tokens": 9, "kl": 0.2, "by_row": [0.1], "same_top": 0.8, "first_other": 3.0}},
    }


def seen(habit: int = 0, verbatim: int = 0, canaries: int = 0) -> dict[str, Any]:
    return {
        "habit": ["json" if n < habit else None for n in range(40)],
        "verbatim": [n < verbatim for n in range(40)],
        "canaries": [n < canaries for n in range(3)],
    }


def guards_of(adapter: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Guards of two probes, harmless unless said otherwise; the merged model is like the adapter."""
    adapter = adapter or model(shares())
    return {
        "asked": {"probes": ["piqa"] * N + ["mmlu"] * N, "left_out": {"piqa": 0}, "not_assessed": []},
        "sensitivity": KEEN,
        "models": {"base": model(BASE), "adapter": adapter, "merged": adapter},
        "told": {"base": seen(), "adapter": seen(), "merged": seen()},
    } | changes


def outcomes(terms: list[Term]) -> dict[str, str]:
    return {term.name: term.outcome for term in terms if term.name.endswith("adapter")}


ALL = ["probe_piqa", "probe_mmlu", "probe_pooled", "harmful", "benign", "habit", "verbatim", "canaries"]


def test_a_harmless_adapter_passes_every_guard(recipe: Recipe) -> None:
    terms = guard_terms(guards_of(), recipe, 0.05)
    assert [term.name for term in terms] == [f"{name}_{arm}" for arm in ("adapter", "merged") for name in ALL]
    assert {term.outcome for term in terms} == {"pass"}
    assert {term.kind for term in terms} == {"non_inferiority"}


WORSE: dict[str, tuple[Callable[[], dict[str, Any]], set[str]]] = {
    "general ability falls by more than both margins": (
        lambda: guards_of(model(shares(0.2))),
        {"probe_pooled", "probe_piqa", "probe_mmlu"},
    ),
    "general ability falls a little everywhere: the pool sees it, no probe does": (
        lambda: guards_of(model(shares(0.07))),
        {"probe_pooled"},
    ),
    "harmful prompts are answered now": (lambda: guards_of(model(shares(), harmful=5)), {"harmful"}),
    "harmless prompts are refused now": (lambda: guards_of(model(shares(), benign=25)), {"benign"}),
    "unrelated prompts are answered in JSON": (
        lambda: guards_of(told={"base": seen(), "adapter": seen(habit=20), "merged": seen()}),
        {"habit"},
    ),
    "unrelated prompts are answered with training rows": (
        lambda: guards_of(told={"base": seen(), "adapter": seen(verbatim=12), "merged": seen()}),
        {"verbatim"},
    ),
    "one canary of three is given away": (
        lambda: guards_of(told={"base": seen(), "adapter": seen(canaries=1), "merged": seen()}),
        {"canaries"},
    ),
}


@pytest.mark.parametrize("harm", WORSE)
def test_harm_fails_its_guard_and_no_other(harm: str, recipe: Recipe) -> None:
    make, failing = WORSE[harm]
    found = outcomes(guard_terms(make(), recipe, 0.05))
    assert {name.removesuffix("_adapter") for name, outcome in found.items() if outcome == "fail"} == failing
    assert {outcome for name, outcome in found.items() if name.removesuffix("_adapter") not in failing} == {"pass"}


def test_what_the_base_does_too_is_no_harm_of_the_adapters(recipe: Recipe) -> None:
    told_of = {"base": seen(20, 12, 3), "adapter": seen(20, 12, 3), "merged": seen()}
    found = outcomes(guard_terms(guards_of(told=told_of), recipe, 0.05))
    assert {found[f"{name}_adapter"] for name in ("habit", "verbatim", "canaries")} == {"pass"}


def test_few_rows_leave_a_guard_open_and_say_how_many_would_settle_it(recipe: Recipe) -> None:
    some = rare("habit_adapter", "answers", [False] * 10, 0.1, 0.05)
    assert (some.outcome, some.n_needed) == ("open", 29)
    assert rare("habit_adapter", "answers", [False] * 29, 0.1, 0.05).outcome == "pass"
    assert rare("habit_adapter", "answers", [True] * 2 + [False] * 8, 0.1, 0.05).outcome == "open"


def test_so_many_prompts_are_asked_that_none_leaking_passes_at_every_look(repository: Path) -> None:
    """Else no candidate after the first could ship."""
    recipe = load_recipe("json-extract", root=repository).recipe
    habits, last = recipe.guards.habits, spent(recipe.gate.alpha, recipe.gate.max_looks)
    assert rare("verbatim", "", [False] * habits.rows, habits.verbatim_margin, last).outcome == "pass"


def test_a_rates_bounds_are_clopper_and_pearsons() -> None:
    for k in (0, 1, 7, 40):
        term = rare("x", "y", [n < k for n in range(40)], 0.5, 0.05)
        exact = stats.binomtest(k, 40).proportion_ci(0.9, method="exact")
        assert (term.ci_low, term.ci_high) == pytest.approx((exact.low, exact.high))


# ---------------------------------------------------------------------- what could not have failed


def why(evidence: Evidence, recipe: Recipe) -> dict[str, str]:
    return {each["guard"]: each["why"] for each in not_assessed(evidence, recipe, 0.05)}


@pytest.fixture
def evidence(make_evidence: MakeEvidence) -> Evidence:
    made = make_evidence([True] * 60 + [False] * 20, [True] * 20 + [False] * 60)
    return replace(made, guards=made.guards | guards_of())


def with_guards(evidence: Evidence, **changes: Any) -> Evidence:
    return replace(evidence, guards=evidence.guards | changes)


def test_an_insensitive_probe_is_left_out_and_told(evidence: Evidence, recipe: Recipe) -> None:
    asked = model([*shares()[:N], *([None] * N)])
    dull = with_guards(
        evidence,
        sensitivity=KEEN | {"mmlu": entry("mmlu", moves=False), "pooled": entry("piqa")},
        models={"base": model(BASE), "adapter": asked, "merged": asked},
    )
    found = {term.name: term for term in guard_terms(dull.guards, recipe, 0.05)}
    assert found["probe_pooled_adapter"].outcome == "pass"
    assert found["probe_pooled_adapter"].n == N
    assert "probe_mmlu_adapter" not in found
    assert why(dull, recipe)["probe_mmlu"] == "insensitive on this base: under planted noise it goes by -0.001"


def test_a_set_that_is_insensitive_by_itself_and_judged_with_others_is_told_as_such(
    evidence: Evidence, recipe: Recipe
) -> None:
    dull = with_guards(evidence, sensitivity=KEEN | {"mmlu": entry("mmlu", moves=False)})
    assert why(dull, recipe)["probe_mmlu"].endswith("; judged among all, not alone")
    blind = with_guards(
        evidence, sensitivity=dull.guards["sensitivity"] | {"pooled": entry("piqa", "mmlu", moves=False)}
    )
    assert not why(blind, recipe)["probe_mmlu"].endswith("not alone")


def test_a_margin_wider_than_what_a_base_knows_is_no_guard(evidence: Evidence, recipe: Recipe) -> None:
    """Even a base that has forgotten all would pass it."""
    ignorant = with_guards(evidence, sensitivity=KEEN | {"mmlu": entry("mmlu", base=0.33)})
    assert "probe_mmlu_adapter" not in outcomes(guard_terms(ignorant.guards, recipe, 0.05))
    told = "insensitive: the base is 0.080 above chance, the margin is 0.100; judged among all, not alone"
    assert why(ignorant, recipe)["probe_mmlu"] == told


def test_a_base_that_knows_nothing_leaves_no_term_and_is_told(evidence: Evidence, recipe: Recipe) -> None:
    blind = with_guards(evidence, sensitivity={"piqa": entry("piqa", moves=False), "mmlu": entry("mmlu", moves=False)})
    assert not [term for term in guard_terms(blind.guards, recipe, 0.05) if term.name.startswith("probe")]
    assert why(blind, recipe)["probe_pooled"] == "this base is better than chance on no set of questions"


@pytest.mark.parametrize(("refused", "judged"), [(0, False), (7, False), (20, True)])
def test_refusals_are_judged_where_their_loss_would_show(
    refused: int, judged: bool, evidence: Evidence, recipe: Recipe
) -> None:
    """Of a base that refuses few of 40, all could be lost without a bound beyond the margin."""
    base, lost = model(BASE, harmful=refused), model(shares(), harmful=0)
    found = with_guards(evidence, models={"base": base, "adapter": lost, "merged": lost})
    expected = {"harmful_adapter": "fail"} if judged else {}
    assert {n: o for n, o in outcomes(guard_terms(found.guards, recipe, 0.05)).items() if "harmful" in n} == expected
    told_of = why(found, recipe)
    assert ("harmful" in told_of) == (not judged)
    assert judged or f"the base refuses {refused} of 40 harmful prompts, the adapter 0" in told_of["harmful"]
    assert "benign" not in told_of


def test_what_could_not_be_measured_is_told_and_not_passed(evidence: Evidence, recipe: Recipe) -> None:
    asked = evidence.guards["asked"] | {"not_assessed": [{"guard": "probe_boolq", "why": "no network"}]}
    offline = with_guards(evidence, asked=asked)
    assert why(offline, recipe)["probe_boolq"] == "no network"
    verdict = judge(offline, recipe, {})
    assert verdict["verdict"] == "SHIP"
    assert {"guard": "probe_boolq", "why": "no network"} in verdict["not_assessed"]
    assert not [term for term in verdict["terms"] if "boolq" in term["name"]]


def test_evidence_without_guards_says_so(make_evidence: MakeEvidence, recipe: Recipe) -> None:
    old = make_evidence([True] * 60 + [False] * 20, [True] * 20 + [False] * 60)
    assert guard_terms(old.guards, recipe, 0.05) == []
    assert set(why(old, recipe)) == {"guards"}


def test_a_failed_guard_blocks(evidence: Evidence, recipe: Recipe) -> None:
    leaking = with_guards(evidence, told={"base": seen(), "adapter": seen(), "merged": seen(habit=30)})
    verdict = judge(leaking, recipe, {})
    assert verdict["verdict"] == "BLOCK"
    assert [term["name"] for term in verdict["terms"] if not term["pass"]] == ["habit_merged"]


def test_a_habit_that_is_not_judged_is_told(evidence: Evidence, repository: Path) -> None:
    as_is = load_recipe("smoke", root=repository).recipe
    leaking = with_guards(evidence, told={"base": seen(), "adapter": seen(habit=10), "merged": seen(habit=10)})
    assert "habit_adapter" not in outcomes(guard_terms(leaking.guards, as_is, 0.05))
    assert "10 of 40 unrelated prompts are answered like training rows, at most 39%" in why(leaking, as_is)["habit"]
    assert told(leaking, as_is, 0.05)["habit"]["merged"]["rate"] == 0.25


# ---------------------------------------------------------------------- form and length


def test_a_lost_form_fails_though_the_score_gains(evidence: Evidence, recipe: Recipe) -> None:
    adapter = evidence.arms["adapter"]
    rows = [row | {"scores": row["scores"] | {"schema_valid": float(n % 2)}} for n, row in enumerate(adapter.rows)]
    broken = replace(evidence, arms=evidence.arms | {"adapter": replace(adapter, rows=rows)})
    found = {term["name"]: term for term in judge(broken, recipe, {})["terms"]}
    assert not found["format_adapter"]["pass"]
    assert not found["format_adapter"]["undecided"]
    assert found["format_merged"]["pass"]


def test_answers_twice_as_long_fail(evidence: Evidence, recipe: Recipe) -> None:
    tokens = dict.fromkeys(evidence.arms["adapter"].ids, 8)
    fit = with_guards(evidence, reference_tokens=tokens)
    found = {term["name"]: term for term in judge(fit, recipe, {})["terms"]}
    assert found["length_adapter"]["pass"]
    assert found["length_adapter"]["estimate"] == pytest.approx(1.0)
    long = with_guards(evidence, reference_tokens=dict.fromkeys(tokens, 4))
    found = {term["name"]: term for term in judge(long, recipe, {})["terms"]}
    assert found["length_adapter"]["estimate"] == pytest.approx(2.0)
    assert not found["length_adapter"]["pass"]
    assert length(long.arms["adapter"], [4.0] * 80, 1.25, 0.05).outcome == "fail"


def test_a_ratios_bounds_cover_it(recipe: Recipe) -> None:
    """Each one-sided bound at 0.05 misses in about 5 % of 300 draws; Fieller's sets are exact for normals."""
    random = np.random.default_rng(7)
    groups = [str(n) for n in range(40)]
    missed = [0, 0]
    for _ in range(300):
        theirs = random.normal(20, 4, 40)
        ours = 1.2 * theirs + random.normal(0, 5, 40)
        interval = ratio(list(ours), list(theirs), groups, 0.05)
        missed[0] += interval.low > 1.2
        missed[1] += interval.high < 1.2
    assert all(0.01 < count / 300 < 0.09 for count in missed)


def test_a_harmless_adapter_passes_at_the_certifiable_margin_as_often_as_said(recipe: Recipe) -> None:
    random = np.random.default_rng(3)
    margin = certifiable([float(x) for x in random.normal(0, 0.1, 4000)], 0.05) * np.sqrt(4000 / 200)
    passed = 0
    for _ in range(400):
        differences = random.normal(0, 0.1, 200)
        low = differences.mean() - stats.t.ppf(0.95, 199) * differences.std(ddof=1) / np.sqrt(200)
        passed += low > -margin
    assert 0.74 < passed / 400 < 0.86


def test_distances_and_accuracies_are_told(evidence: Evidence, recipe: Recipe) -> None:
    found = told(evidence, recipe, 0.05)
    assert found["drift"]["adapter"]["task"]["kl"] == 0.2
    assert set(found["probes"]) == {"piqa", "mmlu", "pooled"}
    assert 0 < found["probes"]["pooled"]["certifiable_margin"]["adapter"] < 0.01
    assert found["speed"]["adapter"]["tokens_out_ratio"] == 1.0


@pytest.mark.parametrize("kind", ["shares", "answers"])
def test_what_is_worse_by_the_margin_passes_as_rarely_as_alpha_says(kind: str) -> None:
    """A point estimate within the margin would pass half of the time; a bound passes 5 %."""
    random = np.random.default_rng(11)
    margin, passed, runs = 0.15, 0, 600
    for _ in range(runs):
        if kind == "shares":
            base = random.uniform(0.3, 0.7, 60)
            ours = np.clip(base - margin + random.normal(0, 0.1, 60), 0, 1)
        else:
            base = (random.uniform(size=60) < 0.95).astype(float)
            ours = base * (random.uniform(size=60) > margin / 0.95)
        term = kept("x", "y", [float(x) for x in ours], [float(x) for x in base], margin=margin, alpha=0.05)
        passed += term.outcome == "pass"
    assert 0.01 < passed / runs < 0.075
