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


def test_a_text_has_the_same_keys_whatever_stands_beside_it():
    forms = ["the first text of all", "another one", "x", ""]
    alone = np.concatenate([near.band_keys([form]) for form in forms])
    assert np.array_equal(near.band_keys(forms), alone)


@pytest.mark.parametrize(("changed", "least", "most"), [(0.03, 0.99, 1.0), (0.6, 0.0, 0.05)])
def test_texts_meet_as_often_as_the_bands_promise(changed, least, most):
    """Texts of 60 words with a share of the words changed: about 0.85 alike, or about 0.1."""
    rng = random.Random(0)
    met = 0
    for _ in range(200):
        one = words(rng, 60).split()
        other = [words(rng, 1) if rng.random() < changed else word for word in one]
        keys = near.band_keys([" ".join(one), " ".join(other)])
        met += bool((keys[0] == keys[1]).any())
    assert least <= met / 200 <= most


def test_candidates_are_pairs_with_a_key_in_common_in_any_band():
    bands = [np.array([5, 7, 5, 9], dtype=np.uint64), np.array([1, 2, 3, 2], dtype=np.uint64)]
    assert near.candidates(bands).tolist() == [[0, 2], [1, 3]]


@given(st.lists(st.integers(0, 6), max_size=12))
@settings(max_examples=200, deadline=None)
def test_what_meets_connects_exactly_the_equal_keys(keys):
    pairs = near.meeting(np.array(keys, dtype=np.uint64))
    labels = near.components(len(keys), pairs)
    for i, a in enumerate(keys):
        for j, b in enumerate(keys):
            assert (labels[i] == labels[j]) == (a == b)


def test_no_texts_have_no_keys():
    assert near.band_keys([]).shape == (0, near.BANDS)
    assert near.candidates([np.zeros(0, dtype=np.uint64)]).shape == (0, 2)
