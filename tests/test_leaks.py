"""Planted copies of every kind are found, and nothing else is."""

import random

import pytest

from tunesmith.leaks import Text, find_leaks

TEXT = "The quick brown fox jumps over the lazy dog near the old mill by the winding river every single morning"

PLANTED = {
    "exact": (TEXT, "exact"),
    "case folded": (TEXT.upper(), "normalised"),
    "other spaces and stops": (TEXT.replace(" ", "  ") + "!", "normalised"),
    "full-width letters": ("".join(chr(ord(c) + 0xFEE0) if c != " " else c for c in TEXT), "normalised"),
    "two words changed": (TEXT.replace("lazy", "tired").replace("single", "sunny"), "near"),
    "a passage in a longer text": (
        "Long ago somebody wrote of animals. " * 3 + TEXT[:80] + " and then it rained for a whole week. " * 3,
        "passage",
    ),
}


@pytest.mark.parametrize(("text", "kind"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_copy_is_found(text, kind):
    found = find_leaks([Text("left", text)], [Text("other", "something else entirely"), Text("right", TEXT)], 0.7)
    assert [(leak.kind, leak.left, leak.right) for leak in found] == [(kind, "left", "right")]


def test_words_in_another_order_are_near():
    """Sentences change places: few 5-grams break."""
    sentences = [
        "The account is opened at the counter with a passport.",
        "Fees are charged at the end of every quarter of the year.",
        "Cards are sent by mail within ten working days at no cost.",
    ]
    moved = " ".join([sentences[2], sentences[0], sentences[1]])
    assert [leak.kind for leak in find_leaks([Text("a", moved)], [Text("b", " ".join(sentences))], 0.8)] == ["near"]


def test_a_group_on_both_sides_is_found():
    found = find_leaks([Text("a", "one text", "customer 7")], [Text("b", "quite another", "customer 7")], 0.8)
    assert [leak.kind for leak in found] == ["group"]


def test_unrelated_texts_do_not_leak():
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(400)]
    texts = [Text(str(i), " ".join(rng.choices(words, k=30)), str(i)) for i in range(400)]
    assert find_leaks(texts[:200], texts[200:], 0.8) == []


def test_boilerplate_that_many_rows_hold_is_no_passage():
    head = "Answer the question below in one short sentence and do not add anything else to it at all please: "
    right = [Text(f"r{i}", f"{head} {i * 7919} {'x' * i}", f"r{i}") for i in range(300)]
    left = [Text("l", f"{head} a question that nobody has asked before", "l")]
    assert find_leaks(left, right, None) == []
    assert [leak.kind for leak in find_leaks(left, right[:3], None)] == ["passage"]


def test_near_is_left_out_where_it_is_not_wanted():
    left = [Text("a", TEXT.replace("lazy", "tired"))]
    assert "near" not in {leak.kind for leak in find_leaks(left, [Text("b", TEXT)], None)}


def test_texts_without_letters_leak_only_as_they_are():
    assert find_leaks([Text("a", "???")], [Text("b", "!!!")], None) == []
    assert [leak.kind for leak in find_leaks([Text("a", "???")], [Text("b", "???")], None)] == ["exact"]


def test_nothing_leaks_to_nothing():
    assert find_leaks([Text("a", TEXT)], [], 0.8) == []
    assert find_leaks([], [Text("a", TEXT)], 0.8) == []


def test_more_texts_than_a_batch_are_all_read():
    left = [Text(str(i), f"row number {i} says {i * i}", str(i)) for i in range(5000)] + [Text("last", TEXT)]
    assert [leak.left for leak in find_leaks(left, [Text("b", TEXT)], None)] == ["last"]
