"""Labels: what is right, what is right but for its form, and what all rows together show."""

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.answers import row, scorer
from tunesmith.errors import UserError
from tunesmith.evaluate.score_label import calibration, macro_f1
from tunesmith.evaluate.scorers import Scorer, scorer_of
from tunesmith.recipe import load_recipe
from tunesmith.rows import Row

LABELS = ["anatomy", "skin", "skin cancer", "out_of_scope"]
SCHEMA = {
    "type": "object",
    "properties": {"subject": {"enum": LABELS}},
    "required": ["subject"],
    "additionalProperties": False,
}
FIELD: dict[str, Any] = {
    "kind": "label",
    "field": "subject",
    "abstention": "out_of_scope",
    "synonyms": {"skin": ["dermatology"]},
}
TEXT: dict[str, Any] = {"kind": "label", "labels": LABELS, "abstention": "out_of_scope"}


def of_field(text: str, wanted: str, ended: bool = True) -> dict[str, Any]:
    found = scorer(SCHEMA, **FIELD).score(text, ended, row(json.dumps({"subject": wanted})))
    return {**found, **found["scores"]}


def of_text(text: str, wanted: str, **more: Any) -> dict[str, Any]:
    found = scorer(None, **TEXT, **more).score(text, True, row(wanted))
    return {**found, **found["scores"]}


def test_the_label_to_the_letter_is_right() -> None:
    for result in (of_field('{"subject": "skin"}', "skin"), of_text(" skin\n", "skin")):
        assert (result["accuracy"], result["failure"], result["answer"]["said"]) == (1.0, None, "skin")


@pytest.mark.parametrize("said", ["Skin", "SKIN", " skin. ", '"skin"', "Dermatology", "s-k i_n"])
def test_case_marks_and_synonyms_are_faults_of_the_surface_only(said: str) -> None:
    result = of_field(json.dumps({"subject": said}), "skin")
    assert (result["accuracy"], result["accuracy_surface"], result["failure"]) == (0.0, 1.0, "label_surface")
    assert (result["in_set"], result["answer"]["nearest"]) == (0.0, "skin")


def test_a_label_in_a_sentence_is_no_label_but_is_found() -> None:
    result = of_text("The answer is skin cancer.", "skin cancer")
    assert (result["accuracy"], result["accuracy_lenient"], result["failure"]) == (0.0, 1.0, "wrapped")


def test_a_longer_label_hides_the_shorter_one_in_it() -> None:  # `skin cancer` does not name `skin`
    assert of_text("It is skin cancer.", "skin")["accuracy_lenient"] == 0.0


@pytest.mark.parametrize("text", ["not anatomy but skin", "anatomy, skin", "skinny", "the answer"])
def test_two_labels_or_none_in_a_sentence_name_none(text: str) -> None:
    assert [of_text(text, label)["accuracy_lenient"] for label in LABELS] == [0.0] * len(LABELS)


def test_a_label_that_is_none_is_out_of_the_set_with_the_nearest_told() -> None:
    result = of_text("anatomie", "anatomy")
    assert (result["failure"], result["answer"]["nearest"], result["accuracy_surface"]) == (
        "out_of_set",
        "anatomy",
        0.0,
    )


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ('{"subject": "anatomy"}', "wrong_label"),
        ('{"subject": "skin", "sure": true}', "unexpected_key"),
        ('{"subject": ["skin"]}', "wrong_type"),
        ('{"subject": null}', "wrong_type"),
        ('```json\n{"subject": "skin"}\n```', "wrapped"),
        ('{"subject": "skin", "subject": "skin"}', "wrapped"),
        ('{"label": "skin"}', "missing_required"),
        ("skin", "unparseable"),
        ("", "empty"),
        ('{"subject": "out_of_scope"}', "abstained"),
    ],
)
def test_what_is_wrong_is_named(text: str, failure: str) -> None:
    result = of_field(text, "skin")
    assert (result["accuracy"], result["failure"]) == (0.0, failure)


def test_an_answer_where_the_row_wants_none_is_of_behaviour() -> None:
    result = of_field('{"subject": "skin"}', "out_of_scope")
    assert result["labels"] == ["not_abstained", "wrong_label"]
    assert result["abstention_right"] == 0.0


def test_a_reference_that_is_no_label_is_the_users_fault() -> None:
    with pytest.raises(UserError, match="row 1: its reference 'bone' is none of the labels"):
        of_text("skin", "bone")


def test_labels_come_from_the_schema_or_are_missed(repository: Any) -> None:
    recipe = load_recipe("triage", root=repository).recipe
    assert scorer_of(recipe, SCHEMA).labels == LABELS
    with pytest.raises(UserError, match=r"data\.schema has no `enum` of texts for 'subject'"):
        scorer_of(recipe, {"type": "object"})
    with pytest.raises(UserError, match="'out_of_scope' is none of the labels"):
        scorer_of(recipe, {"type": "object", "properties": {"subject": {"enum": ["skin"]}}})


labels = st.sampled_from(LABELS)
said = labels | st.text(max_size=8) | st.none() | st.integers()
objects = st.dictionaries(st.sampled_from(["subject", "x"]), said, max_size=2).map(json.dumps)


@settings(deadline=None)
@given(objects | st.text(), labels, st.booleans())
def test_accuracy_of_a_field_is_the_exact_match_of_the_object(text: str, wanted: str, ended: bool) -> None:
    # So that a recipe may change its kind and keep its numbers.
    gold = row(json.dumps({"subject": wanted}))
    found = scorer(SCHEMA, **FIELD).score(text, ended, gold)
    assert found["scores"]["accuracy"] == scorer(SCHEMA).score(text, ended, gold)["scores"]["exact_match"]
    assert (found["failure"] is None) == (found["scores"]["accuracy"] == 1.0)
    json.dumps(found, allow_nan=False)


# ---------------------------------------------------------------------- of all rows together


def by_the_book(answers: list[tuple[str | None, str]]) -> float:
    """Macro F1 from precision and recall, label by label."""
    found = []
    for label in {wanted for _, wanted in answers}:
        hits = sum(a == w == label for a, w in answers)
        precision = hits / max(1, sum(a == label for a, _ in answers))
        recall = hits / sum(w == label for _, w in answers)
        found.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return sum(found) / len(found)


@settings(deadline=None)
@given(st.lists(st.tuples(labels | st.none(), labels), min_size=1, max_size=40))
def test_macro_f1_is_the_mean_of_the_labels_own(answers: list[tuple[str | None, str]]) -> None:
    assert macro_f1(answers) == pytest.approx(by_the_book(answers))


def test_macro_f1_does_not_reward_the_majority() -> None:
    answers: list[tuple[str | None, str]] = [("skin", "skin")] * 90 + [("skin", "anatomy")] * 10
    assert macro_f1(answers) == pytest.approx((2 * 90 / 190) / 2)


def corpus(answers: list[tuple[str, str]], **more: Any) -> dict[str, float]:
    one: Scorer = scorer(SCHEMA, **FIELD)
    rows: list[Row] = [row(json.dumps({"subject": wanted})) for _, wanted in answers]
    lines = [one.score(json.dumps({"subject": a}), True, r) for (a, _), r in zip(answers, rows, strict=True)]
    return one.corpus([line | more for line in lines])


def test_abstention_has_a_recall_and_a_precision() -> None:
    none = "out_of_scope"
    found = corpus([(none, none), ("skin", none), (none, "skin"), (none, "anatomy"), ("skin", "skin")])
    assert (found["abstention_recall"], found["abstention_precision"]) == (0.5, pytest.approx(1 / 3))


def test_without_a_row_that_wants_none_abstention_has_no_recall() -> None:  # 0 would read as a failure, 1 as a feat
    assert set(corpus([("skin", "skin")])) == {"macro_f1"}


def test_calibration_is_given_where_every_line_has_log_probabilities() -> None:
    sure = {label: math.log(0.7 if label == "skin" else 0.1) for label in LABELS}
    found = corpus([("skin", "skin"), ("skin", "anatomy")], label_logprobs=sure)
    assert found["ece"] == pytest.approx(0.2)
    assert found["brier"] == pytest.approx((0.3**2 + 3 * 0.1**2 + 0.7**2 + 0.9**2 + 2 * 0.1**2) / 2)


def test_probabilities_that_are_true_are_calibrated_and_others_are_not() -> None:
    random_ = random.Random(7)
    rows, boasts = [], []
    for _ in range(4000):
        chance = random_.uniform(0.5, 1.0)
        wanted = "a" if random_.random() < chance else "b"
        # Log-probabilities need not be normalised: the base may give some to other words.
        rows.append(({"a": math.log(chance) - 3, "b": math.log(1 - chance) - 3}, wanted))
        boasts.append(({"a": math.log(0.999), "b": math.log(0.001)}, wanted))
    assert calibration(rows)["ece"] < 0.03
    assert calibration(boasts)["ece"] == pytest.approx(0.25, abs=0.03)
    assert calibration(rows)["brier"] < calibration(boasts)["brier"]


def test_a_label_of_no_chance_is_no_crash_and_one_of_no_number_is_refused() -> None:
    assert calibration([({"a": 0.0, "b": -math.inf}, "a")]) == {"ece": 0.0, "brier": 0.0, "confidence": 1.0}
    for bad in ({"a": math.nan, "b": 0.0}, {"a": -math.inf, "b": -math.inf}, {"b": 0.0}):
        with pytest.raises(ValueError, match="calibration"):
            calibration([(bad, "a")])
    with pytest.raises(ValueError, match="no rows"):
        calibration([])
