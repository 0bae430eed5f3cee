"""An adapter that is no better than what is said without a model does not ship."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.gate.conftest import scored_arm
from tunesmith.errors import UserError
from tunesmith.files import write_json, write_jsonl
from tunesmith.gate.evidence import Arm, Evidence, read_evidence
from tunesmith.gate.verdict import cost, judge
from tunesmith.recipe import Recipe

MakeEvidence = Callable[..., Evidence]

N = 200
GOOD = [True] * 160 + [False] * 40
WEAK = [True] * 40 + [False] * 160


def verdict(make: MakeEvidence, recipe: Recipe, merged: list[bool] | None = None, **trivial: list[bool]) -> Any:
    evidence = make(GOOD, WEAK, merged)
    groups = evidence.arms["adapter"].groups
    arms = {name: scored_arm(name, right, groups) for name, right in trivial.items()}
    return judge(replace(evidence, trivial=arms), recipe, {})


def beats(found: Any) -> Any:
    (term,) = (term for term in found["terms"] if term["name"] == "beats_trivial")
    return term


def test_what_beats_every_trivial_arm_ships(make_evidence: MakeEvidence, recipe: Recipe) -> None:
    found = verdict(make_evidence, recipe, majority=WEAK, copy_input=[False] * N)
    assert found["verdict"] == "SHIP"
    assert found["trivial"] == {"majority": 0.2, "copy_input": 0.0}
    term = beats(found)
    assert (term["kind"], term["margin"], term["pass"]) == ("superiority", 0.0, True)
    # The nearest of them is told.
    assert "adapter over majority" in term["says"]
    assert term["estimate"] == pytest.approx(0.6)


def test_a_gain_over_the_incumbent_alone_is_not_enough(make_evidence: MakeEvidence, recipe: Recipe) -> None:
    found = verdict(make_evidence, recipe, majority=[False] * N, nearest_train=GOOD)
    assert found["verdict"] == "INCONCLUSIVE"
    assert beats(found)["undecided"]
    assert "over nearest_train" in found["reasons"][0]


def test_one_that_is_beaten_by_a_trivial_arm_is_blocked(make_evidence: MakeEvidence, recipe: Recipe) -> None:
    found = verdict(make_evidence, recipe, majority=[True] * N, copy_input=[False] * N)
    assert (found["verdict"], found["exit_code"]) == ("BLOCK", 10)
    assert not beats(found)["undecided"]


def test_the_merged_model_must_beat_them_too(make_evidence: MakeEvidence, recipe: Recipe) -> None:
    merged = [False] * 12 + GOOD[12:]
    found = verdict(make_evidence, recipe, merged, majority=[False] * 12 + [True] * 140 + [False] * 48)
    assert "merged over majority" in beats(found)["says"]


def test_right_rows_of_another_kind_do_not_hide_a_harmful_pair(make_evidence: MakeEvidence, recipe: Recipe) -> None:
    """The bound that is lowest counts, not the arm whose mean is highest."""
    alike, apart = [True] * 100 + [False] * 100, [False] * 60 + [True] * 99 + [False] * 41
    found = verdict(make_evidence, recipe, majority=alike, copy_input=apart)
    by_arm = {
        name: beats(verdict(make_evidence, recipe, **{name: right}))["ci_low"]
        for name, right in (("majority", alike), ("copy_input", apart))
    }
    assert beats(found)["ci_low"] == min(by_arm.values()) < max(by_arm.values())


def test_trivial_arms_of_other_rows_make_the_comparison_invalid(make_evidence: MakeEvidence, recipe: Recipe) -> None:
    evidence = make_evidence(GOOD, WEAK)
    groups = evidence.arms["adapter"].groups
    arm = scored_arm("majority", WEAK, groups)
    fewer, other = (
        Arm("majority", arm.about, arm.rows[1:]),
        Arm("majority", arm.about | {"split_digest": "6"}, arm.rows),
    )
    for each, name in ((fewer, "same_rows"), (other, "same_split")):
        found = judge(replace(evidence, trivial={"majority": each}), recipe, {})
        assert found["verdict"] == "INVALID"
        assert [term["name"] for term in found["terms"] if not term["pass"]] == [name]


def test_evidence_names_what_is_missing(tmp_path: Path) -> None:
    told = {"incumbent": "zero_shot", "ways": [{"arm": "zero_shot", "shots": "none", "k": 0}]}
    write_json(tmp_path / "selection.json", told | {"trivial": ["majority"], "servers": ["served_x"]})
    for name in ("zero_shot", "adapter", "merged"):
        write_jsonl(tmp_path / "arms" / f"{name}.jsonl", [])
        write_json(tmp_path / "arms" / f"{name}.json", {})
    write_json(tmp_path / "guards.json", {})
    with pytest.raises(UserError) as error:
        read_evidence(tmp_path)
    assert [problem.rpartition("/")[2] for problem in error.value.problems] == [
        "majority.jsonl: not there yet; `tunesmith baseline` makes it",
        "zero_shot.jsonl: not there yet; `tunesmith baseline` makes it",
        "served_x.jsonl: not there yet; `tunesmith evaluate` makes it",
    ]


def test_a_latency_is_never_reported_from_the_cache() -> None:
    rows = [{"seconds": float(i), "tokens_in": 1, "tokens_out": 1, "replayed": i > 3} for i in range(10)]
    assert cost(Arm("a", {}, rows))["latency_p95_s"] == 2.85
    replayed = [{**row, "replayed": True} for row in rows]
    assert cost(Arm("a", {}, replayed))["latency_p50_s"] is None
    assert cost(Arm("a", {}, []))["latency_p95_s"] is None
