"""The gate put to the test: what it must not ship it does not, and a gate that is broken on purpose is found out."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.conftest import Tunesmith
from tunesmith.gate import bench, guards, selftest, terms
from tunesmith.gate.made_up import Crowd, Shape, shape_of
from tunesmith.gate.power import assume
from tunesmith.gate.selftest import Selftest, sentence
from tunesmith.gate.terms import Term
from tunesmith.recipe import Recipe
from tunesmith.rows import Dataset
from tunesmith.stats import Interval

SHAPE = Shape((4,) * 30, (2,) * 40, 0.2, curated=True)
PIPELINES = 200


@pytest.fixture(scope="session")
def strict(recipe: Recipe) -> Recipe:
    """The smoke recipe with margins that bind."""
    gate = recipe.gate.model_copy(update={"merged_margin": 0.06, "general_nll_margin": 0.06})
    return recipe.model_copy(update={"gate": gate})


def put_to_test(recipe: Recipe, *only: str) -> Selftest:
    return selftest.selftest(recipe, SHAPE, assume(recipe), pipelines=PIPELINES, only=only)


@pytest.fixture(scope="session")
def eager(strict: Recipe) -> Recipe:
    """The same for a gain that noise alone often brings."""
    return strict.model_copy(update={"gate": strict.gate.model_copy(update={"min_gain": 0.02})})


@pytest.fixture(scope="module")
def whole(strict: Recipe) -> Selftest:
    return put_to_test(strict)


def test_the_gate_holds(whole: Selftest) -> None:
    assert [outcome.name for outcome in whole.outcomes if not outcome.holds] == []
    assert sentence(whole).startswith("HOLDS: smoke's gate ships ")


def test_what_should_never_ship_never_does(whole: Selftest) -> None:
    for name in ("majority collapse", "erased merge", "stale cache"):
        assert whole.outcome(name).rate == 0, name


def test_a_gate_that_ships_nothing_would_not_hold(whole: Selftest) -> None:
    planned = whole.outcome("planned gain")
    assert 0.7 < planned.rate < 1
    assert not replace(planned, verdicts={"BLOCK": planned.pipelines}).holds


def test_rules_that_people_use_pass_what_is_no_better(whole: Selftest) -> None:
    rules = whole.other_rules
    assert rules["score > base"] == pytest.approx(0.46, abs=0.08)
    assert rules["score > base, best of 20 on the same rows"] > 0.97
    assert rules["score >= base + 2 points, best of 20 on the same rows"] > 0.9
    assert rules["McNemar one-sided p < .05, best of 20 on the same rows"] > 0.25


def test_three_points_less_than_planned_is_too_few() -> None:
    outcome = selftest.Outcome("x", "", 1000, {"SHIP": 900, "OPEN": 100}, at_least=0.93)
    assert outcome.holds
    assert not replace(outcome, verdicts={"SHIP": 899}).holds


def test_more_than_chance_adds_to_alpha_is_too_many() -> None:
    """Of 2000 pipelines at a level of 0.05, 121 or more ship in one simulation of forty at most."""
    assert stats.binom.sf(120, 2000, 0.05) < 0.025 < stats.binom.sf(119, 2000, 0.05)
    outcome = selftest.Outcome("x", "", 2000, {"SHIP": 120}, at_most=0.05)
    assert outcome.holds
    assert not replace(outcome, verdicts={"SHIP": 121}).holds


# ---------------------------------------------------------------------- a broken gate


def found_out(recipe: Recipe, *scenarios: str) -> bool:
    """Whether each of these scenarios finds out a gate that was broken on purpose."""
    outcomes = put_to_test(recipe, *scenarios).outcomes
    assert [outcome.name for outcome in outcomes] == list(scenarios)
    return not any(outcome.holds for outcome in outcomes)


def test_a_gate_that_looks_at_the_estimate_alone_is_found_out(eager: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    interval = terms.paired_interval

    def sure(*arguments: Any) -> Interval:
        found = interval(*arguments)
        return replace(found, low=found.estimate)

    monkeypatch.setattr(terms, "paired_interval", sure)
    assert found_out(eager, "no better, in groups", "merged at its margin")


def test_a_gate_that_takes_rows_of_a_group_for_independent_is_found_out(
    eager: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    interval = terms.paired_interval

    def alone(ours: Any, theirs: Any, groups: Any, alpha: float) -> Interval:
        return interval(ours, theirs, [str(i) for i in range(len(groups))], alpha)

    monkeypatch.setattr(terms, "paired_interval", alone)
    assert found_out(eager, "no better, in groups")


@pytest.mark.parametrize(
    ("name", "scenario"),
    [
        ("beats_trivial", "majority collapse"),
        ("general_loss", "forgetting at its margin"),
        ("no_worse", "merged at its margin"),
    ],
)
def test_a_gate_without_a_term_is_found_out(
    name: str, scenario: str, strict: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terms, name, lambda *_, **__: Term(name, "superiority", "pass", "always"))
    assert found_out(strict, scenario)


def test_a_gate_without_its_guards_is_found_out(strict: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    probes = strict.guards.probes.model_copy(update={"names": ["piqa", "openbookqa"], "pooled_margin": 0.05})
    asking = strict.model_copy(update={"guards": strict.guards.model_copy(update={"probes": probes})})
    (outcome,) = put_to_test(asking, "knowledge lost at its margin").outcomes
    assert outcome.holds
    monkeypatch.setattr(guards, "guard_terms", lambda *_: [])
    assert found_out(asking, "knowledge lost at its margin")


def test_a_gate_that_does_not_spend_its_alpha_is_found_out(eager: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "spent", lambda alpha, look: alpha)
    assert found_out(eager, "20 looks")


def test_a_judge_that_differs_from_its_terms_is_found_out(strict: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "judge", lambda *_: {"verdict": "SHIP"})
    with pytest.raises(AssertionError, match="the judge differs"):
        put_to_test(strict, "no better")


# ---------------------------------------------------------------------- made-up arms


@pytest.mark.parametrize("right_or_wrong", [True, False])
@pytest.mark.parametrize("icc", [0.0, 0.4])
def test_made_up_arms_are_as_they_should_be(icc: float, right_or_wrong: bool) -> None:
    rng = np.random.default_rng(0)
    crowd = Crowd(rng, [3] * 40, icc, 2000, right_or_wrong=right_or_wrong)
    square = 0.2 if right_or_wrong else 0.06
    theirs = crowd.arm(0.4)
    differences = crowd.rows(crowd.other(theirs, 0.4, 0.1, square)) - crowd.rows(theirs)
    assert crowd.rows(theirs).mean() == pytest.approx(0.4, abs=0.005)
    assert differences.mean() == pytest.approx(0.1, abs=0.005)
    assert (differences**2).mean() == pytest.approx(square, abs=0.005)
    around = (differences - differences.mean()).reshape(2000, 40, 3)
    assert (around[..., 0] * around[..., 1]).mean() / around.var() == pytest.approx(icc, abs=0.02)


def test_who_has_few_rows_right_loses_few() -> None:
    crowd = Crowd(np.random.default_rng(0), [1] * 100, 0.0, 500, right_or_wrong=True)
    theirs = crowd.arm(0.02)
    differences = crowd.rows(crowd.other(theirs, 0.02, 0.0, 0.5)) - crowd.rows(theirs)
    assert differences.mean() == pytest.approx(0.0, abs=0.003)
    with pytest.raises(ValueError, match="no arm gains"):
        crowd.other(theirs, 0.02, 0.99, 0.99)


def test_scores_that_are_means_of_parts_are_judged_too(strict: Recipe) -> None:
    parts = strict.model_copy(update={"score": strict.score.model_copy(update={"primary": "field_f1"})})
    assumed = assume(parts)
    assert not assumed.right_or_wrong
    found = put_to_test(parts, "no better", "no better, in groups", "merged at its margin", "planned gain")
    assert [outcome.name for outcome in found.outcomes if not outcome.holds] == []


# ---------------------------------------------------------------------- the command


def test_the_shape_is_that_of_the_curated_rows(project: Path) -> None:
    from tunesmith.line import Line

    line = Line("smoke")
    assert not shape_of(Dataset(project / "data" / "smoke")).curated
    line.curate()
    shape = shape_of(line.dataset)
    files = line.dataset.manifest()["files"]
    assert shape.curated
    assert (sum(shape.sizes), len(shape.sizes)) == (files["gate.jsonl"]["rows"], files["gate.jsonl"]["groups"])
    assert sum(shape.dev_sizes) == files["dev.jsonl"]["rows"]
    assert 0 < shape.majority < 0.5


def test_a_pilot_is_found_in_a_lock_and_in_a_plan(tmp_path: Path) -> None:
    (tmp_path / "gate.lock").write_text("# a comment\nplan:\n  pilot: {rows: 40, icc: null}\n")
    (tmp_path / "plan.json").write_text('{"pilot": {"rows": 41, "noise": 1e-05}}')
    (tmp_path / "other.json").write_text('{"fits": true}')
    assert selftest.pilot_in(tmp_path / "gate.lock") == {"rows": 40, "icc": None}
    assert selftest.pilot_in(tmp_path / "plan.json") == {"rows": 41, "noise": 1e-5}
    assert selftest.pilot_in(tmp_path / "other.json") == {}


@pytest.fixture(scope="session")
def smoke_options() -> tuple[str, ...]:
    return ("--pipelines", "40")


def test_the_command_says_what_came_of_it_and_its_last_line_is_a_sentence(
    tunesmith: Tunesmith, project: Path, smoke_options: tuple[str, ...]
) -> None:
    plan = project / "runs" / "smoke-0123456789ab" / "plan.json"
    plan.parent.mkdir(parents=True)
    plan.write_text('{"pilot": {"rows": 40, "discordance": 0.25, "icc": 0.0, "noise": 0.0}}')
    done = tunesmith("gate", "selftest", "smoke", *smoke_options)
    assert done.code == 0, done.out + done.err
    assert done.out.splitlines()[-1].startswith("HOLDS: smoke's gate ships ")
    assert "500 gate rows in 250 groups (assumed: no rows are curated)" in done.out
    assert "measured by the pilot: arms differ by 0.250" in done.out
    assert "smoke-0123456789ab/plan.json" in done.err


def test_a_gate_that_never_gives_a_verdict_exits_10(tunesmith: Tunesmith, smoke_options: tuple[str, ...]) -> None:
    done = tunesmith("gate", "selftest", "smoke", "--set", "gate.min_rows=501", *smoke_options)
    assert done.code == 10
    assert done.out.splitlines()[-1].startswith("FAILS (planned gain): smoke's gate ships 0.0% of 40 ")


def test_the_selftest_never_imports_torch(project: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "tunesmith.cli", "gate", "selftest", "smoke", "--look", "0"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    program = "import sys, tunesmith.gate.selftest as s; assert s.selftest_of and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=project)


def test_gate_still_takes_a_recipe_by_itself(tunesmith: Tunesmith) -> None:
    for arguments in (("gate", "smoke"), ("gate", "--base", "tiny", "smoke"), ("gate", "judge", "smoke")):
        done = tunesmith(*arguments)
        assert done.code == 2
        assert "data/smoke: holds no manifest.json; `tunesmith curate` makes it" in done.err
