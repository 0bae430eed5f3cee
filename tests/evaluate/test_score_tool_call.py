"""Function calls: the ordered errors, the order that does not matter, and the types that do."""

import json
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.answers import row, scorer
from tunesmith.errors import UserError
from tunesmith.evaluate.score_tool_call import same_value
from tunesmith.evaluate.scorers import gold_answer
from tunesmith.rows import Message, Row

FUNCTIONS = [
    {
        "name": "book",
        "parameters": {
            "type": "dict",
            "properties": {
                "hotel": {"type": "string"},
                "nights": {"type": "integer"},
                "price": {"type": "float"},
                "tags": {"type": "array"},
                "quiet": {"type": "boolean"},
            },
            "required": ["hotel"],
        },
    },
    {"name": "cancel", "parameters": {"type": "dict", "properties": {"hotel": {"type": "string"}}}},
    {"name": "now", "parameters": {"type": "dict", "properties": {}}},
]
SOURCE = json.dumps(FUNCTIONS) + "\n\nBook it."
JSON: dict[str, Any] = {"kind": "tool_call", "field": "calls", "functions": "prompt", "primary": "exact_match"}


def call(_name: str, /, **arguments: Any) -> dict[str, Any]:
    return {"name": _name, "arguments": arguments}


def calls(*made: dict[str, Any]) -> str:
    return json.dumps({"calls": list(made)})


def scored(answer: str, wanted: str, ended: bool = True, **meta: Any) -> dict[str, Any]:
    found = scorer(None, **JSON).score(answer, ended, row(wanted, SOURCE, meta=meta))
    return {**found, **found["scores"]}


ONE = calls(call("book", hotel="Ritz", nights=2))


def test_the_calls_that_are_wanted_are_right_by_every_metric() -> None:
    result = scored(ONE, ONE)
    assert set(result["scores"].values()) == {1.0}
    assert (result["failure"], result["fields"]["right"]) == (None, ["book.hotel", "book.nights"])


NONE = calls()
TREE = {
    "unparseable": ("I will book it.", ONE),
    "wrapped": (f"```json\n{ONE}\n```", ONE),
    "wrong_type": ('{"calls": [{"name": "book", "arguments": "Ritz"}]}', ONE),
    "unexpected_key": ('{"calls": [], "note": 1}', ONE),
    "call_not_wanted": (ONE, NONE),
    "no_call": (NONE, ONE),
    "wrong_count": (calls(call("book", hotel="Ritz", nights=2), call("book", hotel="Ritz", nights=2)), ONE),
    "unknown_function": (calls(call("reserve", hotel="Ritz", nights=2)), ONE),
    "wrong_function": (calls(call("cancel", hotel="Ritz")), ONE),
    "missing_argument": (calls(call("book", hotel="Ritz")), ONE),
    "unexpected_argument": (calls(call("book", hotel="Ritz", nights=2, quiet=True)), ONE),
    "wrong_argument_type": (calls(call("book", hotel="Ritz", nights="2")), ONE),
    "wrong_argument": (calls(call("book", hotel="Ritz", nights=3)), ONE),
    "truncated": ('{"calls": [{"name": "bo', ONE),
}


@pytest.mark.parametrize("failure", TREE)
def test_each_error_of_the_tree_has_a_call_that_is_called_so(failure: str) -> None:
    answer, wanted = TREE[failure]
    result = scored(answer, wanted, ended=failure != "truncated")
    assert (result["failure"], result["exact_match"], result["calls_match"]) == (failure, 0.0, 0.0)


def test_the_first_error_names_the_row_and_all_are_kept() -> None:
    result = scored(calls(call("book", nights="2", quiet=True), call("reserve")), ONE)
    assert result["failure"] == "wrong_count"
    kept = ["wrong_count", "unknown_function", "missing_argument", "unexpected_argument", "wrong_argument_type"]
    assert result["labels"] == kept


THREE = [call("book", hotel="Ritz", nights=1), call("book", hotel="Savoy", nights=2), call("cancel", hotel="Ritz")]


@pytest.mark.parametrize("order", list(permutations(THREE)))
def test_parallel_calls_may_stand_in_any_order(order: tuple[dict[str, Any], ...]) -> None:
    result = scored(calls(*order), calls(*THREE))
    assert (result["calls_match"], result["argument_f1"]) == (1.0, 1.0)
    assert result["exact_match"] == float(list(order) == THREE)
    assert result["failure"] == (None if list(order) == THREE else "order_only")


def test_one_call_twice_is_not_two_calls() -> None:  # as a set they would be
    a, b = call("cancel", hotel="Ritz"), call("cancel", hotel="Savoy")
    assert scored(calls(a, a), calls(a, b))["calls_match"] == 0.0
    assert scored(calls(a, a, b), calls(a, b, b))["calls_match"] == 0.0


def test_an_extra_call_beside_the_right_one_is_wrong() -> None:
    result = scored(calls(THREE[0], THREE[2]), calls(THREE[0]))
    assert (result["calls_match"], result["failure"], result["call_decision"]) == (0.0, "wrong_count", 1.0)


@pytest.mark.parametrize(
    ("got", "wanted", "same"),
    [
        (5, 5.0, True),  # a whole number stands for a fraction of the same value
        (5.0, 5, False),  # never the other way round
        (5.0, 5.0, True),
        (True, 1, False),  # in Python they are equal
        (1, True, False),
        (True, 1.0, False),
        ("5", 5, False),
        (5, "5", False),
        (None, 0, False),
        (None, None, True),
        ([1, 2], [2, 1], False),
        ([1, 2.0], [1, 2.0], True),
        ([1], [1.0], True),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1}, {"a": 1, "b": None}, False),
        ("Ritz", "ritz", False),
        (10**40, 1e40, False),  # the nearest fraction is another number
    ],
)
def test_values_are_compared_by_type_too(got: Any, wanted: Any, same: bool) -> None:
    assert same_value(got, wanted) is same
    result = scored(calls(call("book", x=got)), calls(call("book", x=wanted)))
    assert result["calls_match"] == float(same)
    assert result["exact_match"] == float(
        same and json.dumps(got, sort_keys=True) == json.dumps(wanted, sort_keys=True)
    )


ACCEPTABLE = [{"book": {"hotel": ["Ritz Hotel", "Ritz"], "nights": [2], "quiet": ["", True], "tags": [["a", "b"]]}}]
WANTED = calls(call("book", hotel="Ritz Hotel", nights=2, tags=["a", "b"]))


@pytest.mark.parametrize(
    ("arguments", "fits"),
    [
        ({"hotel": "Ritz", "nights": 2, "tags": ["a", "b"]}, True),
        ({"hotel": "the ritz", "nights": 2, "tags": ["a", "b"]}, False),
        ({"hotel": "RITZ_hotel", "nights": 2, "tags": ["A", "b"]}, True),  # as the leaderboard compares texts
        ({"hotel": "Ritz", "nights": 2, "tags": ["a", "b"], "quiet": True}, True),
        ({"hotel": "Ritz", "nights": 2, "tags": ["a", "b"], "quiet": False}, False),
        ({"hotel": "Ritz", "nights": 2, "tags": ["b", "a"]}, False),
        ({"hotel": "Ritz", "nights": 2.0, "tags": ["a", "b"]}, False),
        ({"hotel": "Ritz", "tags": ["a", "b"]}, False),  # what may not be left out is
        ({"hotel": "Ritz", "nights": 2, "tags": ["a", "b"], "price": 1.0}, False),
    ],
)
def test_every_acceptable_value_is_accepted_and_no_other(arguments: dict[str, Any], fits: bool) -> None:
    result = scored(calls(call("book", **arguments)), WANTED, acceptable=ACCEPTABLE)
    assert (result["calls_acceptable"], result["exact_match"]) == (float(fits), 0.0)


def test_a_call_without_arguments_counts_by_its_name() -> None:
    assert scored(calls(call("now")), calls(call("now")))["argument_f1"] == 1.0
    assert scored(calls(call("cancel")), calls(call("now")))["argument_f1"] == 0.0


def test_of_all_rows_irrelevance_and_relevance_stand_apart() -> None:
    one = scorer(None, **JSON)
    lines = [
        one.score(answer, True, row(wanted, SOURCE))
        for answer, wanted in ((NONE, NONE), (ONE, NONE), (ONE, ONE), (NONE, ONE), ("?", ONE), ("?", NONE))
    ]
    assert one.corpus(lines) == {"irrelevance": pytest.approx(1 / 3), "relevance": pytest.approx(1 / 3)}


# ---------------------------------------------------------------------- as a template writes them

TEMPLATE: dict[str, Any] = {"kind": "tool_call"}
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]


def tool_row(*made: dict[str, Any], text: str | None = None) -> Row:
    wanted = [{"type": "function", "function": {**one, "arguments": json.dumps(one["arguments"])}} for one in made]
    completion = Message(role="assistant", content=text, tool_calls=wanted or None)
    return Row(id="1", group="1", messages=[Message(role="user", content="?")], completion=completion, tools=TOOLS)


BOOK = call("book", hotel="Ritz")


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(BOOK),
        json.dumps([BOOK]),
        f"<tool_call>\n{json.dumps(BOOK)}\n</tool_call>",
        json.dumps({"type": "function", "function": {**BOOK, "arguments": json.dumps(BOOK["arguments"])}}),
    ],
)
def test_calls_are_read_as_templates_write_them(text: str) -> None:
    assert scorer(None, **TEMPLATE).score(text, True, tool_row(BOOK))["scores"]["exact_match"] == 1.0


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("I booked it.", "no_call"),  # to say it is not to do it
        (f"Sure! <tool_call>{json.dumps(BOOK)}</tool_call>", "wrapped"),
        (f"<tool_call>{json.dumps(BOOK)}", "unparseable"),
        ("<tool_call>book(Ritz)</tool_call>", "unparseable"),
        ('{"name": "book", "arguments": {"hotel": "Ri', "unparseable"),
        ('{"name": "book", "name": "book", "arguments": {"hotel": "Ritz"}}', "unparseable"),
        ('{"function": "book"}', "wrong_type"),
    ],
)
def test_what_is_no_call_is_told(text: str, failure: str) -> None:
    found = scorer(None, **TEMPLATE).score(text, True, tool_row(BOOK))
    assert (found["scores"]["calls_match"], found["failure"]) == (0.0, failure)


def test_an_answer_in_words_is_right_where_no_call_is_wanted() -> None:
    found = scorer(None, **TEMPLATE).score("None of these can do that.", True, tool_row(text="I cannot."))
    assert found["scores"]["calls_match"] == 1.0
    assert scorer(None, **TEMPLATE).score("", True, tool_row(text="I cannot."))["scores"]["calls_match"] == 0.0


def test_gold_calls_are_written_so_that_they_are_read() -> None:
    gold = tool_row(BOOK, call("now"))
    assert scorer(None, **TEMPLATE).score(gold_answer(gold), True, gold)["scores"]["exact_match"] == 1.0


def test_a_reference_that_holds_no_calls_is_the_users_fault() -> None:
    with pytest.raises(UserError, match="holds no list of calls"):
        scored(ONE, '{"calls": "none"}')


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
made = st.builds(
    lambda name, arguments: {"name": name, "arguments": arguments},
    st.sampled_from(["book", "cancel", "now", "other"]),
    st.dictionaries(st.sampled_from(["hotel", "nights", "price"]), values, max_size=3),
)
answers = st.lists(made, max_size=4).map(lambda some: calls(*some)) | st.text(max_size=30)


@settings(deadline=None)
@given(answers, st.lists(made, max_size=4), st.booleans())
def test_whatever_is_called_the_metrics_agree(answer: str, wanted: list[dict[str, Any]], ended: bool) -> None:
    gold = row(calls(*wanted), SOURCE)
    found = scorer(None, **JSON).score(answer, ended, gold)
    scores = found["scores"]
    assert scores["exact_match"] <= scores["calls_match"] <= scores["calls_acceptable"] <= scores["decoded"]
    assert (found["failure"] is None) == (scores["exact_match"] == 1.0)
    # So that a recipe may change its kind and keep its numbers.
    assert scores["exact_match"] == scorer(None).score(answer, ended, gold)["scores"]["exact_match"]
    assert scorer(None, **JSON).score(gold.reference, True, gold)["scores"]["exact_match"] == 1.0


@settings(deadline=None)
@given(st.lists(made, max_size=4), st.randoms())
def test_no_order_of_calls_changes_their_match(wanted: list[dict[str, Any]], random: Any) -> None:
    shuffled = random.sample(wanted, len(wanted))
    scores = scored(calls(*shuffled), calls(*wanted))["scores"]
    assert (scores["calls_match"], scores["argument_f1"]) == (1.0, 1.0)
