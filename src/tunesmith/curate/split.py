"""Deal groups of rows to train, dev, gate and confirm, so that nothing leaks and nothing moves.

A group's split is a function of the seed and its name alone; or, stratified, it goes where its stratum lacks most, in
the order of those numbers; or its newest row's date decides. A row that a dataset holds already stays where it is,
whatever is added: a new row that would tie two splits is left out, and a cut that would move an old one is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.curate.pile import Numbers
from tunesmith.curate.work import NO_DAY, hash64, prompt_key
from tunesmith.curation import SplitSection, TimeSection
from tunesmith.errors import UserError
from tunesmith.near import Pairs, chained, components
from tunesmith.rows import SPLITS, Dataset, Split, read_rows

NOWHERE = -1
"""Stands for no split where a split's number in SPLITS stands."""


def split_of(point: float, shares: Mapping[Split, float]) -> int:
    """The split of a group's point between 0 and 1, laid over the shares."""
    for number, split in enumerate(SPLITS):
        point -= shares[split]
        if point < 0:
            return number
    return 0


@dataclass(frozen=True)
class Known:
    """Where the rows of an earlier curation lie: splits by hash of id, and by hash of prompt."""

    ids: dict[int, int]
    prompts: dict[int, int]

    @classmethod
    def of(cls, dataset: Dataset, splits: Sequence[Split]) -> "Known":
        """What some splits of a dataset hold."""
        ids: dict[int, int] = {}
        prompts: dict[int, int] = {}
        for split in splits:
            path, number = dataset.directory / f"{split}.jsonl", SPLITS.index(split)
            for row in read_rows(path) if path.stat().st_size else []:
                ids[hash64(row.id)] = number
                prompts[hash64(prompt_key(row.prompt_text))] = number
        return cls(ids, prompts)

    def holds(self, columns: Mapping[str, Numbers]) -> NDArray[np.bool_]:
        """Which rows of a pile are rows of the earlier curation, by id."""
        return np.isin(columns["id"], np.array(list(self.ids), dtype=np.int64))

    def splits(self, columns: Mapping[str, Numbers]) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
        """Where each row lies already, or NOWHERE; and which are tied to two splits by id and by prompt."""
        by_id = np.array([self.ids.get(key, NOWHERE) for key in columns["id"].tolist()], dtype=np.int8)
        by_prompt = np.array([self.prompts.get(key, NOWHERE) for key in columns["prompt"].tolist()], dtype=np.int8)
        tied = (by_id != by_prompt) & (by_id != NOWHERE) & (by_prompt != NOWHERE)
        return np.where(by_id != NOWHERE, by_id, by_prompt).astype(np.int8), tied


@dataclass
class Cut:
    """Where each row goes."""

    splits: NDArray[np.int8]
    """A number in SPLITS for each row of the pile, NOWHERE for those left out."""
    groups: Numbers
    """A number for each row of the pile, the same within a group."""
    tied: Numbers
    """Rows left out because they would tie two splits together."""
    late: Numbers
    """New rows left out because, cut by date, they are of a later split than their group lies in."""


def cut(
    columns: Mapping[str, Numbers],
    kept: Numbers,
    same: Pairs,
    near: Pairs,
    known: Known,
    policy: SplitSection,
    where: str,
) -> Cut:
    """Deal the kept rows to splits; `same` and `near` are pairs of rows that belong to one group.

    Those that are the `same` by name or prompt are one whole; of rows that are only `near` a new one may be left out.

    Raises:
        UserError: rows of two splits belong to one group now, or a split with a share gets no row.
    """
    total = len(columns["exact"])
    old, doubly = known.splits(columns)
    is_kept = np.zeros(total, dtype=bool)
    is_kept[kept] = True
    old[~is_kept] = NOWHERE
    edges = np.concatenate([same, near])
    among_old = edges[(old[edges] != NOWHERE).all(axis=1)]
    _refuse_moves(components(total, among_old), old, kept, where)
    wholes = components(total, same)
    ties = doubly | _ties(wholes, near, old)
    tied = kept[ties[kept]]
    stays = np.setdiff1d(kept, tied)
    is_kept[tied] = False
    # Chained anew: the row that held a whole together may be one that was left out.
    groups = components(total, np.concatenate([stays[chained(wholes[stays])], near[is_kept[near].all(axis=1)]]))
    if not len(stays):
        raise UserError(f"{where}: no rows are left to cut; {total} were there before copies and contradictions went")
    splits = np.full(total, NOWHERE, dtype=np.int8)
    splits[stays] = _deal(columns, stays, groups[stays], old[stays], policy)
    late = stays[:0]
    if policy.time is not None:
        # What came later than its group's split would teach what is asked there.
        days = np.array([_split_of_day(day, policy.time) for day in columns["day"][stays].tolist()])
        late = stays[(days > splits[stays]) & (old[stays] == NOWHERE)]
        splits[late] = NOWHERE
    shares = policy.shares
    empty = [s for n, s in enumerate(SPLITS) if (policy.time or shares[s] > 0) and not (splits == n).any()]
    if empty:
        raise UserError(f"{where}: no rows fell into {', '.join(empty)}; there are too few groups for these shares")
    return Cut(splits, groups, tied, late)


def _refuse_moves(groups: Numbers, old: NDArray[np.int8], kept: Numbers, where: str) -> None:
    spans = _spans_two(groups, old)
    torn = int(np.count_nonzero(spans[groups[kept]] & (old[kept] != NOWHERE)))
    if torn:
        raise UserError(
            f"{where}: {torn} rows that lie in different splits already belong to one group now; a cut would move them",
            hint="undo what groups them (duplicates.near, split.by), or cut anew with `--recut`: "
            "scores on the old gate then say nothing about the new one",
        )


def _ties(wholes: Numbers, near: Pairs, old: NDArray[np.int8]) -> NDArray[np.bool_]:
    """The new rows that tie two splits together: leaving them out keeps the others' groups within one.

    A whole belongs to the split of its old rows, or else to that of a whole that it is near, step by step; then of two
    near rows of different splits the new ones are ties.
    """
    splits = np.full(int(wholes.max(initial=-1)) + 1, NOWHERE)
    np.maximum.at(splits, wholes, old)
    ties = np.zeros(len(old), dtype=bool)
    lowest = np.full(len(splits), len(SPLITS))
    np.minimum.at(lowest, wholes[old != NOWHERE], old[old != NOWHERE])
    # A whole that itself holds old rows of two splits: all its new rows tie them.
    ties |= ((lowest < len(SPLITS)) & (lowest != splits))[wholes] & (old == NOWHERE)
    while True:
        alive = near[~ties[near].any(axis=1)]
        sides = splits[wholes[alive]]
        apart = alive[(sides[:, 0] != sides[:, 1]) & (sides != NOWHERE).all(axis=1)]
        new = np.unique(apart[old[apart] == NOWHERE])
        ties[new] = True
        reached = alive[((sides == NOWHERE).sum(axis=1) == 1) & ~ties[alive].any(axis=1)]
        if not len(reached) and not len(new):
            return ties
        found = splits[wholes[reached]].max(axis=1)
        fresh = wholes[reached][np.arange(len(reached)), (splits[wholes[reached]] == NOWHERE).argmax(axis=1)]
        lowest = np.full(len(splits), len(SPLITS))
        np.minimum.at(lowest, fresh, found)
        splits[fresh] = lowest[fresh]


def _spans_two(groups: Numbers, old: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Whether a group, by its number, holds old rows of two splits."""
    size = int(groups.max(initial=-1)) + 1
    low, high = np.full(size, len(SPLITS)), np.full(size, NOWHERE)
    known = old != NOWHERE
    np.minimum.at(low, groups[known], old[known])
    np.maximum.at(high, groups[known], old[known])
    return np.asarray(high > low)


def _deal(
    columns: Mapping[str, Numbers], rows: Numbers, groups: Numbers, old: NDArray[np.int8], policy: SplitSection
) -> NDArray[np.int8]:
    """The split of each of some rows, one for each group."""
    # The row that stands for a group: its smallest name, so that it does not depend on the order of rows.
    order = np.lexsort([columns["exact"][rows], columns["group"][rows], groups])
    begins = np.flatnonzero(np.concatenate([[True], groups[order][1:] != groups[order][:-1]]))
    number_of = np.empty(len(rows), dtype=np.int64)
    number_of[order] = np.repeat(np.arange(len(begins)), np.diff(np.concatenate([begins, [len(order)]])))
    first = order[begins]
    splits = np.full(len(begins), NOWHERE, dtype=np.int64)
    np.maximum.at(splits, number_of, old)
    points = columns["point"][rows[first]] / 2**63
    if policy.time is not None:
        newest = np.full(len(begins), NO_DAY)
        np.maximum.at(newest, number_of, columns["day"][rows])
        fresh = np.array([_split_of_day(day, policy.time) for day in newest.tolist()])
    elif policy.stratify is not None:
        sizes = np.bincount(number_of)
        fresh = _stratified(points, columns["stratum"][rows[first]], sizes, splits, policy.shares)
    else:
        fresh = np.array([split_of(point, policy.shares) for point in points.tolist()])
    return np.where(splits == NOWHERE, fresh, splits)[number_of].astype(np.int8)


def _split_of_day(day: int, time: TimeSection) -> int:
    begins = (time.dev.toordinal(), time.gate.toordinal(), time.confirm.toordinal())
    return sum(day >= begin for begin in begins)


def _stratified(
    points: NDArray[np.float64], strata: Numbers, sizes: Numbers, known: Numbers, shares: Mapping[Split, float]
) -> Numbers:
    """Deal each stratum's new groups, in the order of their points, to the split that lacks most of its share."""
    wanted = np.array([shares[split] for split in SPLITS])
    fresh = np.full(len(points), NOWHERE, dtype=np.int64)
    held: dict[int, NDArray[np.float64]] = {}
    for group in np.lexsort([points, known == NOWHERE]).tolist():
        has = held.setdefault(int(strata[group]), np.zeros(len(SPLITS)))
        if known[group] != NOWHERE:
            has[known[group]] += sizes[group]
            continue
        lacks = wanted * (has.sum() + sizes[group]) - has
        best = np.flatnonzero(lacks >= lacks.max() - 1e-9)
        fresh[group] = best[int(points[group] * len(best))]
        has[fresh[group]] += sizes[group]
    return fresh


def refuse_another_cut(dataset: Dataset, policy: SplitSection, manifest: Mapping[str, object]) -> None:
    """Refuse to cut a dataset by another policy than it was cut by.

    Raises:
        UserError: says which keys differ.
    """
    before = manifest.get("split")
    after = policy.model_dump(mode="json")
    if isinstance(before, dict) and before != after:
        keys = ", ".join(f"split.{key} was {before.get(key)!r}" for key in after if before.get(key) != after[key])
        raise UserError(
            f"{dataset.directory}: is cut already, otherwise ({keys}); a new cut would move rows from gate to train",
            hint="keep the cut, choose another data.directory, or cut anew with `--recut`: "
            "scores on the old gate then say nothing about the new one",
        )
