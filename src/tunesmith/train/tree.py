"""Rows that begin alike, laid out as a tree in which each shared beginning stands once.

Most rows of a task repeat its instruction, and rows about one document repeat the document. A batch is cut into
levels: the first holds what rows begin with, each next one what follows, down to the rows' own parts. A node's tokens
attend to the path above it and to themselves, so every token sees exactly what it sees in its row alone.

Only tokens before the one that predicts the first loss token are shared: a shared token never carries loss.
(The idea in reinforcement learning: Prefix Grouper, arXiv:2506.05433.)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypedDict

import torch

from tunesmith.prompt import IGNORE, Rendered, common_prefix

SHORTEST = 16
"""Fewest tokens of a shared beginning: shorter ones are chance, and cost a pass of their own."""

DEEPEST = 6
"""Most levels of shared beginnings: each is a pass of its own."""


@dataclass(frozen=True)
class Limits:
    """What is worth sharing, and what can be."""

    saving: int = 64
    """Fewest tokens that a node must save: its length times the rows below it but one."""
    nested: bool = True
    """Whether a shared beginning may hold others. Without, all rows of a batch share one, or none do."""


def limits_for(config: Any, device: str) -> Limits | None:
    """What rows may share on a model and a device; none where a model's layers keep no keys and values by position.

    `config` is the model's text config. Padding between a shared beginning and what follows would count towards a
    sliding window, so there rows share only what all of a batch begin with. A pass of its own costs a CPU little and
    a GPU some hundred kernel launches, the work of about a thousand tokens of a small model.
    """
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds - {"full_attention", "sliding_attention"}:
        return None
    slides = "sliding_attention" in kinds or getattr(config, "sliding_window", None) is not None
    return Limits(saving=64 if device == "cpu" else 1024, nested=not slides)


@dataclass(frozen=True)
class Node:
    """Tokens `start` to `end` of every row in `rows`; the children go on from there."""

    start: int
    end: int
    rows: list[int]
    children: list["Node"] = field(default_factory=list)


class Level(TypedDict):
    """One pass through the model: the nodes at one depth, padded on the right."""

    input_ids: torch.Tensor
    """(nodes, tokens)"""
    position_ids: torch.Tensor | None
    """(nodes, tokens); none where they begin at 0"""
    attention_mask: torch.Tensor | None
    """(nodes, tokens of all levels so far, this one included); none where no node above is padded"""
    children: list[int] | None
    """How many nodes of this level each node of the level above has, in order; none at the first level"""
    loss_at: torch.Tensor
    """Places in the flattened (nodes x tokens) whose next token carries loss"""


@dataclass(frozen=True)
class Layout:
    """A batch as the model reads it."""

    levels: list[Level]
    targets: torch.Tensor
    """The loss tokens, in the order of the levels' `loss_at`."""
    tokens: int
    """Tokens of the rows, each row counted whole."""

    @property
    def computed(self) -> int:
        """Tokens that pass through the model, padding included."""
        return sum(level["input_ids"].numel() for level in self.levels)

    @property
    def below(self) -> tuple[int, int]:
        """What nodes below the first level attend to: tokens of the path above and their own, and pairs of tokens."""
        tokens = pairs = path = 0
        for level in self.levels:
            nodes, width = level["input_ids"].shape
            path += width
            if level["children"] is not None:
                tokens += nodes * path
                pairs += nodes * width * path
        return tokens, pairs


def shareable(row: Rendered) -> list[int]:
    """The tokens of a row that may stand in a shared node: all before the one that predicts its first loss token."""
    return row.prompt_ids[: max(0, len(row.prompt_ids) - 1)]


def grow(heads: Sequence[list[int]], limits: Limits) -> list[Node]:
    """The forest of rows by what they begin with; `heads` are the rows' shareable tokens. Leaves end at -1."""
    if not limits.nested:
        shared = common_prefix(heads)
        if len(heads) > 1 and shared >= SHORTEST and shared * (len(heads) - 1) >= limits.saving:
            members = list(range(len(heads)))
            return [Node(0, shared, members, [Node(shared, -1, [row]) for row in members])]
        return [Node(0, -1, [row]) for row in range(len(heads))]
    order = sorted(range(len(heads)), key=lambda row: heads[row])
    return _grow(heads, order, 0, 0, DEEPEST, limits)


def _grow(
    heads: Sequence[list[int]], members: list[int], start: int, scan: int, deeper: int, limits: Limits
) -> list[Node]:
    """Nodes from token `start` on, `deeper` levels at most, for sorted rows that agree up to token `scan`."""
    if not deeper:
        return [Node(start, -1, [row]) for row in members]
    nodes: list[Node] = []
    for token, group in groupby(members, key=lambda row: heads[row][scan] if len(heads[row]) > scan else None):
        rows = list(group)
        if token is None or len(rows) == 1:
            nodes += [Node(start, -1, [row]) for row in rows]
            continue
        end = common_prefix([heads[rows[0]], heads[rows[-1]]])
        if end - start >= SHORTEST and (end - start) * (len(rows) - 1) >= limits.saving:
            nodes.append(Node(start, end, rows, _grow(heads, rows, end, end, deeper - 1, limits)))
        else:
            nodes += _grow(heads, rows, start, end, deeper, limits)
    return nodes


def lay_out(rows: Sequence[Rendered], limits: Limits | None) -> Layout:
    """Tensors of a batch; without limits no token is shared, and there is one level."""
    heads = [shareable(row) for row in rows]
    forest = grow(heads, limits) if limits else [Node(0, -1, [row]) for row in range(len(rows))]
    levels: list[Level] = []
    targets: list[int] = []
    if not all(row.prompt_ids for row in rows):
        raise ValueError("a row without a prompt has nothing that predicts its first loss token")
    nodes: list[tuple[Node, int]] = [(node, 0) for node in forest]
    counts: list[int] = []
    seen: list[list[int]] = [[]]
    while nodes:
        parts = [rows[node.rows[0]].input_ids[node.start : None if node.end < 0 else node.end] for node, _ in nodes]
        width = max(map(len, parts))
        loss_at: list[int] = []
        for place, (node, _) in enumerate(nodes):
            if node.end < 0:
                labels = rows[node.rows[0]].labels[node.start :]
                carries = [i for i, label in enumerate(labels) if label != IGNORE]
                loss_at += [place * width + i - 1 for i in carries]
                targets += [labels[i] for i in carries]
        above = [seen[parent] for _, parent in nodes]
        starts = torch.tensor([[node.start] for node, _ in nodes])
        padded = any(0 in mask for mask in above)
        levels.append(
            {
                "input_ids": torch.tensor([part + [0] * (width - len(part)) for part in parts]),
                "position_ids": starts + torch.arange(width) if levels else None,
                "attention_mask": torch.tensor([mask + [1] * width for mask in above]) if padded else None,
                "children": counts if levels else None,
                "loss_at": torch.tensor(loss_at, dtype=torch.long),
            }
        )
        seen = [mask + [1] * len(part) + [0] * (width - len(part)) for mask, part in zip(above, parts, strict=True)]
        counts = [len(node.children) for node, _ in nodes]
        nodes = [(child, place) for place, (node, _) in enumerate(nodes) for child in node.children]
    return Layout(levels, torch.tensor(targets, dtype=torch.long), sum(len(row.input_ids) for row in rows))


def families(heads: Sequence[list[int]], limits: Limits | None) -> Iterator[list[int]]:
    """Rows whose deepest shared beginning is the same."""
    if limits is None:
        yield list(range(len(heads)))
        return

    def walk(nodes: list[Node]) -> Iterator[list[int]]:
        if own := [node.rows[0] for node in nodes if node.end < 0]:
            yield sorted(own)
        for node in nodes:
            yield from walk(node.children)

    yield from walk(grow(heads, limits))
