"""Labels of logged answers: one trap, one test."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluate.label_noise import suspicions
from tunesmith.evaluate.logged import Judged, fold, judge, judge_log, kinds_of, stands_in
from tunesmith.failures import FAILURES
from tunesmith.logs import LogRow
from tunesmith.rows import Message

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["fee", "limit"]}, "value": {"type": "string", "minLength": 1}},
    "required": ["value"],
    "additionalProperties": False,
}
PASSAGE = "Gold Card\n- Annual fee: $95.\n- Limit: $1,200"


def row(output: str, reference: str, *, asked: str = "What is the annual fee?", **more: Any) -> LogRow:
    name = more.pop("id", "a")
    return LogRow(name, name, [Message(role="user", content=asked)], output, reference, **more)


def said(value: Any, **more: Any) -> str:
    return json.dumps({"value": value} | more)


def judged(one: LogRow, kind: Any = "copied") -> Judged:
    found = judge(one, {"": kind, "value": kind})
    assert found is not None
    return found


# ---------------------------------------------------------------------- right and wrong


@pytest.mark.parametrize(("output", "reference"), [("95", "95"), (said("$95"), said("$95")), (" 95 ", "95")])
def test_the_reference_is_right(output: str, reference: str) -> None:
    assert judged(row(output, reference)).right


def test_keys_in_another_order_are_right() -> None:
    assert judged(row('{"kind":"fee","value":"x"}', '{"value":"x","kind":"fee"}')).right


def test_the_logs_own_judgement_goes_before_ours() -> None:
    assert judged(row("ninety-five", "95", correct=True)).right
    assert judged(row("95", "95", correct=False)).labels == ("wrong_value",)
    assert judge(LogRow("a", "a", [], "x"), {}) is None


# ---------------------------------------------------------------------- form


@pytest.mark.parametrize(
    ("output", "more", "label", "grammar"),
    [
        ("", {}, "empty", False),
        ("", {"finish": "timeout"}, "timeout", False),
        (said("$95"), {"finish": "length"}, "truncated", False),
        (f"```json\n{said('$95')}\n```", {}, "wrapped", True),
        ("The annual fee is $95, as you see.", {}, "unparseable", True),
        (said("$95", note="sure"), {"schema": SCHEMA}, "unexpected_key", True),
        ("{}", {"schema": SCHEMA}, "missing_required", True),
        (said(95), {"schema": SCHEMA}, "wrong_type", False),  # the dollar is missing too
        (said("$95", kind="Fee"), {"schema": SCHEMA}, "label_surface", True),
        (said("$95", kind="charge"), {"schema": SCHEMA}, "out_of_set", True),
        (said(""), {"schema": SCHEMA}, "constraint", True),
        (said("95"), {}, "normalisation_only", False),
    ],
)
def test_a_fault_of_form(output: str, more: dict[str, Any], label: str, grammar: bool) -> None:
    found = judged(row(output, said("$95"), asked=PASSAGE, **more))
    assert found.failure == label
    assert not found.form_right
    assert found.facts == "given"
    if found.content_right:
        assert found.by_grammar is grammar


def test_a_number_for_its_text_is_a_fault_of_type_alone() -> None:
    found = judged(row(said(95), said("95"), asked=PASSAGE, schema=SCHEMA))
    assert found.labels == ("wrong_type",)
    assert found.by_grammar


def test_a_loop_is_seen() -> None:
    assert "loop" in judged(row("the fee is what the fee is and so " * 5, "95")).labels


def test_a_fence_around_a_wrong_value_is_wrong_in_both() -> None:
    found = judged(row(f"```\n{said('$96')}\n```", said("$95"), asked=PASSAGE))
    assert not found.form_right
    assert not found.content_right


def test_what_is_said_at_length_is_a_fault_of_form() -> None:
    found = judged(row("The annual fee is $95.", "$95"))
    assert "verbose" in found.labels
    assert found.content_right


def test_a_refusal_is_told() -> None:
    assert "refused" in judged(row("I'm sorry, I can't help with that.", "95")).labels
    assert "refused" in judged(row("I cannot help.", said("95"))).labels


def test_alternatives_of_a_schema_are_told_by_the_one_that_fits_best() -> None:
    two = {
        "anyOf": [SCHEMA, {"type": "object", "properties": {"value": {"type": "null"}}, "required": ["value", "why"]}]
    }
    assert judged(row(said("$95", note="x"), said("$95"), asked=PASSAGE, schema=two)).failure == "unexpected_key"


# ---------------------------------------------------------------------- facts


def test_a_value_that_was_not_retrieved() -> None:
    found = judged(row(said("$80"), said("$95"), context=("Silver Card\nfee: $80",), gold=(PASSAGE,)))
    assert found.labels == ("not_retrieved",)
    assert (found.form_right, found.content_right, found.facts) == (True, False, "missing")


def test_a_value_that_was_retrieved_and_not_used() -> None:
    found = judged(row(said("$80"), said("$95"), context=("Silver Card\nfee: $80", PASSAGE), gold=(PASSAGE,)))
    assert found.labels == ("retrieved_not_used", "wrong_in_source")
    assert found.facts == "given"


def test_an_older_value_is_stale() -> None:
    found = judged(row("$85", "$95", gold=(PASSAGE,), versions=("$85",)))
    assert found.labels == ("stale", "missing_unavailable")
    assert found.facts == "missing"


def test_an_older_index_is_told_from_an_older_memory() -> None:
    found = judged(row("$85", "$95", context=("Gold Card fee: $85",), gold=(PASSAGE,), versions=("$85",)))
    assert found.labels == ("stale", "stale_index", "not_retrieved")


def test_an_invented_value_is_told() -> None:
    assert "hallucinated" in judged(row(said("$77"), said("$95"), gold=(PASSAGE,))).labels


def test_a_short_value_that_stands_elsewhere_is_not_given() -> None:
    """$95 is the silver card's fee too, which says nothing of the gold card's."""
    found = judged(
        row(said("$80"), said("$95"), context=("Silver Card. Annual fee: $95. Limit: $80",), gold=(PASSAGE,))
    )
    assert found.facts == "given", "the very line that tells it stood there"
    found = judged(row(said("$80"), said("$95"), context=("Silver Card. Late fee: $95. Limit: $80",), gold=(PASSAGE,)))
    assert found.facts == "missing"


def test_an_answer_where_there_is_none_to_give() -> None:
    assert judged(row(said("$80"), said(None), context=("fee: $80",))).failure == "not_abstained"


def test_a_label_is_no_fact() -> None:
    found = judged(row(said("fee"), said("limit")), kind="label")
    assert found.labels == ("wrong_label",)
    assert found.facts == "given"


def test_without_a_source_nobody_can_tell_whether_facts_were_given() -> None:
    assert judged(row("Canberra", "Sydney"), kind="free").facts == "unknown"


# ---------------------------------------------------------------------- what paths hold


def test_kinds_of_paths_are_told_by_the_log() -> None:
    def line(number: int) -> LogRow:
        text = said(f"item {number} of the shop", kind=["fee", "limit"][number % 2], mood=f"mood {number}")
        return row(text, text, asked=f"Tell me of item {number} of the shop.", id=str(number))

    kinds = kinds_of([line(number) for number in range(40)])
    assert kinds == {"value": "copied", "kind": "label", "mood": "free"}


def test_places_in_lists_are_one_path() -> None:
    kinds = kinds_of([row("x", '{"names":["Ann","Bob"]}', asked="Ann and Bob")] * 3)
    assert kinds == {"names[]": "copied"}


# ---------------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("one", "other"),
    [("$1,200.00", "1200"), ("  GA. ", "ga"), ("3.50 %", "3.5"), ("\uff11\uff12", "12"), ("Straße", "strasse")],
)
def test_one_value_in_two_notations(one: str, other: str) -> None:
    assert fold(one) == fold(other)


@pytest.mark.parametrize(("one", "other"), [("1.5", "15"), ("-1", "1"), ("1,2", "12"), ("100", "10"), ("a b", "ab")])
def test_two_values(one: str, other: str) -> None:
    assert fold(one) != fold(other)


def test_a_number_stands_as_a_whole() -> None:
    assert stands_in("95", "a fee of $95.")
    assert not stands_in("95", "a fee of $1950")
    assert not stands_in("95", "a fee of $95.50")
    assert stands_in(1200.0, "up to 1,200 a day")
    assert not stands_in(True, "it is true")


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_what_is_put_between_spaces_stands_there(before: str, value: str, after: str) -> None:
    assert stands_in(value, f"{before} {value.strip()} {after}")


@given(st.text(max_size=30))
def test_folding_twice_is_folding_once(text: str) -> None:
    assert fold(fold(text)) == fold(text)


@given(st.text(max_size=40), st.text(max_size=40) | st.just(said("$95")))
def test_any_answer_gets_known_labels(output: str, reference: str) -> None:
    found = judged(row(output, reference, schema=SCHEMA, gold=(PASSAGE,)))
    assert set(found.labels) <= set(FAILURES)
    assert found.right is (found.labels == ())


# ---------------------------------------------------------------------- references


def suspected(rows: list[LogRow]) -> dict[str, str]:
    return dict(suspicions(rows, judge_log(rows), kinds_of(rows)))


def test_a_reference_that_most_others_contradict() -> None:
    rows = [row("5", answer, id=str(i)) for i, answer in enumerate(["5", "5 ", "6", "5"])]
    assert suspected(rows) == {"2": "contradicted"}


def test_of_two_that_contradict_each_other_both_are_suspected() -> None:
    assert suspected([row("5", "5", id="a"), row("5", "6", id="b")]) == {"a": "contradicted", "b": "contradicted"}


def test_a_fact_that_changed_is_no_contradiction() -> None:
    rows = [row("5", "5", id="a"), row("5", "6", id="b", versions=("5",))]
    assert suspected(rows) == {}


def test_another_passage_makes_another_question() -> None:
    assert suspected([row("5", "5", id="a", context=("five",)), row("5", "6", id="b", context=("six",))]) == {}


def test_a_reference_that_stands_nowhere_in_its_source() -> None:
    right = [row(said(f"name {i}"), said(f"name {i}"), asked=f"Here is name {i}.", id=str(i)) for i in range(20)]
    wrong = row(said("Ann"), said("Zoe"), asked="Here is Ann.", id="wrong")
    both = row(said("Tim"), said("Zoe"), asked="Here is Ann.", id="both")
    assert suspected([*right, wrong, both]) == {"wrong": "source_sides_with_output", "both": "not_derivable"}


def test_a_fact_that_was_not_retrieved_is_no_wrong_reference() -> None:
    right = [row(said(f"n{i}"), said(f"n{i}"), context=(f"It is n{i}.",), id=str(i)) for i in range(20)]
    lost = row(said("n0"), said("n77"), asked="Who is it?", context=("It is n0.",), id="lost")
    assert suspected([*right, lost]) == {}
    named = row(said("n0"), said("n77"), asked="Who?", context=("It is n0.",), gold=("It is n0.",), id="named")
    assert suspected([*right, named]) == {"named": "source_sides_with_output"}
