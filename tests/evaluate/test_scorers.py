"""What holds for every kind of scorer: its names, its self-test, its digest; and that the gate reads each."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.evaluate.answers import row, scorer
from tunesmith.errors import UserError
from tunesmith.evaluate import score_json, scorers
from tunesmith.evaluate.score_form import parse_lenient
from tunesmith.evaluate.scorers import SCORES, Scorer, scorer_of, self_test
from tunesmith.failures import FAILURES, ordered
from tunesmith.gate.evidence import Arm, Evidence
from tunesmith.gate.report import print_report
from tunesmith.gate.verdict import judge
from tunesmith.recipe import load_recipe
from tunesmith.rows import Row
from tunesmith.schema import read_schema
from tunesmith.scoring import KINDS

CASES: dict[str, tuple[dict[str, Any], list[Row]]] = {}


def case(kind: str, references: list[str], source: str = "asked", **settings: Any) -> None:
    rows = [row(reference, source, f"row-{i}") for i, reference in enumerate(references)]
    CASES[kind] = {"kind": kind, **settings}, rows


PASSAGES = "[a] The fee is 5.\n\n[b] The limit is 7.\n\n[c] None."
TESTS = {"add": "assert f(1, 2) == 3", "mul": "assert f(2, 3) == 6"}
case("json", ['{"a": 1}', '{"a": 2}', "{}"])
case("label", ["red", "blue"], labels=["red", "blue"])
case("tool_call", ['{"calls": []}', '{"calls": [{"name": "f", "arguments": {"x": 1}}]}'], field="calls")
case("text_rules", ["one", "two"], rules=[{"name": "short", "max_words": 1}])
case("text_reference", ["one cat", "two dogs"])
case(
    "grounded",
    ['{"answer": "5", "document": "a"}', '{"answer": "7", "document": "b"}', '{"answer": null, "document": null}'],
    PASSAGES,
    quote="answer",
)
case("code", ["f = lambda a, b: a + b", "f = lambda a, b: a * b"], run_tests=True, primary="tests_pass", rules=["F"])
for one, (_, tests) in enumerate(sorted(TESTS.items())):
    CASES["code"][1][one] = CASES["code"][1][one].model_copy(update={"meta": {"tests": tests}})


def of(kind: str) -> tuple[Scorer, list[Row]]:
    settings, rows = CASES[kind]
    return scorer(None, **settings), rows


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_scored_by_the_names_it_gives(kind: str) -> None:
    assert set(SCORES) == set(KINDS) == set(CASES)
    one, rows = of(kind)
    names = set(one.metrics)
    for answer in (rows[0].reference, "", "```\nx\n```"):
        found = one.score(answer, True, rows[0])
        assert set(found["scores"]) == names
        assert set(found["labels"]) <= set(FAILURES)
        assert all(0.0 <= value <= 1.0 for value in found["scores"].values())
        json.dumps(found, allow_nan=False)
    assert {one.primary, one.settings.tie_break, *one.settings.columns, *one.lower_is_better} <= names
    assert one.primary not in one.lower_is_better
    # Each metric that may be stated as primary is one.
    primaries = type(one.settings).model_fields["primary"].annotation.__args__  # type: ignore[union-attr]
    assert set(primaries) <= names


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_passes_its_self_test(kind: str) -> None:
    one, rows = of(kind)
    assert self_test(one, rows) == []


# ---------------------------------------------------------------------- the self-test finds what is wrong


def planted(monkeypatch: pytest.MonkeyPatch, found: Any) -> list[str]:
    """The self-test of a json scorer whose exact match is what `found` says of (text, row, true score)."""
    true = score_json.score

    def wrong(text: str, ended: bool, row: Row, settings: Any, validator: Any) -> dict[str, Any]:
        scored = true(text, ended, row, settings, validator)
        scored["scores"]["exact_match"] = float(found(text, row, scored["scores"]["exact_match"]))
        return scored

    monkeypatch.setitem(scorers.SCORES, "json", wrong)
    rows = [row(json.dumps({"a": i}), row_id=f"row-{i}") for i in range(40)]
    return self_test(scorer(None), rows)


def strips_characters(text: str) -> bool:
    """What a harness did: a fence's characters are stripped, whatever they belong to."""
    try:
        json.loads(text.strip("`").strip("json").strip())
    except ValueError:
        return False
    return True


def test_a_scorer_that_never_gives_full_marks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,) = planted(monkeypatch, lambda text, row, true: 0.0)
    assert problem.startswith("gold does not score 1: row-")


def test_a_scorer_that_pays_for_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,) = planted(monkeypatch, lambda text, row, true: true or text == "")
    assert problem.startswith("an empty answer scores above 0: row-")


def test_a_scorer_that_takes_any_object_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,) = planted(monkeypatch, lambda text, row, true: strips_characters(text) and "`" not in text)
    assert problem.startswith("another row's answer scores 1 in 40 of 40 rows: row-")


def test_a_scorer_that_strips_fences_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def lenient(text: str, row: Row, true: float) -> bool:
        try:
            return bool(parse_lenient(text) == json.loads(row.reference))
        except ValueError:
            return False

    problems = planted(monkeypatch, lenient)
    assert len(problems) == 3
    assert all("around gold scores 1 in 40 rows" in problem for problem in problems)


def test_a_few_full_marks_by_chance_are_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    lucky = {f"row-{i}" for i in range(2)}
    assert planted(monkeypatch, lambda text, row, true: true or (row.id in lucky and text != "")) == []
    many = {f"row-{i}" for i in range(5)}
    assert planted(monkeypatch, lambda text, row, true: true or (row.id in many and text != "")) != []


def test_rows_that_all_want_the_same_show_nothing() -> None:
    rows = [row('{"a": 1}', row_id=f"row-{i}") for i in range(4)]
    assert self_test(scorer(None), rows) == [
        "all rows have the same reference, so nothing tells an answer from a constant one"
    ]
    assert self_test(scorer(None), []) == ["there are no rows"]


def test_a_reference_that_cannot_be_scored_is_the_users_fault() -> None:
    with pytest.raises(UserError, match=r"row 1: its reference is not a JSON object\nhint: score\.kind: json cannot"):
        self_test(scorer(None), [row("red")])


# ---------------------------------------------------------------------- the digest


def test_the_digest_follows_settings_schema_and_source_and_not_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    one = scorer(None, **CASES["text_reference"][0])
    same = replace(one, settings=one.settings.model_copy(update={"primary": "token_f1"}))
    assert one.digest() == same.digest()
    others = [
        replace(one, settings=one.settings.model_copy(update={"field": "x"})),
        replace(one, schema={"type": "object"}),
        scorer(None),
    ]
    assert len({one.digest(), *(other.digest() for other in others)}) == 4
    before = one.digest()
    monkeypatch.setattr(scorers, "sha256_file", lambda path: "edited" if path.name == "score_text.py" else "same")
    edited = one.digest()
    monkeypatch.setattr(scorers, "sha256_file", lambda path: "same")
    assert len({before, edited, one.digest()}) == 3


# ---------------------------------------------------------------------- recipes and the gate

SWITCHED = {"triage": "label", "tool-call": "tool_call", "bank-answers": "grounded", "house-style": "text_reference"}


@pytest.mark.parametrize("name", SWITCHED)
def test_our_recipes_keep_a_primary_metric_of_the_whole_object(name: str, repository: Path) -> None:
    loaded = load_recipe(name, root=repository)
    one = scorer_of(loaded.recipe, read_schema(loaded.schema_path))
    assert (one.kind, one.primary) == (SWITCHED[name], "accuracy" if name == "triage" else "exact_match")


def arm_of(kind: str, name: str, answers: list[str]) -> Arm:
    one, rows = of(kind)
    lines = []
    scored: dict[tuple[str, int], dict[str, Any]] = {}
    for i, answer in enumerate(answers):
        place = (answer, i % len(rows))
        found = scored[place] = scored.get(place) or one.score(answer, True, rows[place[1]])
        said = {"id": f"row-{i:03}", "group": f"group-{i}", "prediction": answer, "reference": "", "ended": True}
        lines.append(said | {"tokens_in": 9, "tokens_out": 3, "seconds": 0.1} | found)
    told = {"kind": kind, "digest": one.digest(), "self_test": []}
    return Arm(
        name,
        {
            "split_digest": "5",
            "prompt_digest": "9",
            "settings": {},
            "computed_on": {},
            "scorer": told,
            "corpus": one.corpus(lines),
        },
        lines,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_gate_judges_and_reports_every_kind(kind: str, repository: Path) -> None:
    one, rows = of(kind)
    gold = [scorers.gold_answer(rows[i % len(rows)]) for i in range(40)]
    half = [answer if i % 2 else "?" for i, answer in enumerate(gold)]
    if kind == "text_rules":
        half = [answer if i % 2 else "? ?" for i, answer in enumerate(gold)]
    arms = {name: arm_of(kind, name, told) for name, told in (("adapter", gold), ("merged", gold), ("few_shot", half))}
    guards = {
        "general_nll": {arm: [1.0, 2.0, 3.0] for arm in ("base", "adapter", "merged")},
        "adapter_changes_logits": 1.0,
        "replayed": {"rows": 3, "same": True},
    }
    evidence = Evidence(arms, {"incumbent": "few_shot"}, guards)
    recipe = load_recipe("smoke", root=repository).recipe.model_copy(update={"score": one.settings})
    verdict = judge(evidence, recipe, {"name": "x", "set": [], "look": 1})
    assert (verdict["verdict"], verdict["score"]["kind"]) == ("SHIP", kind)
    assert sum(verdict["failure_classes"]["few_shot"].values()) == 20
    json.dumps(verdict, allow_nan=False)
    console = Console(file=io.StringIO(), width=240)
    print_report(verdict, evidence, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for heading in (one.primary, *one.settings.columns.values()):
        assert heading in text
    assert ("Fields, F1" in text) == ("fields" in arms["adapter"].rows[0])
    assert ("macro f1" in text) == (kind == "label")


# ---------------------------------------------------------------------- what a recipe may say

REFUSED = {
    "no such kind": (["score.kind=labl"], "score: kind: 'labl' is no kind of scorer; did you mean `label`?"),
    "a kind that is no text": (["score.kind=3"], "score: kind: 3 is no kind of scorer; known kinds: json, label, "),
    "a judge": (
        ["score.kind=judge"],
        "score: kind: a judge is never primary; state it as `score.judge`, beside a kind",
    ),
    "a judge's metric": (["score.primary=judge"], "score.primary: input should be 'exact_match' or 'field_f1'"),
    "a metric of another kind": (["score.kind=label", "score.field=a"], None),
    "a key of another kind": (["score.labels=[a]"], "score.labels: unknown key; known keys: judge, kind, primary"),
    "a typo": (["score={kind: label, feild: a}"], "score.feild: unknown key; did you mean `field`?"),
    "labels from nowhere": (["score={kind: label}"], "score: labels: missing; without a `field` no schema says"),
    "a label twice": (["score={kind: label, labels: [a, a]}"], "score: labels: one stands twice"),
    "no label for abstention": (
        ["score={kind: label, labels: [a, b], abstention: none}"],
        "score: 'none' is none of `labels`",
    ),
    "no rules": (["score={kind: text_rules}"], "score.rules: missing; a recipe states it"),
    "a rule of no test": (
        ["score={kind: text_rules, rules: [{name: a}]}"],
        "score.rules.0: rule 'a' must state one test, one of matches, ",
    ),
    "a rule of two tests": (
        ["score={kind: text_rules, rules: [{name: a, max_words: 1, min_words: 1}]}"],
        "score.rules.0: rule 'a' must state one test",
    ),
    "a rule twice": (
        ["score={kind: text_rules, rules: [{name: a, max_words: 1}, {name: a, max_words: 2}]}"],
        "score.rules: rule 'a' stands twice",
    ),
    "no expression": (
        ["score={kind: text_rules, rules: [{name: a, matches: '['}]}"],
        "score.rules.0: rule 'a': '[' is no regular expression: ",
    ),
    "a typo in a rule": (
        ["score={kind: text_rules, rules: [{name: a, max_word: 1}]}"],
        "score.rules.0.max_word: unknown key; did you mean `max_words`?",
    ),
    "passages without an id": (
        ["score={kind: grounded, passage: x}"],
        "score: passage: must have a group `(?P<id>...)`",
    ),
    "text that cannot abstain": (["score={kind: grounded, answer: null}"], "score: `abstention` belongs to an answer"),
    "what is not measured": (
        ["score={kind: code, primary: tests_pass}"],
        "score: primary: tests_pass is not measured; state `run_tests: true`",
    ),
    "a judge over http": (
        ["score.judge={endpoint: 'http://example.com/v1', model: m}"],
        "score.judge.endpoint: a key and rows go over https only",
    ),
    "a judge's password": (
        ["score.judge={endpoint: 'https://u:p@example.com/v1', model: m}"],
        "score.judge.endpoint: must hold no user and no password",
    ),
    "a judge's typo": (
        ["score.judge={endpoint: 'https://example.com/v1', modle: m}"],
        "score.judge.modle: unknown key; did you mean `model`?",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_recipe_may_not_say_is_refused_with_a_remedy(name: str, repository: Path) -> None:
    sets, message = REFUSED[name]
    if message is None:
        assert load_recipe("smoke", root=repository, sets=sets).recipe.score.primary == "accuracy"
        return
    with pytest.raises(UserError) as refused:
        load_recipe("smoke", root=repository, sets=sets)
    assert message in refused.value.text


def test_a_child_may_state_another_primary_alone(repository: Path, tmp_path: Path) -> None:
    for path in ("recipes", "data"):
        (tmp_path / path).symlink_to(repository / path)
    (tmp_path / "recipes").unlink()
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tool-call.yaml").write_text((repository / "recipes" / "tool-call.yaml").read_text())
    child = "extends: tool-call\nname: child\nscore:\n  primary: calls_match\n"
    (tmp_path / "recipes" / "child.yaml").write_text(child)
    recipe = load_recipe("child", root=tmp_path).recipe
    assert (recipe.score.kind, recipe.score.primary) == ("tool_call", "calls_match")


def test_failure_classes_stand_in_the_order_of_the_tree() -> None:
    assert ordered({"wrong_value", "empty", "wrapped"}) == ["empty", "wrapped", "wrong_value"]
    assert set(FAILURES.values()) == {"shape", "behaviour", "reading", "facts", "code", "wording"}
