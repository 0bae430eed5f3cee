"""From evidence to verdict: who ships, who does not, and which term stands in the way."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import UserError
from tunesmith.files import read_json, sha256_file, write_json, write_jsonl
from tunesmith.gate.evidence import Arm, Evidence, read_evidence
from tunesmith.gate.ledger import Ledger
from tunesmith.gate.lock import write_lock
from tunesmith.gate.stage import gate, stated
from tunesmith.gate.verdict import cost, describe, failures, fields, judge, micro
from tunesmith.recipe import LoadedRecipe, Recipe, load_recipe
from tunesmith.runs import Run

MakeEvidence = Callable[..., Evidence]
Rights = tuple[list[bool], list[bool]]

GAINS = {"gain_adapter", "gain_merged"}
EXIT_CODES = {"SHIP": 0, "BLOCK": 10, "INCONCLUSIVE": 11, "INVALID": 12}


def arms(n: int, better: int, worse: int, both: int | None = None) -> Rights:
    """Which of n rows two arms have right: `better` only the first, `worse` only the second, `both` the two of them."""
    both = (n - better - worse) // 2 if both is None else both
    rest = n - better - worse - both
    ours = [True] * better + [False] * worse + [True] * both + [False] * rest
    theirs = [False] * better + [True] * worse + [True] * both + [False] * rest
    return ours, theirs


def losing(right: Sequence[bool], lost: int, won: int = 0) -> list[bool]:
    """The same rows with `lost` right ones wrong and `won` wrong ones right."""
    right = list(right)
    ones, zeros = [i for i, r in enumerate(right) if r], [i for i, r in enumerate(right) if not r]
    for index in ones[:lost] + zeros[:won]:
        right[index] = not right[index]
    return right


def not_passing(verdict: dict[str, Any]) -> set[str]:
    return {term["name"] for term in verdict["terms"] if not term["pass"]}


def term(verdict: dict[str, Any], name: str) -> dict[str, Any]:
    return next(term for term in verdict["terms"] if term["name"] == name)


GOOD = arms(100, better=40, worse=5)
UNSURE = tuple(i % 2 * 5.6 for i in range(20))  # 2.8 nats on average, and up to 3.9 by its interval

SITUATIONS: dict[str, tuple[dict[str, Any], str, set[str]]] = {
    "clearly better": ({"of": GOOD}, "SHIP", set()),
    "better by just enough": ({"of": arms(100, better=12, worse=2)}, "SHIP", set()),
    "the same answers": ({"of": arms(100, better=0, worse=0)}, "BLOCK", GAINS),
    "equal on many rows": ({"of": arms(400, better=20, worse=20)}, "BLOCK", GAINS),
    "equal on few rows": ({"of": arms(40, better=5, worse=5)}, "INCONCLUSIVE", GAINS),
    "better within noise": ({"of": arms(40, better=9, worse=4)}, "INCONCLUSIVE", GAINS),
    "better for sure, but surely too little": (
        {"of": arms(1000, better=40, worse=5)},
        "BLOCK",
        GAINS,
    ),
    "better for sure, perhaps enough": (
        {"of": arms(100, better=8, worse=1)},
        "INCONCLUSIVE",
        GAINS,
    ),
    "worse": ({"of": arms(100, better=5, worse=40)}, "BLOCK", GAINS),
    "merged loses a row": ({"of": GOOD, "merged": losing(GOOD[0], 1)}, "SHIP", set()),
    "merged clearly worse": ({"of": GOOD, "merged": losing(GOOD[0], 40)}, "BLOCK", {"merged_no_worse", "gain_merged"}),
    "merged perhaps worse": ({"of": GOOD, "merged": losing(GOOD[0], 10, 4)}, "INCONCLUSIVE", {"merged_no_worse"}),
    "merged better": ({"of": GOOD, "merged": losing(GOOD[0], 0, 20)}, "SHIP", set()),
    "general loss up": (
        {"of": GOOD, "rise": (4.0, 4.2, 3.9, 4.1)},
        "BLOCK",
        {"general_nll_adapter", "general_nll_merged"},
    ),
    "general loss of merged up": (
        {"of": GOOD, "merged_rise": (4.0, 4.2, 3.9, 4.1)},
        "BLOCK",
        {"general_nll_merged"},
    ),
    "general loss of merged perhaps up": (
        {"of": GOOD, "rise": (0.1,) * 20, "merged_rise": UNSURE},
        "INCONCLUSIVE",
        {"general_nll_merged"},
    ),
    "general loss down": ({"of": GOOD, "rise": (-1.0, -0.8, -1.2, -0.9)}, "SHIP", set()),
    "one term open and another unmet": (
        {"of": arms(40, better=9, worse=4), "rise": (4.0, 4.2, 3.9, 4.1)},
        "BLOCK",
        GAINS | {"general_nll_adapter", "general_nll_merged"},
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_each_situation_has_its_verdict_and_the_term_that_says_why(
    situation: str, make_evidence: MakeEvidence, recipe: Recipe
) -> None:
    given_, expected, responsible = SITUATIONS[situation]
    options = {key: value for key, value in given_.items() if key != "of"}
    verdict = judge(make_evidence(*given_["of"], **options), recipe, {})
    assert verdict["verdict"] == expected
    assert verdict["exit_code"] == EXIT_CODES[expected]
    assert not_passing(verdict) == responsible
    if expected == "INCONCLUSIVE":
        told = []
        for name in sorted(responsible):
            assert term(verdict, name)["undecided"]
            n, needed = term(verdict, name)["n"], term(verdict, name)["n_needed"]
            # More general documents are not to be had; of rows it is said how many.
            assert (needed is None) if name.startswith("general_nll") else (needed > n)
            settled = f"; about {needed} rows would settle it" if needed else ""
            told.append(f"not settled: {_says(term(verdict, name))}{settled}")
        assert verdict["reasons"] == told
    elif expected == "BLOCK":
        assert any(reason.startswith("not met: ") for reason in verdict["reasons"])
        assert len(verdict["reasons"]) == len(responsible)
    else:
        assert verdict["reasons"] == [_says(term(verdict, name)) for name in sorted(GAINS)]


def _says(term: dict[str, Any]) -> str:
    return f"{term['says']}: {term['estimate']:+.3f} ({term['ci_low']:+.3f} to {term['ci_high']:+.3f}, n {term['n']})"


def test_the_rows_that_would_settle_a_gain_do_settle_it(make_evidence: MakeEvidence, recipe: Recipe) -> None:
    for n, better, worse, settled in [(40, 9, 4, "SHIP"), (100, 8, 1, "BLOCK"), (30, 5, 5, "BLOCK")]:
        verdict = judge(make_evidence(*arms(n, better, worse)), recipe, {})
        assert verdict["verdict"] == "INCONCLUSIVE"
        # Rounded up by a fifth: the number is said to be about right.
        factor = term(verdict, "gain_adapter")["n_needed"] / n * 1.2
        more = arms(round(n * factor), round(better * factor), round(worse * factor))
        assert judge(make_evidence(*more), recipe, {})["verdict"] == settled


def test_a_blocked_gain_names_no_number_of_rows(make_evidence: MakeEvidence, recipe: Recipe) -> None:
    verdict = judge(make_evidence(*arms(1000, better=40, worse=5)), recipe, {})
    assert term(verdict, "gain_adapter")["n_needed"] is None


def test_the_same_scores_in_few_groups_are_less_certain(make_evidence: MakeEvidence, recipe: Recipe) -> None:
    rights = arms(60, better=12, worse=3)
    assert judge(make_evidence(*rights), recipe, {})["verdict"] == "SHIP"
    groups = [f"group-{i // 10}" for i in range(60)]
    verdict = judge(make_evidence(*rights, groups=groups), recipe, {})
    assert verdict["verdict"] == "INCONCLUSIVE"
    assert term(verdict, "gain_adapter")["clusters"] == 6


def test_the_gain_asked_for_is_enough_when_just_met(make_evidence: MakeEvidence, recipe: Recipe) -> None:
    assert judge(make_evidence(*arms(200, better=20, worse=0)), recipe, {})["verdict"] == "SHIP"
    assert judge(make_evidence(*arms(200, better=19, worse=0)), recipe, {})["verdict"] == "INCONCLUSIVE"


def test_the_recipes_metric_decides(make_evidence: MakeEvidence, repository: Path) -> None:
    recipe = load_recipe("smoke", root=repository, sets=["score.primary=field_f1"]).recipe
    evidence = make_evidence(*GOOD)
    for row in evidence.arms["adapter"].rows:
        row["scores"]["field_f1"] = 0.0
    verdict = judge(evidence, recipe, {})
    assert (verdict["verdict"], verdict["primary"]) == ("BLOCK", "field_f1")
    assert not_passing(verdict) == {"gain_adapter"}
    assert verdict["fixed"] == []


def test_stricter_alpha_and_margins_are_the_recipes(make_evidence: MakeEvidence, repository: Path) -> None:
    evidence = make_evidence(*arms(60, better=12, worse=3))
    for override, responsible in [
        ("gate.alpha=0.001", GAINS | {"merged_no_worse"}),
        ("gate.min_gain=0.2", GAINS),
        ("gate.merged_margin=0.01", {"merged_no_worse"}),
        ("gate.general_nll_margin=0.05", {"general_nll_adapter", "general_nll_merged"}),
        ("gate.min_rows=61", {"enough_rows"}),
    ]:
        recipe = load_recipe("smoke", root=repository, sets=["guards.format_margin=null", override]).recipe
        assert not_passing(judge(evidence, recipe, {})) == responsible, override


# ---------------------------------------------------------------------- broken comparisons


def with_arm(evidence: Evidence, name: str, **changes: Any) -> Evidence:
    return replace(evidence, arms=evidence.arms | {name: replace(evidence.arms[name], **changes)})


def with_about(evidence: Evidence, name: str, **changes: Any) -> Evidence:
    return with_arm(evidence, name, about=evidence.arms[name].about | changes)


def with_guards(evidence: Evidence, **changes: Any) -> Evidence:
    return replace(evidence, guards=evidence.guards | changes)


def scored_as(arm: Arm, **changes: Any) -> Arm:
    return replace(arm, about=arm.about | {"scorer": arm.scorer | changes})


def without_last_row(evidence: Evidence, *names: str) -> Evidence:
    for name in names:
        evidence = with_arm(evidence, name, rows=evidence.arms[name].rows[:-1])
    return evidence


def repeating_a_row(evidence: Evidence, *names: str) -> Evidence:
    for name in names:
        evidence = with_arm(evidence, name, rows=evidence.arms[name].rows + evidence.arms[name].rows[:1])
    return evidence


ALL = ("adapter", "merged", "retrieval")

BREAKS: dict[str, tuple[Callable[[Evidence], Evidence], str]] = {
    "a row is missing in the incumbent": (lambda e: without_last_row(e, "retrieval"), "same_rows"),
    "a row is missing in the adapter": (lambda e: without_last_row(e, "adapter"), "same_rows"),
    "a row is missing in the merged model": (lambda e: without_last_row(e, "merged"), "same_rows"),
    "one arm has a row twice": (lambda e: repeating_a_row(e, "retrieval"), "same_rows"),
    "every arm has a row twice": (lambda e: repeating_a_row(e, *ALL), "same_rows"),
    "an arm's rows stand in another order": (
        lambda e: with_arm(e, "merged", rows=e.arms["merged"].rows[::-1]),
        "same_rows",
    ),
    "an arm answered another split": (lambda e: with_about(e, "retrieval", split_digest="6" * 64), "same_split"),
    "an arm had another prompt": (lambda e: with_about(e, "adapter", prompt_digest="8" * 64), "same_prompt"),
    "an arm had longer answers": (
        lambda e: with_about(e, "retrieval", settings=e.arms["retrieval"].about["settings"] | {"max_new_tokens": 25}),
        "same_settings",
    ),
    "an arm was scored by another scorer": (
        lambda e: with_about(e, "merged", scorer={"kind": "json", "digest": "4" * 64, "self_test": []}),
        "same_scorer",
    ),
    "every arm was scored by another kind of scorer": (
        lambda e: replace(e, arms={name: scored_as(arm, kind="label") for name, arm in e.arms.items()}),
        "same_scorer",
    ),
    "the scorer cannot tell right from wrong": (
        lambda e: replace(e, arms={name: scored_as(arm, self_test=["no"]) for name, arm in e.arms.items()}),
        "scorer_self_test",
    ),
    "the scorer of one arm was not tested": (
        lambda e: with_about(e, "retrieval", scorer={"kind": "json", "digest": "3" * 64}),
        "scorer_self_test",
    ),
    "a gate row stands in train": (lambda e: replace(e, leaks={"near": 1}), "no_leaks"),
    "the adapter changes nothing": (lambda e: with_guards(e, adapter_changes_logits=0.0), "adapter_at_work"),
    "the adapter's change is not a number": (
        lambda e: with_guards(e, adapter_changes_logits=float("nan")),
        "adapter_at_work",
    ),
    "the base answers otherwise the second time": (
        lambda e: with_guards(e, replayed={"rows": 32, "same": False, "differing": ["row-003"]}),
        "baseline_replays",
    ),
    "nothing was replayed": (
        lambda e: with_guards(e, replayed={"rows": 0, "same": True, "differing": []}),
        "baseline_replays",
    ),
    "a loss on general text is no number": (
        lambda e: with_guards(e, general_nll={"base": [2.0, 3.0], "adapter": [2.0, None], "merged": [2.0, 3.0]}),
        "general_loss_is_a_number",
    ),
}


@pytest.mark.parametrize("fault", BREAKS)
def test_a_broken_comparison_has_no_verdict(fault: str, make_evidence: MakeEvidence, recipe: Recipe) -> None:
    change, name = BREAKS[fault]
    verdict = judge(change(make_evidence(*GOOD)), recipe, {})
    assert verdict["verdict"] == "INVALID"
    assert verdict["exit_code"] == 12
    assert not_passing(verdict) == {name}
    assert len(verdict["reasons"]) == 1
    # What cannot be compared is not shown as if it could.
    assert {term["kind"] for term in verdict["terms"]} == {"integrity"}
    assert (verdict["arms"], verdict["fixed"], verdict["broken"]) == ({}, [], [])
    json.dumps(verdict, allow_nan=False)


def test_one_row_fewer_than_asked_for_is_too_few(make_evidence: MakeEvidence, recipe: Recipe) -> None:
    # On so few rows that two forms answer alike is no proof that they do.
    assert not_passing(judge(make_evidence(*arms(30, better=20, worse=0)), recipe, {})) == {"merged_no_worse"}
    verdict = judge(make_evidence(*arms(29, better=20, worse=0)), recipe, {})
    assert (verdict["verdict"], not_passing(verdict)) == ("INVALID", {"enough_rows"})


def test_rows_of_one_group_are_too_few(make_evidence: MakeEvidence, recipe: Recipe) -> None:
    verdict = judge(make_evidence(*GOOD, groups=["the only one"] * 100), recipe, {})
    assert (verdict["verdict"], not_passing(verdict)) == ("INVALID", {"enough_rows"})


def test_arms_without_rows_have_no_verdict(make_evidence: MakeEvidence, recipe: Recipe) -> None:
    verdict = judge(make_evidence([], []), recipe, {})
    assert (verdict["verdict"], not_passing(verdict)) == ("INVALID", {"enough_rows"})


def test_every_fault_is_told_at_once(make_evidence: MakeEvidence, recipe: Recipe) -> None:
    evidence = make_evidence(*GOOD)
    for change, _ in BREAKS.values():
        evidence = change(evidence)
    assert not_passing(judge(evidence, recipe, {})) == {name for _, name in BREAKS.values()}


# ---------------------------------------------------------------------- whatever the evidence


@st.composite
def any_evidence(draw: st.DrawFn) -> dict[str, Any]:
    n = draw(st.sampled_from([25, 40, 80]))
    rates = [[0.5, 0.9, 0.9, 1.0], [0.0, 0.3, 0.5, 0.9], [0.5, 0.9, 1.0]]
    dice = draw(st.randoms(use_true_random=False))
    adapter, retrieval, merged = ([dice.random() < rate for _ in range(n)] for rate in map(dice.choice, rates))
    size = draw(st.integers(1, 10))
    rises = st.lists(st.floats(-1, 6), min_size=4, max_size=4)
    return {
        "right": (adapter, retrieval, draw(st.sampled_from([adapter, merged]))),
        "groups": [f"group-{i // size}" for i in range(n)],
        "rise": draw(st.sampled_from([(0.1, 0.2, 0.0, 0.1), tuple(draw(rises))])),
        "fault": draw(st.sampled_from([None] * 3 * len(BREAKS) + [*BREAKS])),
    }


@settings(max_examples=200, deadline=None)
@given(drawn=any_evidence())
def test_only_what_passes_every_term_ships(drawn: dict[str, Any], make_evidence: MakeEvidence, recipe: Recipe) -> None:
    adapter, retrieval, merged = drawn["right"]
    evidence = make_evidence(adapter, retrieval, merged, groups=drawn["groups"], rise=drawn["rise"])
    if drawn["fault"]:
        evidence = BREAKS[drawn["fault"]][0](evidence)
    verdict = judge(evidence, recipe, {})
    assert (verdict["verdict"] == "SHIP") == all(term["pass"] for term in verdict["terms"])
    assert verdict["exit_code"] == EXIT_CODES[verdict["verdict"]]
    assert verdict["reasons"]
    assert not any(term["pass"] and term["undecided"] for term in verdict["terms"])
    json.dumps(verdict, allow_nan=False)
    if verdict["verdict"] == "SHIP":
        n = len(adapter)
        assert drawn["fault"] is None
        assert n >= 30
        assert sum(adapter) - sum(retrieval) >= 0.1 * n
        assert sum(merged) - sum(adapter) > -0.1 * n
        assert sum(drawn["rise"]) / 4 < 3.0
        assert len(verdict["terms"]) == 17


def test_an_arm_against_itself_never_ships(make_evidence: MakeEvidence, recipe: Recipe) -> None:
    dice = random.Random(0)
    for _ in range(20):
        right = [dice.random() < 0.6 for _ in range(60)]
        assert judge(make_evidence(right, right), recipe, {})["verdict"] in {"BLOCK", "INCONCLUSIVE"}


# ---------------------------------------------------------------------- what the verdict shows


def test_fixed_and_broken_name_the_rows_that_changed(make_evidence: MakeEvidence, recipe: Recipe) -> None:
    verdict = judge(make_evidence(*arms(40, better=3, worse=2)), recipe, {})
    assert verdict["fixed"] == ["row-000", "row-001", "row-002"]
    assert verdict["broken"] == ["row-003", "row-004"]


def arm_of(*rows: dict[str, Any]) -> Arm:
    return Arm("adapter", {}, list(rows))


def fields_row(right: str = "", wrong: str = "", missed: str = "", failure: str | None = None) -> dict[str, Any]:
    return {
        "fields": {"right": right.split(), "wrong": wrong.split(), "missed": missed.split()},
        "failure": failure,
    }


def test_precision_recall_and_f1_of_fields_are_those_counted_by_hand() -> None:
    arm = arm_of(
        fields_row(right="city zip"),
        fields_row(right="zip", wrong="city", missed="city"),  # a wrong city
        fields_row(right="city zip", wrong="unit"),  # a unit that is not there
        fields_row(right="zip", missed="city unit"),
    )
    table = fields(arm)
    assert table["city"] == {"precision": 2 / 3, "recall": 2 / 4, "f1": 4 / 7, "n": 4}
    assert table["zip"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "n": 4}
    assert table["unit"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "n": 1}
    assert set(table) == {"city", "zip", "unit"}
    assert micro(arm) == {"precision": 6 / 8, "recall": 6 / 9, "f1": 12 / 17, "n": 9}


def test_a_field_that_was_only_invented_has_precision_zero_and_nothing_to_recall() -> None:
    assert fields(arm_of(fields_row(wrong="unit")))["unit"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "n": 0}


def test_failure_classes_are_counted_and_right_rows_are_not() -> None:
    rows = [fields_row(failure=failure) for failure in ("wrapped", None, "truncated", "wrapped", None)]
    assert failures(arm_of(*rows)) == {"truncated": 1, "wrapped": 2}


def test_cost_adds_tokens_and_takes_percentiles_of_seconds() -> None:
    rows = [{"seconds": float(i), "tokens_in": i, "tokens_out": 2} for i in range(101)]
    expected = {"tokens_in": 5050, "tokens_out": 202, "latency_p50_s": 50.0, "latency_p95_s": 95.0}
    assert cost(arm_of(*rows[::-1])) == expected
    assert cost(arm_of(rows[7]))["latency_p95_s"] == 7.0


def test_an_arms_metrics_are_means_with_bounds(make_evidence: MakeEvidence) -> None:
    described = describe(make_evidence(*arms(50, better=20, worse=10, both=10)).arms["adapter"], 0.05)
    shown = described["exact_match"]
    assert (shown["mean"], shown["n"]) == (0.6, 50)
    assert shown["ci_low"] < 0.6 < shown["ci_high"]
    # All right on 50 rows is not certainty.
    assert described["json_strict"]["mean"] == described["json_strict"]["ci_high"] == 1.0
    assert described["json_strict"]["ci_low"] < 0.97


# ---------------------------------------------------------------------- the files


@pytest.fixture
def stored(tmp_path: Path, make_evidence: MakeEvidence) -> Run:
    """A run directory that holds what the gate reads."""
    run = Run(tmp_path / "runs" / "smoke-0123456789ab")
    evidence = make_evidence(*GOOD)
    for arm in evidence.arms.values():
        write_jsonl(run.path(f"arms/{arm.name}.jsonl"), arm.rows)
        write_json(run.path(f"arms/{arm.name}.json"), arm.about)
    write_json(run.path("selection.json"), evidence.selection)
    write_json(run.path("guards.json"), evidence.guards)
    write_jsonl(run.path("again/gate-1/retrieval.jsonl"), evidence.again[0].rows)
    write_json(run.path("again/gate-1/retrieval.json"), evidence.again[0].about)
    manifest = {
        "files": {"adapter_model.safetensors": "a" * 64},
        "base": {"digest": "b" * 64},
        "prompt_digest": "9" * 64,
        "train_digest": "7" * 64,
    }
    write_json(run.path("adapter/manifest.json"), manifest)
    return run


def locked(stored: Run, loaded: LoadedRecipe) -> Ledger:
    """Lock the stored run as the line does before training: the lock, the ledger's line, the adapter's manifest."""
    ledger = Ledger(stored.directory.parent / "ledger.jsonl")
    manifest = read_json(stored.path("adapter/manifest.json"))
    now = stated(loaded, stored, read_evidence(stored.directory), manifest, SCORER)
    content = write_lock(stored.path("gate.lock"), now, {"look": 1, "power": 0.9})
    ledger.enter({"kind": "lock", "name": "smoke", "run": stored.directory.name, "lock": content})
    write_json(stored.path("adapter/manifest.json"), manifest | {"lock_digest": content["digest"]})
    return ledger


SCORER = "c" * 64


def loaded_over(root: Path, repository: Path, gate_prompt: str, sets: Sequence[str] = ()) -> LoadedRecipe:
    """The smoke recipe over a data set of one training and one gate row."""
    directory = root / "data" / "smoke"
    files = {}
    for split, prompt in (("train", "the red cup is here"), ("dev", ""), ("gate", gate_prompt), ("confirm", "")):
        messages, completion = [{"role": "user", "content": prompt}], {"role": "assistant", "content": "{}"}
        row = {"id": split, "group": split, "messages": messages, "completion": completion}
        write_jsonl(directory / f"{split}.jsonl", [row] if prompt else [])
        files[f"{split}.jsonl"] = {"rows": 1, "groups": 1, "sha256": sha256_file(directory / f"{split}.jsonl")}
    write_json(directory / "manifest.json", {"files": files})
    loaded = load_recipe("smoke", root=repository, sets=sets)
    loaded.root = root
    return loaded


def test_the_gate_looks_for_its_rows_in_train_itself(stored: Run, repository: Path, tmp_path: Path) -> None:
    loaded = loaded_over(tmp_path, repository, "The RED cup is here!")
    gate(loaded, stored, locked(stored, loaded), tmp_path, scorer=SCORER)
    verdict = read_json(tmp_path / "verdict.json")
    assert verdict["verdict"] == "INVALID"
    assert not_passing(verdict) == {"no_leaks"}
    assert "normalised 1" in verdict["reasons"][0]


def test_verdict_json_has_every_key_that_is_promised(stored: Run, repository: Path, tmp_path: Path) -> None:
    loaded = loaded_over(tmp_path, repository, "the blue pen is away", ["seed=3"])
    gate(loaded, stored, locked(stored, loaded), tmp_path, scorer=SCORER)
    verdict = json.loads((tmp_path / "verdict.json").read_text(encoding="utf-8"))
    assert verdict["schema"] == 1
    assert (verdict["verdict"], verdict["exit_code"], verdict["incumbent"]) == ("SHIP", 0, "retrieval")
    assert {"reasons", "terms", "arms", "fixed", "broken", "failure_classes", "cost", "digests", "versions"} <= set(
        verdict
    )
    for term in verdict["terms"]:
        assert {"name", "kind", "estimate", "ci_low", "ci_high", "margin", "n", "clusters", "pass", "n_needed"} <= set(
            term
        )
        assert term["kind"] in {"superiority", "non_inferiority", "integrity", "parity"}
    assert set(verdict["arms"]) == set(verdict["cost"]) == set(verdict["failure_classes"]) == set(ALL)
    for arm in verdict["arms"].values():
        assert {"tokens_in", "tokens_out", "latency_p50_s", "latency_p95_s"} <= set(arm)
        for metric in ("exact_match", "field_f1", "json_strict", "json_lenient", "schema_valid", "hallucinated"):
            assert set(arm[metric]) == {"mean", "ci_low", "ci_high", "n"}
    assert {key: value[:1] for key, value in verdict["digests"].items() if key != "recipe"} == {
        "base": "b",
        "adapter": "a",
        "merged": "e",
        "prompt": "9",
        "train": "7",
        "gate": "5",
    }
    assert {"tunesmith", "torch", "transformers", "peft", "trl"} <= set(verdict["versions"])
    assert verdict["set"] == ["seed=3"]
    assert (verdict["name"], verdict["run"], verdict["look"]) == ("smoke", "smoke-0123456789ab", 1)
    assert (verdict["arms"]["retrieval"]["shots"], verdict["arms"]["retrieval"]["k"]) == ("retrieval", 3)


def test_a_verdict_leaves_one_line_in_the_ledger(stored: Run, repository: Path, tmp_path: Path) -> None:
    loaded = loaded_over(tmp_path, repository, "the blue pen is away")
    ledger = locked(stored, loaded)
    gate(loaded, stored, ledger, tmp_path / "first", scorer=SCORER)
    gate(loaded, stored, ledger, tmp_path / "second", scorer=SCORER)
    (line,) = (line for line in ledger.lines() if line["kind"] == "verdict")
    assert (line["verdict"], line["look"], line["candidate"], line["gate_digest"]) == ("SHIP", 1, "a" * 64, "5" * 64)
    first, second = ((tmp_path / name / "verdict.json").read_bytes() for name in ("first", "second"))
    assert first == second


def test_missing_evidence_names_each_file_and_the_command_that_makes_it(stored: Run) -> None:
    stored.path("guards.json").unlink()
    stored.path("selection.json").unlink()
    with pytest.raises(UserError) as caught:
        read_evidence(stored.directory)
    assert caught.value.problems == [
        f"{stored.path('selection.json')}: not there yet; `tunesmith baseline` makes it",
        f"{stored.path('guards.json')}: not there yet; `tunesmith evaluate` makes it",
    ]


def test_an_arm_that_was_not_selected_is_no_evidence(stored: Run) -> None:  # it may be of an earlier choice
    for suffix in (".jsonl", ".json"):
        path = stored.path("arms/retrieval").with_suffix(suffix)
        path.with_stem("few_shot").write_bytes(path.read_bytes())
    assert set(read_evidence(stored.directory).arms) == set(ALL)


def test_evidence_is_read_as_it_was_written(stored: Run, make_evidence: MakeEvidence) -> None:
    assert read_evidence(stored.directory) == make_evidence(*GOOD)


def test_a_selected_arm_that_is_not_there_is_named(stored: Run) -> None:
    stored.path("arms/retrieval.jsonl").unlink()
    with pytest.raises(UserError) as caught:
        read_evidence(stored.directory)
    assert caught.value.problems == [
        f"{stored.path('arms/retrieval.jsonl')}: not there yet; `tunesmith baseline` makes it"
    ]
