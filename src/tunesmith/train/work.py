"""What an epoch is to compute: its tokens, its passes, and the pass that decides how much memory it takes."""

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.prompt import Rendered
from tunesmith.train.tree import Limits, lay_out


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass."""

    rows: list[int]
    """By their place among all rows."""
    apart: int
    """Tokens if no beginning were shared: the rows and their padding."""
    computed: int
    """Tokens that pass through the model."""
    loss_tokens: int
    attended: int = 0
    """Tokens that nodes below the first level attend to, each node's with the path above it."""
    masked: int = 0
    """Pairs of tokens in the masks of these nodes."""
    below: int = 0
    """Of the computed tokens those below the first level."""


@dataclass(frozen=True)
class Work:
    """Tokens of one epoch."""

    rows: int
    """In the rows, each counted whole."""
    apart: int
    """Through the model if no beginning were shared: the rows and their padding."""
    computed: int
    """Through the model as it trains."""
    longest: Pass
    """Of all passes the one that computes most."""

    @property
    def saved(self) -> float:
        """The part of the tokens that sharing saves."""
        return 1 - self.computed / self.apart


def work_of(rows: Sequence[Rendered], passes: Sequence[list[int]], limits: Limits | None) -> Work:
    """The work of an epoch that is cut into passes; `limits` say what rows of a pass may share."""
    tokens, each = 0, []
    for members in passes:
        held = [rows[i] for i in members]
        alone = lay_out(held, None)
        shared = lay_out(held, limits) if limits else alone
        tokens += alone.tokens
        below = shared.computed - shared.levels[0]["input_ids"].numel()
        each.append(Pass(members, alone.computed, shared.computed, len(shared.targets), *shared.below, below))
    longest = max(each, key=lambda one: (one.computed, one.apart))
    return Work(tokens, sum(one.apart for one in each), sum(one.computed for one in each), longest)
