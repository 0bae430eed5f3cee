"""Choose n of N training rows: within quotas, without the oddest, so that every row has one chosen near it.

Coverage is facility location: the sum over all rows of their similarity to the nearest chosen one. The greedy choice is
within 1 - 1/e of the best (Nemhauser, Wolsey and Fisher 1978), and evaluating only what may still win gives the same
choice faster (Minoux 1978). The order of choice is nested: its first half is the choice of half as many.
"""

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.curation import SelectSection

BLOCK = 1024


def choose(
    vectors: NDArray[np.float32],
    strata: Sequence[str],
    losses: NDArray[np.float64] | None,
    select: SelectSection,
) -> list[int]:
    """Indices of the rows chosen, in the order of choice within each stratum, strata taking turns."""
    among = within_losses(losses, select, len(vectors))
    names = sorted({strata[i] for i in among})
    held = {name: [i for i in among if strata[i] == name] for name in names}
    quotas = quotas_of({name: len(rows) for name, rows in held.items()}, select)
    chosen = {name: [held[name][i] for i in coverage(vectors[held[name]], quotas[name])] for name in names}
    # In turns by share, so that a prefix of the whole holds each stratum in its share too.
    rows = [row for name in names for row in chosen[name]]
    stratum = np.repeat(np.arange(len(names)), [len(chosen[name]) for name in names])
    return [rows[i] for i in in_turns(stratum, np.arange(len(rows))).tolist()]


def in_turns(strata: NDArray[np.int64], rank: NDArray[Any]) -> NDArray[np.int64]:
    """An order in which every prefix holds each stratum in its share; within a stratum by rank."""
    order = np.lexsort([rank, strata])
    begins = np.flatnonzero(np.concatenate([[True], strata[order][1:] != strata[order][:-1]]))
    sizes = np.diff(np.concatenate([begins, [len(order)]]))
    place = (np.arange(len(order)) - np.repeat(begins, sizes)) / np.repeat(sizes, sizes)
    return np.asarray(order[np.lexsort([strata[order], place])], dtype=np.int64)


def within_losses(losses: NDArray[np.float64] | None, select: SelectSection, n: int) -> list[int]:
    """The rows that are left when the easiest and the hardest for the base are taken away."""
    if losses is None:
        return list(range(n))
    order = np.argsort(losses, kind="stable")
    low, high = int(select.leave_easiest * n), n - int(select.leave_hardest * n)
    return sorted(order[low:high].tolist())


def quotas_of(held: Mapping[str, int], select: SelectSection) -> dict[str, int]:
    """Rows for each stratum: what the recipe says, and of the rest the share that a stratum has of what is held."""
    quotas = {name: min(select.quotas[name], held[name]) for name in held if name in select.quotas}
    rest = {name: count for name, count in held.items() if name not in quotas}
    left = min(max(0, select.rows - sum(quotas.values())), sum(rest.values()))
    total = sum(rest.values())
    exact = {name: left * count / total for name, count in rest.items()} if total else {}
    shares = Counter({name: int(value) for name, value in exact.items()})
    # Largest remainders take what rounding down has left.
    by_remainder = sorted(exact, key=lambda name: (shares[name] - exact[name], name))
    shares.update(by_remainder[: left - sum(shares.values())])
    return quotas | {name: shares[name] for name in rest}


def coverage(vectors: NDArray[np.float32], n: int) -> list[int]:
    """The first n rows of the greedy choice by facility location; `vectors` are of length 1."""
    if n >= len(vectors):
        n = len(vectors)
    nearest = np.zeros(len(vectors), dtype=np.float32)
    gains = np.concatenate(
        [
            np.maximum(vectors @ vectors[start : start + BLOCK].T, 0).sum(axis=0)
            for start in range(0, len(vectors), BLOCK)
        ]
        or [np.zeros(0, dtype=np.float32)]
    )
    heap = [(-float(gain), i) for i, gain in enumerate(gains)]
    heapq.heapify(heap)
    chosen: list[int] = []
    while len(chosen) < n:
        _, i = heapq.heappop(heap)
        similarity = vectors @ vectors[i]
        gain = float(np.maximum(similarity - nearest, 0).sum())
        # An old gain is an upper bound: what still leads with its new one wins.
        if heap and (-gain, i) > heap[0]:
            heapq.heappush(heap, (-gain, i))
        else:
            chosen.append(i)
            nearest = np.maximum(nearest, similarity)
    return chosen
