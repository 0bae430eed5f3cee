"""The choice of training rows against brute force."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.curate.select import choose, coverage, quotas_of, within_losses
from tunesmith.curation import SelectSection


def unit(rows, seed=0, dimensions=6):
    vectors = np.random.default_rng(seed).normal(size=(rows, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def value(vectors, chosen):
    """The sum of every row's similarity to the nearest chosen one, no less than 0 each."""
    return float(np.maximum(vectors @ vectors[list(chosen)].T, 0).max(axis=1).sum()) if chosen else 0.0


def plain_greedy(vectors, n):
    chosen = []
    for _ in range(n):
        rest = [i for i in range(len(vectors)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: (round(value(vectors, [*chosen, i]), 4), -i)))
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_the_lazy_choice_is_the_greedy_choice(seed):
    vectors = unit(40, seed)
    lazy, greedy = coverage(vectors, 12), plain_greedy(vectors, 12)
    assert value(vectors, lazy) == pytest.approx(value(vectors, greedy), rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_as_good_as_greedy_promises(seed):
    vectors = unit(12, seed)
    best = max(value(vectors, chosen) for chosen in combinations(range(12), 3))
    assert value(vectors, coverage(vectors, 3)) >= (1 - 1 / np.e) * best


def test_a_smaller_choice_is_the_beginning_of_a_larger_one():
    vectors = unit(60)
    assert coverage(vectors, 30)[:10] == coverage(vectors, 10)


def test_one_of_each_cluster_comes_before_a_second_of_any():
    centres = unit(5, dimensions=40)
    vectors = np.repeat(centres, [30, 3, 3, 3, 3], axis=0)
    first = coverage(vectors, 5)
    assert len({tuple(vectors[i]) for i in first}) == 5


def test_more_than_there_is_is_all_there_is():
    assert sorted(coverage(unit(4), 9)) == [0, 1, 2, 3]
    assert coverage(np.zeros((0, 3), dtype=np.float32), 2) == []


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 50), min_size=1),
    st.integers(1, 120),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 20)),
)
@settings(max_examples=300, deadline=None)
def test_quotas_are_kept_and_the_rest_shares_what_is_left(held, rows, quotas):
    found = quotas_of(held, SelectSection(rows=rows, quotas=quotas))
    assert set(found) == set(held)
    for name, count in found.items():
        assert 0 <= count <= held[name]
        if name in quotas:
            assert count == min(quotas[name], held[name])
    stated = sum(min(quotas[name], held[name]) for name in held if name in quotas)
    free = sum(count for name, count in held.items() if name not in quotas)
    assert sum(found.values()) == stated + min(max(0, rows - stated), free)


def test_the_easiest_and_hardest_are_left_out():
    losses = np.array([0.5, 9.0, 0.1, 1.0, 2.0, 0.2, 3.0, 1.5, 0.9, 0.8])
    left = within_losses(losses, SelectSection(rows=5, leave_easiest=0.2, leave_hardest=0.1), 10)
    assert left == [0, 3, 4, 6, 7, 8, 9]


def test_each_prefix_of_the_choice_holds_the_strata_in_their_shares():
    strata = ["a"] * 60 + ["b"] * 20
    order = choose(unit(80), strata, None, SelectSection(rows=40))
    assert len(set(order)) == 40
    for n in (8, 20, 40):
        assert abs(sum(strata[i] == "b" for i in order[:n]) - n / 4) <= 1
