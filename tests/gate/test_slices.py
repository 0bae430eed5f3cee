"""Parts of the rows, an arm beside itself, an adapter beside the one it began from: harm that an average hides."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunesmith.gate.evidence import Evidence
from tunesmith.gate.slices import harm_p, slices
from tunesmith.gate.verdict import judge
from tunesmith.recipe import Recipe, load_recipe
from tunesmith.stats import paired_interval, spent

MakeEvidence = Callable[..., Evidence]
LANGUAGES = ("de", "en", "fr")


@pytest.fixture(scope="session")
def sliced(repository: Path) -> Recipe:
    return load_recipe("smoke", root=repository, sets=["gate.slices=[{by: meta.language, min_rows: 40}]"]).recipe


def by_language(evidence: Evidence, sizes: Sequence[int]) -> Evidence:
    ids, values = evidence.arms["adapter"].ids, []
    for language, size in zip(LANGUAGES, sizes, strict=True):
        values += [language] * size
    return replace(evidence, slices={"meta.language": dict(zip(ids, values, strict=False))})


def term(verdict: dict[str, Any], name: str) -> dict[str, Any]:
    return next(term for term in verdict["terms"] if term["name"] == name)


def test_a_slice_that_is_harmed_blocks_what_is_better_on_average(make_evidence: MakeEvidence, sliced: Recipe) -> None:
    # de: 100 rows, 70 won; en: 60 rows, 20 lost; fr: too few.
    adapter = [True] * 100 + [False] * 20 + [True] * 40 + [True] * 10
    retrieval = [False] * 70 + [True] * 30 + [True] * 60 + [True] * 10
    evidence = make_evidence(adapter, retrieval)
    assert judge(evidence, sliced, {})["verdict"] == "SHIP"  # as one slice of rows without a language
    verdict = judge(by_language(evidence, (100, 60, 10)), sliced, {})
    assert verdict["verdict"] == "BLOCK"
    assert not term(verdict, "no_slice_harmed")["pass"]
    assert "meta.language = en: -0.333, n 60" in term(verdict, "no_slice_harmed")["says"]
    assert {"guard": "slice meta.language = fr", "why": "10 rows"} in verdict["not_assessed"]
    found = {one["value"]: one for one in verdict["slices"]}
    assert [found[language]["assessed"] for language in LANGUAGES] == [True, True, False]
    assert found["de"]["p_holm"] == 1.0
    assert "p" not in found["fr"]


def test_the_p_of_harm_is_where_the_bound_reaches_zero() -> None:
    dice = random.Random(3)
    for _ in range(20):
        ours = [float(dice.random() < 0.5) for _ in range(60)]
        theirs = [float(dice.random() < 0.75) for _ in range(60)]
        groups = [f"{i // 2}" for i in range(60)]
        p = harm_p(ours, theirs, groups)
        if p < 0.49:
            assert (
                paired_interval(ours, theirs, groups, p * 1.01).high
                < 0
                < paired_interval(ours, theirs, groups, p * 0.99).high
            )


def test_slices_without_harm_seldom_raise_an_alarm(make_evidence: MakeEvidence, sliced: Recipe) -> None:
    """Three slices of no difference: any alarm in at most alpha of 150 draws, give or take two standard errors."""
    dice, alarms, alpha = random.Random(11), 0, spent(0.05, 1)
    for _ in range(150):
        adapter, retrieval = ([dice.random() < 0.6 for _ in range(180)] for _ in range(2))
        evidence = by_language(make_evidence(adapter, retrieval), (60, 60, 60))
        alarms += any(one["harmed"] for one in slices(evidence, sliced, alpha))
    assert alarms / 150 <= alpha + 2 * (alpha * (1 - alpha) / 150) ** 0.5


# ---------------------------------------------------------------------- an arm beside itself


RIGHT, BETTER = [False] * 60 + [True] * 40, [True] * 30 + [False] * 30 + [True] * 40


@pytest.mark.parametrize(
    ("turns", "verdict"), [([BETTER], "SHIP"), ([BETTER, RIGHT], "SHIP"), ([BETTER, BETTER], "INVALID")]
)
def test_an_arm_that_ships_against_itself_twice_has_no_verdict(
    turns: list[list[bool]], verdict: str, make_evidence: MakeEvidence, recipe: Recipe
) -> None:
    again = [make_evidence(RIGHT, right).again[0] for right in turns]
    evidence = replace(make_evidence([True] * 100, RIGHT), again=again)
    judged = judge(evidence, recipe, {})
    assert judged["verdict"] == verdict
    assert judged["noise"]["discordance"] == (0.0 if turns[-1] is RIGHT else 0.3)
    assert term(judged, "same_arm_ships_nothing")["pass"] == (verdict == "SHIP")


# ---------------------------------------------------------------------- where training began


def beginning_with(
    evidence: Evidence, right: Sequence[bool], make_evidence: MakeEvidence, after: str = "a"
) -> Evidence:
    start = make_evidence(right, right).arms["adapter"]
    about = start.about | {"weights": {"base": "b" * 64, "adapter": "a"}}
    arms = evidence.arms | {"started_from": replace(start, name="started_from", about=about)}
    return replace(evidence, arms=arms, after=after)


def test_what_is_worse_than_what_it_began_from_does_not_ship(make_evidence: MakeEvidence, repository: Path) -> None:
    recipe = load_recipe("smoke", root=repository, sets=["gate.started_from_margin=0.05"]).recipe
    retrieval = [False] * 200
    adapter = [True] * 150 + [False] * 50
    for began, verdict in (
        ([True] * 150 + [False] * 50, "SHIP"),
        ([True] * 100 + [False] * 100, "SHIP"),
        ([True] * 162 + [False] * 38, "INCONCLUSIVE"),
        ([True] * 190 + [False] * 10, "BLOCK"),
    ):
        evidence = beginning_with(make_evidence(adapter, retrieval), began, make_evidence)
        judged = judge(evidence, recipe, {})
        assert judged["verdict"] == verdict
        open_ = {entry["term"] for entry in judged["next_evidence"]}
        names = {"adapter_no_worse_than_start", "merged_no_worse_than_start"}
        assert open_ == (names if verdict == "INCONCLUSIVE" else set())
        assert all(entry["n_needed"] > 200 for entry in judged["next_evidence"])


def test_an_arm_of_another_beginning_is_no_comparison(make_evidence: MakeEvidence, recipe: Recipe) -> None:
    evidence = beginning_with(make_evidence([True] * 100, RIGHT), [True] * 100, make_evidence, after="another")
    judged = judge(evidence, recipe, {})
    assert judged["verdict"] == "INVALID"
    assert not term(judged, "started_from_is_where_it_began")["pass"]


# ---------------------------------------------------------------------- later looks


def test_what_ships_at_the_first_look_may_not_at_the_fourth(make_evidence: MakeEvidence, recipe: Recipe) -> None:
    adapter = [True] * 13 + [False] * 3 + [True] * 84
    retrieval = [False] * 13 + [True] * 3 + [True] * 84
    evidence = make_evidence(adapter, retrieval)
    first, fourth = (judge(evidence, recipe, {"look": look}) for look in (1, 4))
    assert (first["verdict"], fourth["verdict"]) == ("SHIP", "INCONCLUSIVE")
    assert (first["alpha"], fourth["alpha"]) == (spent(0.05, 1), spent(0.05, 4))
    for one, other in zip(first["terms"], fourth["terms"], strict=True):
        if one["ci_low"] is not None:
            assert other["ci_low"] < one["ci_low"]
            assert other["ci_high"] > one["ci_high"]
