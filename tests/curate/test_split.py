from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tunesmith.curate.split import cut, split_of
from tunesmith.errors import UserError
from tunesmith.rows import SPLITS, Message, Row

SHARES = {"train": 0.56, "dev": 0.09, "gate": 0.20, "confirm": 0.15}
USER = [Message(role="user", content="x")]
ANSWER = Message(role="assistant", content="y")


def row(number, group):
    return Row(id=f"r{number}", group=group, messages=USER, completion=ANSWER)


GROUPS = st.lists(st.text("abcdé ", min_size=1, max_size=3), min_size=30, max_size=60)
SEEDS = st.integers(0, 2**31)


def cut_or_skip(rows, seed):
    """Cut; a draw that leaves a split empty is refused by `cut` and says nothing about the rest."""
    try:
        return cut(rows, SHARES, seed)
    except UserError:
        assume(False)


def split_of_each_row(parts):
    return {one.id: split for split, rows in parts.items() for one in rows}


@settings(deadline=None)
@given(groups=GROUPS, seed=SEEDS)
def test_a_group_never_straddles_two_splits(groups, seed):
    parts = cut_or_skip([row(n, group) for n, group in enumerate(groups)], seed)
    seen = [{one.group for one in rows} for rows in parts.values()]
    assert sum(map(len, seen)) == len(set().union(*seen)) == len(set(groups))
    assert sum(map(len, parts.values())) == len(groups)


@settings(deadline=None)
@given(groups=GROUPS, seed=SEEDS, data=st.data())
def test_the_order_of_rows_does_not_matter(groups, seed, data):
    rows = [row(n, group) for n, group in enumerate(groups)]
    shuffled = data.draw(st.permutations(rows))
    assert split_of_each_row(cut_or_skip(shuffled, seed)) == split_of_each_row(cut_or_skip(rows, seed))


@settings(deadline=None)
@given(groups=GROUPS, more=GROUPS, seed=SEEDS)
def test_new_rows_leave_the_old_ones_where_they_are(groups, more, seed):
    rows = [row(n, group) for n, group in enumerate([*groups, *more])]
    before = split_of_each_row(cut_or_skip(rows[: len(groups)], seed))
    after = split_of_each_row(cut_or_skip(rows, seed))
    assert {row_id: after[row_id] for row_id in before} == before


def test_a_split_keeps_the_order_of_its_rows():
    rows = [row(n, f"g{n % 50}") for n in range(200)]
    for part in cut(rows, SHARES, 0).values():
        assert part == [one for one in rows if one in part]


def test_the_shares_of_many_groups_are_those_asked_for():
    found = Counter(split_of(f"group {n}", SHARES, seed=0) for n in range(5000))
    for split, share in SHARES.items():
        # 0.03 is more than four standard errors of any of these shares.
        assert found[split] / 5000 == pytest.approx(share, abs=0.03)


def test_another_seed_cuts_otherwise():
    def cut_with(seed):
        return [split_of(f"group {n}", SHARES, seed) for n in range(100)]

    assert cut_with(0) != cut_with(1)
    assert cut_with(0) == cut_with(0)


def test_where_a_group_falls_is_written_down():
    # Any change here moves rows between the splits of every data set that was made before.
    splits = "confirm train gate dev gate train train gate"
    assert [split_of(f"g{n}", SHARES, 0) for n in range(8)] == splits.split()


def test_a_split_without_a_share_gets_nothing():
    shares = {"train": 0.5, "dev": 0.0, "gate": 0.5, "confirm": 0.0}
    parts = cut([row(n, f"g{n}") for n in range(500)], shares, 0)
    assert {split: bool(rows) for split, rows in parts.items()} == {
        "train": True,
        "dev": False,
        "gate": True,
        "confirm": False,
    }


def test_a_split_that_stays_empty_is_refused():
    assert split_of("g0", SHARES, 0) == "confirm"
    with pytest.raises(UserError) as refused:
        cut([row(0, "g0")], SHARES, 0)
    assert refused.value.text == "no rows fell into train, dev, gate; there are too few groups for these shares"


@pytest.mark.parametrize(
    "shares",
    [
        {"train": 0.5, "dev": 0.1, "gate": 0.2, "confirm": 0.1},
        {"train": 0.9, "dev": 0.3, "gate": -0.2, "confirm": 0.0},
    ],
)
def test_shares_that_do_not_add_up_are_refused(shares):
    with pytest.raises(UserError) as refused:
        cut([row(n, f"g{n}") for n in range(100)], shares, 0)
    assert refused.value.text == f"split shares {shares} must be at least 0 and add up to 1"


def test_all_four_splits_are_named_even_when_empty():
    assert list(cut([row(0, "g")], {"train": 1.0, "dev": 0.0, "gate": 0.0, "confirm": 0.0}, 0)) == list(SPLITS)
