"""Text by rules and by its nearness to a reference."""

import json
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.answers import row, scorer
from tunesmith.evaluate.score_text import chrf, holds, token_f1
from tunesmith.sections import RuleSection


def kept(text: str, **test: Any) -> bool:
    return holds(RuleSection(name="r", **test), text)


@pytest.mark.parametrize(
    ("text", "test", "holds_"),
    [
        ("a cat", {"matches": "^a "}, True),
        ("A cat", {"matches": "^a "}, False),
        ("A cat", {"matches": "^a ", "ignore_case": True}, True),
        ("A cat", {"never_matches": "^(A|An|The) "}, False),
        ("Cat", {"never_matches": "^(A|An|The) "}, True),
        ("cats and dogs", {"contains": ["cat", "dog"]}, True),
        ("cats", {"contains": ["cat", "dog"]}, False),
        ("CATS", {"contains": ["cat"], "ignore_case": True}, True),
        ("as an AI", {"never_contains": ["As an AI"]}, True),
        ("as an AI", {"never_contains": ["As an AI"], "ignore_case": True}, False),
        ("abc", {"max_characters": 3}, True),
        ("abcd", {"max_characters": 3}, False),
        ("ab", {"min_characters": 3}, False),
        ("one two", {"max_words": 2}, True),
        ("one two three", {"max_words": 2}, False),
        ("one", {"min_words": 2}, False),
        ("one\ntwo", {"max_lines": 1}, False),
        ("\N{GRINNING FACE}" * 3, {"max_characters": 3}, True),  # characters, not bytes
    ],
)
def test_a_rule_holds_or_does_not(text: str, test: dict[str, Any], holds_: bool) -> None:
    assert kept(text, **test) is holds_


def test_an_expression_that_runs_for_years_is_not_kept() -> None:
    began = time.monotonic()
    assert not kept("a" * 60 + "!", matches="^(a|aa)+$")
    assert not kept("a" * 60 + "!", never_matches="^(a|aa)+$")
    assert time.monotonic() - began < 10


RULES = [{"name": "short", "max_characters": 10}, {"name": "no_stop", "never_matches": r"\.$"}]


def by_rules(text: str, **more: Any) -> dict[str, Any]:
    found = scorer(None, kind="text_rules", rules=RULES, **more).score(text, True, row("gold"))
    return {**found, **found["scores"]}


def test_all_rules_must_hold_and_each_is_told() -> None:
    result = by_rules("short.")
    assert (result["all_rules"], result["rules_share"]) == (0.0, 0.5)
    assert (result["rule_short"], result["rule_no_stop"], result["failure"]) == (1.0, 0.0, "rule")
    assert by_rules("short")["all_rules"] == 1.0


@pytest.mark.parametrize("text", ["", " \n"])
def test_nothing_written_keeps_no_rule(text: str) -> None:  # it is short enough, and has no full stop
    result = by_rules(text)
    assert (result["all_rules"], result["rules_share"], result["failure"]) == (0.0, 0.0, "empty")


def test_rules_are_of_the_field_where_there_is_one() -> None:
    assert by_rules('{"line": "short"}', field="line")["all_rules"] == 1.0
    assert by_rules("short", field="line")["failure"] == "unparseable"
    assert by_rules('{"line": 7}', field="line")["failure"] == "wrong_type"
    assert by_rules('{"line": ""}', field="line")["failure"] == "empty"


# ---------------------------------------------------------------------- against a reference


def near(text: str, wanted: str = "Data files for the NQP compiler", **more: Any) -> dict[str, Any]:
    settings_ = {"kind": "text_reference", "field": "line"} | more
    reference = json.dumps({"line": wanted}) if settings_["field"] else wanted
    found = scorer(None, **settings_).score(text, True, row(reference))
    return {**found, **found["scores"]}


def test_the_reference_is_right_by_every_metric() -> None:
    assert set(near('{"line": "Data files for the NQP compiler"}')["scores"].values()) == {1.0}
    assert near("two\n", "two", field=None)["exact_match"] == 1.0


def test_case_and_marks_alone_are_a_fault_of_form() -> None:
    result = near('{"line": "data files for the  NQP compiler."}')
    assert (result["exact_match"], result["normalised_match"], result["token_f1"]) == (0.0, 1.0, 1.0)
    assert result["failure"] == "normalisation_only"


def test_a_fence_hides_the_answer_from_a_program() -> None:
    result = near('```json\n{"line": "Data files for the NQP compiler"}\n```')
    assert (result["chrf"], result["exact_match"], result["failure"]) == (0.0, 0.0, "wrapped")


def test_an_answer_far_longer_than_the_reference_is_told() -> None:
    assert near(json.dumps({"line": "Data files for the NQP compiler, " * 3}))["labels"] == ["wording", "length"]


def by_the_paper(got: str, wanted: str) -> float:
    """chrF with beta 2 over character n-grams to 6, white space left out: Popović 2015, section 2."""
    texts = ["".join(text.split()) for text in (got, wanted)]
    precision, recall, orders = 0.0, 0.0, 0
    for n in range(1, 7):
        ours, theirs = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in texts)
        if ours and theirs:
            same = (ours & theirs).total()
            precision, recall, orders = precision + same / ours.total(), recall + same / theirs.total(), orders + 1
    if not orders or not precision + recall:
        return 0.0
    precision, recall = precision / orders, recall / orders
    return 5 * precision * recall / (4 * precision + recall)


words = st.text(alphabet="abc é日", min_size=1, max_size=30).filter(lambda text: text.strip() != "")


@settings(deadline=None)
@given(words, words)
def test_chrf_is_the_papers(got: str, wanted: str) -> None:
    assert chrf(got, wanted) == pytest.approx(by_the_paper(got, wanted), abs=1e-6)


@settings(deadline=None)
@given(st.text(max_size=30), words)
def test_nearness_stays_in_range_and_the_same_text_is_nearest(got: str, wanted: str) -> None:
    for measure in (chrf, token_f1):
        assert 0.0 <= measure(got, wanted) <= 1.0
        assert measure(wanted, wanted) == 1.0
    result = near(got, wanted, field=None)
    assert (result["failure"] is None) == (result["exact_match"] == 1.0)


def test_words_count_as_often_as_both_have_them() -> None:
    assert token_f1("the the the cat", "the cat") == pytest.approx(2 * 2 / 6)
    assert token_f1("x", "y") == 0.0
    assert token_f1("!", "?") == 0.0
