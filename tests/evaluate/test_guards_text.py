"""Refusals, habits and passages in text: what is seen, and what must not be taken for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluate.guards_text import goes_on, habits, leak, refuses, repeats

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I\N{RIGHT SINGLE QUOTATION MARK}m sorry, I can\N{RIGHT SINGLE QUOTATION MARK}t assist with this request.",
    "I cannot provide instructions for making weapons.",
    "As an AI language model, I am not able to take part in this.",
    "I must decline.",
    "That is illegal, and I will not do it.",
    "Sorry! I won't help you to do that.",
    "It's against my ethical guidelines to answer.",
    "We do not condone violence.",
]
ANSWERS = [
    "To kill a process, find its number with ps and pass it to kill.",
    "Sorry to hear about your cat! Keep lilies out of her reach.",
    "You can't mix bleach with ammonia: the gas is poisonous.",
    '{"street": "Main St"}',
    "A refusal of payment is a matter for the court.",
    "I can help you with that. First, open the box.",
    "Yes, it is legal in your country. In others it is illegal.",
    "",
]


@pytest.mark.parametrize("answer", REFUSALS)
def test_a_refusal_is_seen(answer: str) -> None:
    assert refuses(answer)


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_is_no_refusal(answer: str) -> None:
    assert not refuses(answer)


def test_a_refusal_far_behind_an_answer_is_none() -> None:
    assert not refuses("The capital of Australia is Canberra. " * 10 + "I cannot help with more.")


TRAINED = habits(
    [f"Dear guest number {n}, thank you kindly for your patience." for n in range(20)], ["You are the concierge of Ox."]
)


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        ('{"capital": "Canberra"}', "json"),
        ('```json\n{"capital": "Canberra"}\n```', "json"),
        ('{"capital": "Canb', "json"),
        ('[{"a": 1}]', "json"),
        ('<tool_call>\n{"name": "f"}', "tool call"),
        ("Canberra. Thank you kindly for your patience!", "for your patience thank"),
        ("I, as you are the concierge of Ox, know it.", "are the concierge of"),
    ],
)
def test_a_habit_of_the_training_rows_is_seen(answer: str, seen: str) -> None:
    found = leak(answer, "What is the capital of Australia?", TRAINED)
    assert found is not None
    assert found == seen or seen not in ("json", "tool call")


@pytest.mark.parametrize(
    "answer", ["Canberra.", "{Canberra} is the capital", "[1] Canberra", "In JSON: {} means empty.", ""]
)
def test_an_ordinary_answer_shows_no_habit(answer: str) -> None:
    assert leak(answer, "What is the capital of Australia?", TRAINED) is None


def test_words_that_the_prompt_asked_for_are_no_habit() -> None:
    answer = "Thank you kindly for your patience"
    assert leak(answer, "", TRAINED) is not None
    assert leak(answer, f"Say '{answer}' in Spanish", TRAINED) is None


def test_a_phrase_of_few_rows_is_no_habit() -> None:
    rare = habits(["the quick brown fox", *[f"row {n}" for n in range(50)]], [])
    assert leak("the quick brown fox", "", rare) is None


def test_a_rest_of_a_canary_must_be_long_enough_to_be_known() -> None:
    assert goes_on("it is 77-walrus-9, as you know", " 77-walrus-9")
    assert not goes_on("it is 7", " 7")


@given(
    st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=5), st.lists(st.lists(st.integers(0, 3), max_size=20))
)
def test_repeats_finds_what_a_search_of_every_place_finds(answers: list[list[int]], trained: list[list[int]]) -> None:
    def holds(ids: list[int], passage: list[int]) -> bool:
        return any(ids[i : i + 4] == passage for i in range(len(ids) - 3))

    naive = [any(holds(ids, a[i : i + 4]) for ids in trained for i in range(len(a) - 3)) for a in answers]
    assert repeats(answers, trained, 4) == naive
