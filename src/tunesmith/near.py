"""Texts that are nearly the same: MinHash over character 5-grams.

Shingles are made in numpy for many texts at once, signatures by rensa (in Rust), candidates by banding: two texts whose
sets of shingles have Jaccard similarity s meet in one of b bands of r slots with probability 1 - (1 - s^r)^b. The bands
are as wide as a threshold allows that finds 98 % of the pairs that lie just on it. All that meet are compared, by their
signatures first and then by their exact similarity, so what is found does not depend on the order of texts.
Source: Broder 1997 (resemblance); Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4 (banding).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from math import sqrt

import numpy as np
from numpy.typing import NDArray

SHINGLE = 5
SLOTS = 128
SEED = 1
FOUND = 0.98
"""Share of the pairs just on the threshold that are to meet."""
FEW = 256
"""Texts that are hashed at once: so many stay in a core's cache."""
BATCH = 1 << 16
"""Pairs whose signatures are compared at once."""
EXACT = 1 << 12
"""Pairs whose texts are compared at once."""
MOST_PAIRS = 1 << 24
"""Pairs of one band that are compared; where more meet, the largest crowds are not compared in full."""
WINDOW = 64
"""In a crowd, each text is compared with so many that follow it in the order of signatures."""

Hashes = NDArray[np.uint64]
Marks = NDArray[np.uint8]
Numbers = NDArray[np.int64]
Pairs = NDArray[np.int64]
"""Shape (n, 2): indices of two texts, the smaller first."""


def shingles(forms: Sequence[str]) -> tuple[Hashes, Numbers]:
    """The character 5-grams of each text as numbers of 40 bits, and the offsets at which each text's begin.

    `forms` are texts in `text.shingle_form`. A text has as many shingles as characters: the last ones run past its end.
    There is one offset more than texts.
    """
    codes, lengths = [np.zeros(0, dtype=np.uint64)], [np.zeros(1, dtype=np.int64)]
    for start in range(0, len(forms), FEW):
        some = forms[start : start + FEW]
        codes.append(_shingles(some))
        lengths.append(np.array([len(form) for form in some], dtype=np.int64))
    return np.concatenate(codes), np.cumsum(np.concatenate(lengths))


def _shingles(forms: Sequence[str]) -> Hashes:
    """A byte for each character, and the five bytes from each on as one number."""
    # Zeros part the texts, and what reads eight bytes must not run past the last.
    text = "\0\0\0\0".join([*forms, "\0\0\0\0"])
    if text.isascii():
        codes = np.frombuffer(text.encode(), dtype=np.uint8)
    else:
        wide = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        # Characters beyond ASCII share 128 bytes; five in a row that all collide are one in 2^35.
        codes = np.where(wide < 128, wide, 128 + ((wide * np.uint32(2654435761)) >> np.uint32(25))).astype(np.uint8)
    runs: Hashes = np.ndarray(len(codes) - 7, dtype="<u8", buffer=codes, strides=(1,))
    return np.asarray(runs[codes[:-7] != 0] & np.uint64(0xFF_FFFF_FFFF), dtype=np.uint64)


def _mixed(codes: Hashes) -> Hashes:
    """Numbers as hashes, each bit of which depends on all (the finaliser of splitmix64)."""
    hashes = codes * np.uint64(0x9E3779B97F4A7C15)
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(32)
    return hashes


def banding(threshold: float) -> tuple[int, int]:
    """How many bands of how many slots find pairs of a similarity: the widest that still find `FOUND` of them."""
    found = [r for r in range(1, SLOTS) if 1 - (1 - threshold**r) ** (SLOTS // r) >= FOUND]
    width = max(found, default=1)
    return SLOTS // width, width


def sign(forms: Sequence[str]) -> Hashes:
    """The MinHash signature of each text, shape (texts, SLOTS)."""
    from rensa import RMinHash

    codes, offsets = shingles(forms)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(_mixed(codes), offsets.astype(np.uint64), SLOTS, SEED)
    slots = np.fromiter(chain.from_iterable(matrix.to_rows()), dtype=np.uint64, count=len(forms) * SLOTS)
    return np.asarray(slots.reshape(len(forms), SLOTS))


def band_keys(signatures: Hashes, threshold: float) -> Hashes:
    """A key for each band of each signature, shape (texts, bands); texts that share one are candidates."""
    bands, width = banding(threshold)
    slots = signatures[:, : bands * width].reshape(len(signatures), bands, width)
    keys = np.zeros((len(signatures), bands), dtype=np.uint64)
    for slot in range(width):
        keys = (keys ^ slots[:, :, slot]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def marks_of(signatures: Hashes) -> Marks:
    """A byte of each slot: enough to tell how alike two texts are, roughly."""
    return signatures.astype(np.uint8)


def unique_pairs(pairs: Pairs) -> Pairs:
    """Each pair once, the smaller index first, sorted."""
    if not len(pairs):
        return np.zeros((0, 2), dtype=np.int64)
    low, high = pairs.min(axis=1), pairs.max(axis=1)
    codes = np.unique((low.astype(np.uint64) << np.uint64(32)) | high.astype(np.uint64))
    return np.stack([codes >> np.uint64(32), codes & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)


def candidates(
    bands: Iterable[Hashes], marks: Marks, threshold: float, sides: NDArray[np.bool_] | None = None
) -> tuple[Pairs, int]:
    """Pairs that meet in any band and whose signatures are about as alike as the threshold; and how many are crowded.

    One band's keys are held at a time. With `sides` only pairs across the two are taken. Crowded are texts of which so
    many meet that not every pair was compared.
    """
    # Slots agree with the similarity as probability: two and a half deviations below the threshold leave out 0.6 %.
    least = threshold - 2.5 * sqrt(threshold * (1 - threshold) / SLOTS)
    found = np.zeros((0, 2), dtype=np.int64)
    crowded = np.zeros(len(marks), dtype=np.bool_)
    for number, keys in enumerate(bands):
        kept = [found]
        for pairs in _meeting(keys, marks, crowded, number):
            across = pairs if sides is None else pairs[sides[pairs[:, 0]] != sides[pairs[:, 1]]]
            agree = np.count_nonzero(marks[across[:, 0]] == marks[across[:, 1]], axis=1)
            kept.append(across[agree >= least * SLOTS])
        found = unique_pairs(np.concatenate(kept))
    return found, int(crowded.sum())


def _meeting(keys: Hashes, marks: Marks, crowded: NDArray[np.bool_], number: int) -> Iterator[Pairs]:
    """All pairs of indices whose keys are equal, some at a time; `crowded` is set where they are too many for that."""
    order = np.argsort(keys, kind="stable")
    begins = np.flatnonzero(np.concatenate([[True], keys[order[1:]] != keys[order[:-1]]])) if len(order) else order
    sizes = np.diff(np.concatenate([begins, [len(order)]]))
    most = _largest_crowd(sizes)
    for begin, size in zip(begins[sizes > most].tolist(), sizes[sizes > most].tolist(), strict=True):
        crowd = order[begin : begin + size]
        crowded[crowd] = True
        # In each band in another order: what is alike stands side by side in most of them.
        turned = np.roll(marks[crowd], 7 * number, axis=1)
        order[begin : begin + size] = crowd[np.argsort(np.ascontiguousarray(turned).view(f"S{SLOTS}")[:, 0])]
    # How many follow each text in its group, and with how many of them it is compared.
    follow = np.repeat(begins + sizes, sizes) - np.arange(len(order)) - 1
    reach = np.minimum(follow, np.where(np.repeat(sizes, sizes) > most, WINDOW, follow))
    alive, apart = np.flatnonzero(reach > 0), 1
    some: list[Pairs] = []
    while len(alive):
        some.append(np.stack([order[alive], order[alive + apart]], axis=1))
        apart += 1
        alive = alive[reach[alive] >= apart]
        if sum(map(len, some)) >= BATCH or not len(alive):
            yield from _parts(np.concatenate(some), BATCH)
            some = []


def _largest_crowd(sizes: Numbers) -> int:
    """The largest number of texts that meet of which all pairs can be compared, with those of all smaller ones."""
    kinds, counts = np.unique(sizes, return_counts=True)
    pairs = np.cumsum(counts * (kinds * (kinds - 1) // 2))
    fits = kinds[pairs <= MOST_PAIRS]
    return int(fits[-1]) if len(fits) else WINDOW


def similarities(pairs: Pairs, forms: Callable[[Numbers], Sequence[str]]) -> NDArray[np.float64]:
    """The exact Jaccard similarity of each pair; `forms` gives the texts of some indices."""
    return np.concatenate([_similarities(part, forms) for part in _parts(pairs, EXACT)] or [np.zeros(0)])


def _parts(pairs: Pairs, size: int) -> Iterator[Pairs]:
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


def _similarities(pairs: Pairs, forms: Callable[[Numbers], Sequence[str]]) -> NDArray[np.float64]:
    from scipy.sparse import csr_array

    needed, where = np.unique(pairs, return_inverse=True)
    texts = forms(needed)
    sides = where.reshape(pairs.shape)
    found = np.ones(len(pairs))
    # A text without a word is near nothing, not even to another one.
    left: list[int] = sides[:, 0].tolist()
    right: list[int] = sides[:, 1].tolist()
    other = np.array([texts[a] != texts[b] or not texts[a] for a, b in zip(left, right, strict=True)], dtype=np.bool_)
    if not other.any():
        return found
    needed, where = np.unique(sides[other], return_inverse=True)
    codes, offsets = shingles([texts[i] for i in needed.tolist()])
    # A row for each text, a one for each of its shingles; 31 bits of their hashes tell them apart.
    columns = (_mixed(codes) >> np.uint64(33)).astype(np.int32)
    held = csr_array((np.ones(len(columns), dtype=np.int32), columns, offsets), shape=(len(needed), 2**31 - 1))
    held.sum_duplicates()
    held.data[:] = 1
    sizes = np.diff(held.indptr)
    first, second = where.reshape(-1, 2).T
    both: Numbers = np.asarray(held[first].multiply(held[second]).sum(axis=1)).ravel()
    found[other] = both / np.maximum(1, sizes[first] + sizes[second] - both)
    return found


def chained(keys: Numbers) -> Pairs:
    """Pairs of indices that chain equal keys together."""
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    return np.stack([order[:-1][same], order[1:][same]], axis=1)


def components(n: int, pairs: Pairs) -> NDArray[np.int64]:
    """A number for each of n things, the same for those that pairs connect."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(pairs), dtype=np.int8)
    _, labels = connected_components(coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(n, n)), directed=False)
    return np.asarray(labels, dtype=np.int64)
