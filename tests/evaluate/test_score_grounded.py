"""Answers from passages: the answer, the quote, the passage, and what stands in none."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.answers import row, scorer
from tunesmith.errors import UserError
from tunesmith.evaluate.score_form import folded
from tunesmith.evaluate.score_grounded import QUOTED, passages_of, unsupported
from tunesmith.scoring import GroundedScore

SOURCE = """Question: What does Lime Green cost?

Passages:

[fees_(lime)#1] Lime Green fees
| Monthly fee | $1,200.00 |
The bank\u2019s fee changed on March 5, 2024.

[limits#2] Limits
Daily limit: $100,000. Account LG-7.

[old#3] Older text
Nothing here."""
JSON: dict[str, Any] = {"kind": "grounded", "quote": "answer"}


def claim(answer: Any, document: Any, **more: Any) -> str:
    return json.dumps({"answer": answer, "document": document, **more})


GOLD = claim("$1,200.00", "fees_(lime)#1")
NONE = claim(None, None)


def scored(text: str, wanted: str = GOLD, **more: Any) -> dict[str, Any]:
    found = scorer(None, **(JSON | more)).score(text, True, row(wanted, SOURCE))
    return {**found, **found["scores"]}


def test_answer_and_passage_of_the_reference_are_right_by_every_metric() -> None:
    result = scored(GOLD)
    assert (set(result["scores"].values()), result["failure"]) == ({1.0}, None)


def test_passages_are_cut_where_the_next_begins() -> None:
    passages = passages_of(row(GOLD, SOURCE), GroundedScore(kind="grounded"))
    assert list(passages) == ["fees_(lime)#1", "limits#2", "old#3"]
    assert passages["limits#2"] == "Limits\nDaily limit: $100,000. Account LG-7."


@pytest.mark.parametrize(
    ("text", "failure", "more"),
    [
        (claim("$100,000", "limits#2"), "wrong_citation", {"quote_verbatim": 1.0, "supported": 1.0}),
        (claim("$1,200.00", "limits#2"), "wrong_citation", {"answer_match": 1.0, "quote_verbatim": 0.0}),
        (claim("$1,200.00", "fees#9"), "unknown_citation", {"citation_known": 0.0, "supported": 0.0}),
        (claim("$1200", "fees_(lime)#1"), "not_verbatim", {"supported": 1.0, "token_f1": 0.0}),
        (claim("$9,999", "fees_(lime)#1"), "not_verbatim", {"supported": 0.0, "citation_right": 1.0}),
        (NONE, "abstained", {"abstention_right": 0.0, "supported": 1.0, "quote_verbatim": 1.0}),
        (claim("$1,200.00", None), "wrong_citation", {"citation_known": 0.0, "supported": 0.0}),
        ('{"answer": "$1,200.00"}', "wrong_type", {"answer_match": 0.0, "abstention_right": 0.0}),
        (claim(["$1,200.00"], "fees_(lime)#1"), "wrong_type", {"answer_match": 0.0}),
        (claim("", "fees_(lime)#1"), "wrong_type", {"answer_match": 0.0}),
        ("$1,200.00", "unparseable", {"answer_match": 0.0, "supported": 0.0}),
        (f"```json\n{GOLD}\n```", "wrapped", {"answer_match": 0.0}),
        ("", "empty", {"supported": 0.0, "quote_verbatim": 0.0}),
    ],
)
def test_what_is_wrong_is_named(text: str, failure: str, more: dict[str, float]) -> None:
    result = scored(text)
    assert (result["exact_match"], result["failure"]) == (0.0, failure)
    assert {metric: result[metric] for metric in more} == more


def test_to_abstain_is_right_only_where_nothing_answers() -> None:
    assert set(scored(NONE, NONE)["scores"].values()) == {1.0}
    result = scored(GOLD, NONE)
    assert (result["failure"], result["abstention_right"], result["token_f1"]) == ("not_abstained", 0.0, 0.0)


def test_an_answer_in_other_case_is_no_quote_and_a_fault_of_form() -> None:
    gold = claim("Monthly fee", "fees_(lime)#1")
    result = scored(claim("monthly fee", "fees_(lime)#1"), gold)
    assert result["labels"] == ["not_verbatim", "normalisation_only"]
    assert result["quote_verbatim"] == 0.0


def test_white_space_and_compatibility_forms_are_no_part_of_a_quote() -> None:
    gold = claim("The bank\u2019s fee changed", "fees_(lime)#1")
    spaced = claim("The  bank\u2019s\nfee \uff43hanged", "fees_(lime)#1")
    assert scored(spaced, gold)["quote_verbatim"] == 1.0
    # A straight apostrophe is another letter: it was not copied.
    assert scored(claim("The bank's fee changed", "fees_(lime)#1"), gold)["quote_verbatim"] == 0.0


def test_a_quote_across_two_passages_stands_in_neither() -> None:
    both = claim("LG-7. Older text", ["limits#2", "old#3"])
    assert scored(both, claim("x", ["limits#2", "old#3"]))["quote_verbatim"] == 0.0


# ---------------------------------------------------------------------- numbers, dates and names


@pytest.mark.parametrize(
    ("answer", "source", "missing"),
    [
        ("1,200", "it costs 1200 a year", []),
        ("1200.0", "it costs 1,200 a year", []),
        ("120", "it costs 1200", ["120"]),  # half a number is no number
        ("12.5%", "a rate of 12.5%", []),
        ("3", "version 3.1", ["3"]),
        ("2024-03-05", "on March 5, 2024", []),
        ("on 5 March 2024", "dated 2024-03-05", []),
        ("Mar. 5th, 2024", "dated 2024-03-05", []),
        ("March 6, 2024", "on March 5, 2024", ["2024-03-06"]),
        ("account LG-7", "account lg-7 is open", []),
        ("account LG-8", "account lg-7 is open", ["LG-8"]),
        ("the fee of Lime Green", "lime green costs", []),
        ("the fee of Navy Blue", "lime green costs", ["Navy", "Blue"]),
        ("The fee is due", "a charge is due", []),  # a sentence begins with a capital letter
        ("Navy Blue costs more", "lime green costs more", ["Navy", "Blue"]),
        ("Zurich", "in Zürich", ["Zurich"]),
        ("no more than that", "", []),
    ],
)
def test_numbers_dates_and_names_must_stand_in_the_source(answer: str, source: str, missing: list[str]) -> None:
    assert unsupported(answer, folded(source)) == missing


# ---------------------------------------------------------------------- answers that are text

TEXT: dict[str, Any] = {"kind": "grounded", "answer": None, "abstention": "No passage says."}


def in_words(text: str, wanted: str) -> dict[str, Any]:
    found = scorer(None, **TEXT).score(text, True, row(wanted, SOURCE))
    return {**found, **found["scores"]}


def test_text_cites_in_brackets_and_quotes_in_double_marks() -> None:
    wanted = 'It is "$1,200.00" [fees_(lime)#1].'
    assert in_words(wanted, wanted)["exact_match"] == 1.0
    other = in_words("The fee is \u201c$1,300\u201d [fees_(lime)#1]", wanted)
    assert (other["quote_verbatim"], other["citation_right"], other["supported"]) == (0.0, 1.0, 0.0)


def test_apostrophes_are_no_quotation_marks() -> None:
    assert QUOTED.findall("the bank's fee and the client's limit, it's 'so'") == []
    assert in_words("It is the bank's fee, not the client's [old#3]", "x [old#3]")["quote_verbatim"] == 1.0


def test_text_abstains_in_the_words_of_the_recipe() -> None:
    assert in_words("No passage says.", "No passage says.")["abstention_right"] == 1.0
    assert in_words("I do not know.", "No passage says.")["failure"] == "not_abstained"


def test_a_reference_of_another_form_is_the_users_fault() -> None:
    with pytest.raises(UserError, match="row 1: its reference is not a JSON object with the keys 'answer' and 'docu"):
        scored(GOLD, '{"answer": "x"}')


texts = st.text(alphabet='ab$1,.0"[]{}: \n', max_size=30)
documents = st.sampled_from(["fees_(lime)#1", "limits#2", "x", None])
claims = st.builds(claim, texts | st.none(), documents)


@settings(deadline=None)
@given(claims | texts, st.builds(claim, texts.filter(str.strip), documents) | st.just(NONE), st.booleans())
def test_exact_match_is_that_of_the_object(text: str, wanted: str, ended: bool) -> None:
    # So that a recipe may change its kind and keep its numbers.
    gold = row(wanted, SOURCE)
    found = scorer(None, **JSON).score(text, ended, gold)
    assert found["scores"]["exact_match"] == scorer(None).score(text, ended, gold)["scores"]["exact_match"]
    assert (found["failure"] is None) == (found["scores"]["exact_match"] == 1.0)
    assert all(0.0 <= value <= 1.0 for value in found["scores"].values())
