"""Shingles, signatures and what meets, against plain sets."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith import near
from tunesmith.text import shingle_form

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def plain_shingles(form: str) -> set[str]:
    padded = form + "\0" * (near.SHINGLE - 1)
    return {padded[i : i + near.SHINGLE] for i in range(len(form))}


def plain_jaccard(a: str, b: str) -> float:
    left, right = plain_shingles(a), plain_shingles(b)
    return len(left & right) / max(1, len(left | right))


def words(rng: random.Random, count: int) -> str:
    return " ".join("".join(rng.choices(ALPHABET, k=rng.randint(2, 9))) for _ in range(count))


@given(st.lists(st.text(max_size=30), max_size=6))
@settings(max_examples=200, deadline=None)
def test_shingles_are_as_many_and_as_different_as_those_of_plain_sets(texts):
    forms = [shingle_form(text) for text in texts]
    hashes, offsets = near.shingles(forms)
    assert offsets.tolist() == [sum(map(len, forms[:i])) for i in range(len(forms) + 1)]
    for form, begin, end in zip(forms, offsets, offsets[1:], strict=False):
        assert len(set(hashes[int(begin) : int(end)].tolist())) == len(plain_shingles(form))


@given(st.lists(st.text(alphabet="abc ", min_size=1, max_size=30), min_size=2, max_size=5))
@settings(max_examples=200, deadline=None)
def test_similarity_is_that_of_plain_sets(texts):
    forms = [shingle_form(text) for text in texts]
    pairs = np.array([(i, j) for i in range(len(forms)) for j in range(i + 1, len(forms))])
    found = near.similarities(pairs, lambda indices: [forms[i] for i in indices])
    assert found == pytest.approx([plain_jaccard(forms[i], forms[j]) for i, j in pairs])


def pairs_among(forms: list[str], threshold: float) -> set[tuple[int, int]]:
    """Pairs of texts that are at least as alike as the threshold, as curation finds them."""
    signatures = near.sign(forms)
    met, _ = near.candidates(near.band_keys(signatures, threshold).T, near.marks_of(signatures), threshold)
    alike = near.similarities(met, lambda indices: [forms[i] for i in indices.tolist()])
    return {(a, b) for a, b in met[alike >= threshold].tolist()}


def test_a_text_has_the_same_keys_whatever_stands_beside_it():
    forms = ["the first text of all", "another one", "x", ""]
    alone = np.concatenate([near.sign([form]) for form in forms])
    assert np.array_equal(near.sign(forms), alone)


@pytest.mark.parametrize("threshold", [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_bands_are_as_wide_as_the_threshold_allows(threshold):
    bands, width = near.banding(threshold)
    assert bands * width <= near.SLOTS
    assert 1 - (1 - threshold**width) ** bands >= near.FOUND or width == 1
    wider = width + 1
    assert threshold == 1 or 1 - (1 - threshold**wider) ** (near.SLOTS // wider) < near.FOUND


@pytest.mark.parametrize("threshold", [0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_pairs_on_the_threshold_are_found_whatever_it_is(threshold):
    """Pairs that are a little more alike than the threshold: nearly all are found, and no pair that is not."""
    rng = random.Random(0)
    forms: list[str] = []
    wanted = set()
    while len(wanted) < 120:
        one = words(rng, 60).split()
        other = [words(rng, 1) if rng.random() < 0.5 * (1 - threshold) else word for word in one]
        pair = (" ".join(one), " ".join(other))
        if threshold <= plain_jaccard(*pair) < threshold + 0.05:
            wanted.add((len(forms), len(forms) + 1))
            forms += pair
    found = pairs_among(forms, threshold)
    assert found <= wanted
    assert len(found) >= 0.95 * len(wanted)


def test_rows_of_one_template_do_not_hide_each_other_and_their_order_changes_nothing():
    """A long template that all share, so that most meet in some band; in it pairs that are nearly the same."""
    rng = random.Random(0)
    template = "please read the following note of a customer and say in one word what it is about"
    forms = []
    for _ in range(400):
        note = words(rng, 8)
        # One letter more at the end.
        forms += [f"{template} {note}", f"{template} {note}s"]
    exact = {(i, j) for i in range(800) for j in range(i + 1, 800) if plain_jaccard(forms[i], forms[j]) >= 0.9}
    assert {(i, i + 1) for i in range(0, 800, 2)} <= exact
    found = pairs_among(forms, 0.9)
    assert found <= exact
    assert len(found) >= 0.98 * len(exact)
    order = list(range(800))
    rng.shuffle(order)
    again = pairs_among([forms[i] for i in order], 0.9)
    assert {tuple(sorted((order[a], order[b]))) for a, b in again} == found


def test_of_a_crowd_too_large_to_compare_the_likest_are_still_found(monkeypatch):
    monkeypatch.setattr(near, "MOST_PAIRS", 500)
    monkeypatch.setattr(near, "WINDOW", 4)
    marks = np.random.default_rng(0).integers(0, 256, (300, near.SLOTS)).astype(np.uint8)
    both = np.concatenate([marks, marks])
    met, crowded = near.candidates([np.zeros(600, dtype=np.uint64)], both, 0.8)
    assert crowded == 600
    assert met.tolist() == [[i, i + 300] for i in range(300)]


@pytest.mark.parametrize(("changed", "least", "most"), [(0.03, 0.99, 1.0), (0.6, 0.0, 0.05)])
def test_texts_meet_as_often_as_the_bands_promise(changed, least, most):
    """Texts of 60 words with a share of the words changed: about 0.85 alike, or about 0.1."""
    rng = random.Random(0)
    met = 0
    for _ in range(200):
        one = words(rng, 60).split()
        other = [words(rng, 1) if rng.random() < changed else word for word in one]
        keys = near.band_keys(near.sign([" ".join(one), " ".join(other)]), 0.8)
        met += bool((keys[0] == keys[1]).any())
    assert least <= met / 200 <= most


def test_candidates_are_pairs_with_a_key_in_common_in_any_band():
    bands = [np.array([5, 7, 5, 9], dtype=np.uint64), np.array([1, 2, 3, 2], dtype=np.uint64)]
    alike = np.zeros((4, near.SLOTS), dtype=np.uint8)
    assert near.candidates(bands, alike, 0.8)[0].tolist() == [[0, 2], [1, 3]]
    sides = np.array([True, True, False, True])
    assert near.candidates(bands, alike, 0.8, sides)[0].tolist() == [[0, 2]]
    apart = np.arange(4, dtype=np.uint8)[:, None].repeat(near.SLOTS, axis=1)
    assert near.candidates(bands, apart, 0.8)[0].tolist() == []


@given(st.lists(st.integers(0, 6), max_size=12), st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_what_meets_are_all_pairs_of_equal_keys(keys, batch):
    marks = np.zeros((len(keys), near.SLOTS), dtype=np.uint8)
    before, near.BATCH = near.BATCH, batch
    try:
        found, crowded = near.candidates([np.array(keys, dtype=np.uint64)], marks, 0.8)
    finally:
        near.BATCH = before
    assert {tuple(pair) for pair in found.tolist()} == {
        (i, j) for i in range(len(keys)) for j in range(i + 1, len(keys)) if keys[i] == keys[j]
    }
    assert crowded == 0


def test_no_texts_have_no_keys():
    assert near.band_keys(near.sign([]), 0.8).shape == (0, 18)
    nothing = np.zeros((0, near.SLOTS), dtype=np.uint8)
    assert near.candidates([np.zeros(0, dtype=np.uint64)], nothing, 0.8)[0].shape == (0, 2)
