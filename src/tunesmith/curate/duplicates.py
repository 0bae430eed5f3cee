"""The same row twice: exact and normalised copies, contradictions, near-duplicates, and the groups that follow.

Copies and contradictions are left out; what is near stays, as one group that never straddles two splits. Nothing here
depends on the order of rows: of several copies one that the dataset holds already stays, else that of the smallest key.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tunesmith.curate.pile import Numbers, Pile
from tunesmith.curation import CurateSection
from tunesmith.errors import UserError
from tunesmith.near import Pairs, chained, components, unique_pairs


@dataclass
class Duplicates:
    """What was found."""

    kept: Numbers
    """Indices of the rows that stay."""
    dropped: list[tuple[int, int, str]] = field(default_factory=list)
    """(row, the row that stays in its place or the first that it contradicts, reason)."""
    near: Pairs = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    similarity: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


COPY, NORMALISED, NEAR = "an exact copy", "a copy but for case, spaces or punctuation", "a near-duplicate"
CONTRADICTION = "the same prompt with another completion"
REVERSAL = "the same two answers, preferred the other way round"


def find(pile: Pile, curate: CurateSection, old: NDArray[np.bool_]) -> Duplicates:
    """Find copies, contradictions and near-duplicates among all rows of a pile; `old` are those of the dataset before.

    Raises:
        UserError: rows contradict each other and the recipe refuses that, or there are too many for `semantic`.
    """
    columns = pile.columns
    everything = np.arange(len(pile))
    found = Duplicates(everything)
    _one_of_each(found, [columns["exact"]], columns["whole"], old, COPY)
    _one_of_each(found, [columns["asked"], columns["answer"], columns["worse"]], columns["whole"], old, NORMALISED)
    for step in curate.steps:
        if step.name == "contradictions":
            before = len(found.dropped)
            _contradictions(found, columns["asked"], columns["answer"], columns["worse"])
            _reversals(found, columns["asked"], columns["answer"], columns["worse"])
            if step.told == "refuse" and len(found.dropped) > before:
                _refuse_contradictions(pile, found.dropped[before:])
    pairs = np.zeros((0, 2), dtype=np.int64)
    alike = np.zeros(0)
    if curate.duplicates.near is not None:
        pairs, alike = pile.near_pairs(found.kept, curate.duplicates.near)
    if curate.duplicates.semantic is not None:
        more, cosine = _semantic_pairs(pile, found.kept, curate.duplicates.semantic)
        pairs, alike = np.concatenate([pairs, more]), np.concatenate([alike, cosine])
    found.near, found.similarity = pairs, alike
    if curate.duplicates.drop_near:
        _one_of_each_cluster(found, components(len(pile), pairs), columns["whole"], old)
    return found


def same_group(pile: Pile, duplicates: Duplicates) -> Pairs:
    """Pairs of rows that belong to one group whatever else there is: by its name, or by their prompt."""
    kept = duplicates.kept
    return unique_pairs(np.concatenate([kept[chained(pile.columns[name][kept])] for name in ("group", "prompt")]))


def _one_of_each(found: Duplicates, keys: list[Numbers], rank: Numbers, old: NDArray[np.bool_], reason: str) -> None:
    """Keep of rows with equal keys an old one, else the one of the smallest rank."""
    kept = found.kept
    order = kept[np.lexsort([rank[kept], ~old[kept], *(key[kept] for key in keys)])]
    same = np.ones(max(0, len(order) - 1), dtype=bool)
    for key in keys:
        same &= key[order[1:]] == key[order[:-1]]
    copy = np.concatenate([[False], same]) if len(order) else np.zeros(0, dtype=bool)
    first = order[np.maximum.accumulate(np.where(copy, 0, np.arange(len(order))))] if len(order) else order
    found.dropped += [(int(row), int(stays), reason) for row, stays in zip(order[copy], first[copy], strict=True)]
    found.kept = np.sort(order[~copy])


def _one_of_each_cluster(found: Duplicates, labels: Numbers, rank: Numbers, old: NDArray[np.bool_]) -> None:
    """Keep of each cluster its old rows, else the one of the smallest rank."""
    kept_old = found.kept[old[found.kept]]
    # A row that was judged on must not give way to one that came later.
    stays = dict(zip(labels[kept_old[::-1]].tolist(), kept_old[::-1].tolist(), strict=True))
    late = found.kept[np.isin(labels[found.kept], labels[kept_old]) & ~old[found.kept]]
    found.dropped += [(row, stays[int(labels[row])], NEAR) for row in late.tolist()]
    found.kept = np.setdiff1d(found.kept, late)
    apart = labels.copy()
    apart[old] = len(labels) + np.flatnonzero(old)
    _one_of_each(found, [apart], rank, old, NEAR)
    alive = np.isin(found.near, found.kept).all(axis=1)
    found.near, found.similarity = found.near[alive], found.similarity[alive]


def _contradictions(found: Duplicates, asked: Numbers, answer: Numbers, worse: Numbers) -> None:
    """Leave out every row whose prompt stands with two completions: nothing says which is right.

    Where one answer is preferred to another both may be good: many pairs may stand with one prompt.
    """
    preferring = found.kept[worse[found.kept] != 0]
    kept = found.kept[worse[found.kept] == 0]
    order = kept[np.lexsort([answer[kept], asked[kept]])]
    # Equal answers are copies and gone already: whoever asks the same answers otherwise.
    same = asked[order[1:]] == asked[order[:-1]]
    disputed = np.zeros(len(order), dtype=bool)
    disputed[1:] |= same
    disputed[:-1] |= same
    other = np.roll(order, 1)
    other[:-1] = np.where(same, order[1:], other[:-1])
    found.dropped += [
        (int(row), int(against), CONTRADICTION) for row, against in zip(order[disputed], other[disputed], strict=True)
    ]
    found.kept = np.sort(np.concatenate([order[~disputed], preferring]))


def _reversals(found: Duplicates, asked: Numbers, answer: Numbers, worse: Numbers) -> None:
    """Leave out both rows of which one prefers what the other rejects to what it prefers."""
    preferring = found.kept[worse[found.kept] != 0].tolist()
    rows = {(int(asked[row]), int(answer[row]), int(worse[row])): row for row in preferring}
    disputed = {
        row: against
        for (prompt, better, other), row in rows.items()
        if (against := rows.get((prompt, other, better))) is not None and against != row
    }
    found.dropped += [(row, against, REVERSAL) for row, against in sorted(disputed.items())]
    found.kept = np.setdiff1d(found.kept, np.array(sorted(disputed), dtype=np.int64))


def _refuse_contradictions(pile: Pile, dropped: list[tuple[int, int, str]]) -> None:
    problems = [
        f"{pile.place(row)}: asks what {pile.place(against)} asks, with "
        + ("the two answers preferred the other way round" if reason == REVERSAL else "another completion")
        for row, against, reason in sorted(dropped)
    ]
    raise UserError(
        problems, hint="nothing was written; keep the right one of each, or tell the step `contradictions: drop`"
    )


SEMANTIC_ROWS = 50_000
BLOCK = 1024


def _semantic_pairs(pile: Pile, kept: Numbers, threshold: float) -> tuple[Pairs, NDArray[np.float64]]:
    from tunesmith.embedder import embed

    if len(kept) > SEMANTIC_ROWS:
        raise UserError(
            f"curate.duplicates.semantic: {len(kept)} rows are left; it compares {SEMANTIC_ROWS} at most",
            hint="leave it out, or let earlier steps and duplicates.drop_near leave fewer rows",
        )
    vectors = embed(pile.forms(kept.tolist()))
    pairs, cosines = [np.zeros((0, 2), dtype=np.int64)], [np.zeros(0)]
    for start in range(0, len(vectors), BLOCK):
        cosine = vectors[start : start + BLOCK] @ vectors.T
        left, right = np.nonzero(cosine >= threshold)
        later = left + start < right
        pairs.append(np.stack([kept[left[later] + start], kept[right[later]]], axis=1))
        cosines.append(cosine[left[later], right[later]].astype(np.float64))
    return np.concatenate(pairs), np.concatenate(cosines)
