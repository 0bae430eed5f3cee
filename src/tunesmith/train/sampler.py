"""The order of training rows: all of them once an epoch, those that share a beginning or a length side by side."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from tunesmith.prompt import Rendered
from tunesmith.train.tree import Limits, families, shareable

BUCKET = 16
"""Batches whose rows are sorted among themselves: long enough to even out lengths, short enough to stay random."""


class FamilySampler(Sampler[int]):
    """All rows once an epoch, in an order that seed and epoch fix.

    Rows whose deepest shared beginning is the same are cut, shuffled, into batches of like length. What is left of
    each family is joined, family by family, into batches that hold several.

    `multiple` is how many rows all processes read at once. The last batch is filled up to such a multiple with the
    number after the last row's, a row without loss: accelerate would fill it up with rows that were trained already.
    """

    def __init__(
        self, rows: Sequence[Rendered], batch: int, seed: int, limits: Limits | None, *, multiple: int = 1
    ) -> None:
        self.batch = batch
        self.multiple = multiple
        self.seed = seed
        self.epoch = 0
        self.families = list(families([shareable(row) for row in rows], limits))
        self.lengths = [len(row.input_ids) for row in rows]

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + -len(self.lengths) % self.multiple

    def __iter__(self) -> Iterator[int]:
        for batch in self.batches():
            yield from batch
            yield from [len(self.lengths)] * (-len(batch) % self.multiple)

    def batches(self) -> list[list[int]]:
        """The epoch's batches. A short one stands last: the data loader cuts batches by count."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)

        def shuffled(items: list[list[int]]) -> list[list[int]]:
            return [items[index] for index in torch.randperm(len(items), generator=generator).tolist()]

        full: list[list[int]] = []
        parts: list[list[int]] = []
        for family in self.families:
            order = [row for (row,) in shuffled([[row] for row in family])]
            for window in _cut(order, self.batch * BUCKET):
                for batch in _cut(sorted(window, key=self.lengths.__getitem__), self.batch):
                    (full if len(batch) == self.batch else parts).append(batch)
        left: list[int] = []
        for few in _windows(shuffled(parts), self.batch * BUCKET):
            for part in sorted(few, key=lambda rows: self.lengths[rows[-1]]):
                left += part
        joined = _cut(left, self.batch)
        short = [joined.pop()] if joined and len(joined[-1]) < self.batch else []
        return shuffled(full + joined) + short


def _cut(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _windows(parts: list[list[int]], size: int) -> Iterator[list[list[int]]]:
    """Parts in lists that hold at least `size` rows together, but for the last."""
    window: list[list[int]] = []
    for part in parts:
        window.append(part)
        if sum(map(len, window)) >= size:
            yield window
            window = []
    if window:
        yield window
