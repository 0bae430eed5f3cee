"""Texts that are nearly the same: MinHash over character 5-grams.

Shingles are made in numpy for many texts at once, signatures by rensa (in Rust), candidates by banding: two texts whose
sets of shingles have Jaccard similarity s meet in one of b bands of r slots with probability 1 - (1 - s^r)^b. With the
bands here that is 0.986 at 0.8 and 0.004 at 0.3. Those that meet are then compared by their exact similarity.
Source: Broder 1997 (resemblance); Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4 (banding).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

SHINGLE = 5
SLOTS = 128
BAND = 7
BANDS = SLOTS // BAND
SEED = 1
FEW = 256
"""Texts that are hashed at once: so many stay in a core's cache."""
BATCH = 4096
"""Pairs of which the texts are held at once."""

Hashes = NDArray[np.uint64]
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


def band_keys(forms: Sequence[str]) -> Hashes:
    """A key for each band of each text's signature, shape (texts, BANDS); texts that share one are candidates."""
    from rensa import RMinHash

    codes, offsets = shingles(forms)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(_mixed(codes), offsets.astype(np.uint64), SLOTS, SEED)
    slots = np.fromiter(chain.from_iterable(matrix.to_rows()), dtype=np.uint64, count=len(forms) * SLOTS)
    slots = slots.reshape(len(forms), SLOTS)[:, : BANDS * BAND].reshape(len(forms), BANDS, BAND)
    keys = np.zeros((len(forms), BANDS), dtype=np.uint64)
    for slot in range(BAND):
        keys = (keys ^ slots[:, :, slot]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def meeting(keys: Hashes) -> Pairs:
    """Pairs of indices whose keys are equal: each with the first of its kind and with the one before it."""
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    begins = np.flatnonzero(np.concatenate([[True], ~same])) if len(order) else np.zeros(0, dtype=np.int64)
    first = np.repeat(order[begins], np.diff(np.concatenate([begins, [len(order)]])))
    with_first = np.stack([first[1:][same], order[1:][same]], axis=1)
    with_last = np.stack([order[:-1][same], order[1:][same]], axis=1)
    return unique_pairs(np.concatenate([with_first, with_last]))


def unique_pairs(pairs: Pairs) -> Pairs:
    """Each pair once, the smaller index first, sorted."""
    if not len(pairs):
        return np.zeros((0, 2), dtype=np.int64)
    low, high = pairs.min(axis=1), pairs.max(axis=1)
    codes = np.unique((low.astype(np.uint64) << np.uint64(32)) | high.astype(np.uint64))
    return np.stack([codes >> np.uint64(32), codes & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)


def candidates(bands: Iterable[Hashes]) -> Pairs:
    """Pairs that meet in any band; one band's keys are held at a time."""
    found = np.zeros((0, 2), dtype=np.int64)
    for keys in bands:
        found = unique_pairs(np.concatenate([found, meeting(keys)]))
    return found


def similarities(pairs: Pairs, forms: Callable[[Numbers], Sequence[str]]) -> NDArray[np.float64]:
    """The exact Jaccard similarity of each pair; `forms` gives the texts of some indices."""
    return np.concatenate([_similarities(part, forms) for part in _parts(pairs)] or [np.zeros(0)])


def _parts(pairs: Pairs) -> Iterator[Pairs]:
    for start in range(0, len(pairs), BATCH):
        yield pairs[start : start + BATCH]


def _similarities(pairs: Pairs, forms: Callable[[Numbers], Sequence[str]]) -> NDArray[np.float64]:
    needed, where = np.unique(pairs, return_inverse=True)
    texts = forms(needed)
    codes, offsets = shingles(texts)
    sets: dict[int, Hashes] = {}

    def set_of(text: int) -> Hashes:
        if text not in sets:
            own = np.sort(codes[offsets[text] : offsets[text + 1]])
            sets[text] = own[np.append(own[1:] != own[:-1], True)] if len(own) else own
        return sets[text]

    found = np.ones(len(pairs))
    sides = where.reshape(pairs.shape)
    for place in range(len(pairs)):
        left, right = int(sides[place, 0]), int(sides[place, 1])
        # A text without a word is near nothing, not even to another one.
        if texts[left] != texts[right] or not texts[left]:
            together = np.sort(np.concatenate((set_of(left), set_of(right))))
            both = int(np.count_nonzero(together[1:] == together[:-1]))
            found[place] = both / max(1, len(together) - both)
    return found


def components(n: int, pairs: Pairs) -> NDArray[np.int64]:
    """A number for each of n things, the same for those that pairs connect."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(pairs), dtype=np.int8)
    _, labels = connected_components(coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(n, n)), directed=False)
    return np.asarray(labels, dtype=np.int64)
