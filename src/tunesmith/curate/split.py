"""Cut rows into train, dev, gate and confirm by group.

A group's split is a function of the seed and the group's name alone. So no group straddles two splits, the order of
rows does not matter, and new rows leave the old ones where they are.
"""

import hashlib
from collections.abc import Iterable, Mapping

from tunesmith.errors import UserError
from tunesmith.rows import SPLITS, Row, Split


def split_of(group: str, shares: Mapping[Split, float], seed: int) -> Split:
    """The split of a group: a uniform number from its name, laid over the shares."""
    digest = hashlib.sha256(f"{seed}\n{group}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    for split in SPLITS:
        point -= shares[split]
        if point < 0:
            return split
    return SPLITS[0]


def cut(rows: Iterable[Row], shares: Mapping[Split, float], seed: int) -> dict[Split, list[Row]]:
    """Cut rows by group into the four splits; shares are of groups and add up to 1.

    Raises:
        UserError: the shares do not add up, or a split with a share gets no row.
    """
    if abs(sum(shares[split] for split in SPLITS) - 1) > 1e-9 or min(shares.values()) < 0:
        raise UserError(f"split shares {dict(shares)} must be at least 0 and add up to 1")
    parts: dict[Split, list[Row]] = {split: [] for split in SPLITS}
    for row in rows:
        parts[split_of(row.group, shares, seed)].append(row)
    empty = [split for split in SPLITS if shares[split] > 0 and not parts[split]]
    if empty:
        raise UserError(f"no rows fell into {', '.join(empty)}; there are too few groups for these shares")
    return parts
