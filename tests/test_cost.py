"""Costs against figures worked out by hand, and what they may never do."""

import math
from dataclasses import astuple

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tunesmith.cost import (
    Price,
    Use,
    break_even_calls,
    break_even_calls_a_month,
    cache_factor,
    caching_pays_from,
    per_call,
    per_right_answer,
    self_hosted,
    with_fallback,
    without_shots,
)
from tunesmith.prices import read_prices

MINI = Price(input=0.25e-6, output=2e-6, cache_read=0.025e-6, cache_write=0.25e-6)
HAIKU = Price(input=1e-6, output=5e-6, cache_read=0.1e-6, cache_write=1.25e-6)
CALL = Use(shared=2000, own=400, output=150)


def test_the_shipped_prices_are_those_worked_with() -> None:
    shipped = read_prices()
    assert astuple(shipped.price("gpt-5-mini")) == pytest.approx(astuple(MINI))
    assert astuple(shipped.price("claude-haiku-4-5")) == pytest.approx(astuple(HAIKU))


def test_a_call_without_cache() -> None:  # 2400 * 0.25 + 150 * 2 millionths
    assert per_call(CALL, MINI) == pytest.approx(0.00090)


def test_a_call_with_its_beginning_cached_95_times_in_100() -> None:
    assert cache_factor(0.95, MINI) == pytest.approx(0.145)
    assert per_call(CALL, MINI, hits=0.95) == pytest.approx(0.0004725)


def test_a_cached_beginning_is_hardly_worth_removing() -> None:
    """All of it saves 0.0000725 a call, so a machine of 864 a month needs 11.9 million calls; 1.7 without a cache."""
    bare = Use(own=400, output=150)
    saved = per_call(CALL, MINI, hits=0.95) - per_call(bare, MINI, hits=0.95)
    assert saved == pytest.approx(0.0000725)
    needed = break_even_calls_a_month(864, 0, 0, per_call(CALL, MINI, hits=0.95), per_call(bare, MINI))
    assert needed == pytest.approx(11.917e6, rel=1e-3)
    assert break_even_calls_a_month(864, 0, 0, per_call(CALL, MINI), per_call(bare, MINI)) == pytest.approx(1.728e6)


def test_a_shorter_answer_saves_five_times_more() -> None:
    long, short = (per_call(Use(output=tokens), MINI) for tokens in (300, 120))
    assert long - short == pytest.approx(0.00036)
    assert (long - short) / 0.0000725 == pytest.approx(4.97, abs=0.01)


def test_caching_pays_from_22_hits_in_100_where_a_write_costs_a_quarter_more() -> None:
    from_here = caching_pays_from(HAIKU)
    assert from_here == pytest.approx(0.25 / 1.15)
    assert cache_factor(from_here or 0, HAIKU) == pytest.approx(1.0)
    assert caching_pays_from(MINI) == 0.0
    assert caching_pays_from(Price(1e-6, 1e-6, cache_read=1e-6, cache_write=1e-6)) is None


def test_without_a_hit_nobody_pays_for_writing() -> None:
    assert cache_factor(0.0, HAIKU) == 1.0


def test_a_machine_by_the_token() -> None:  # 1.20 an hour, half busy, 1000 tokens a second read, 100 written
    price = self_hosted(1.20, 1000, 100, 0.5)
    assert price.output == pytest.approx(1.20 / (3600 * 100 * 0.5))
    assert price.input == pytest.approx(1.20 / (3600 * 1000 * 0.5))
    shared = self_hosted(1.20, 1000, 100, 0.5, adapters=4)
    assert shared.output == pytest.approx(price.output / 4)
    assert per_call(CALL, price, hits=1.0) == pytest.approx(400 * price.input + 150 * price.output)


def test_retrieved_passages_are_never_cached() -> None:
    more = per_call(Use(2000, 400, 900, 150), MINI, hits=0.95, retrieval=0.0001)
    assert more - per_call(CALL, MINI, hits=0.95) == pytest.approx(900 * 0.25e-6 + 0.0001)


def test_a_right_answer_costs_its_misses_too() -> None:
    assert per_right_answer(0.002, 0.8) == pytest.approx(0.0025)
    assert per_right_answer(0.002, 0.8, miss=0.05) == pytest.approx((0.002 + 0.2 * 0.05) / 0.8)
    assert per_right_answer(0.002, 0.0) == math.inf


def test_break_even_is_never_where_nothing_is_saved() -> None:
    assert break_even_calls(1000, 0.002, 0.001) == pytest.approx(1e6)
    assert break_even_calls(1000, 0.001, 0.001) is None
    assert break_even_calls(1000, 0.001, 0.002) is None
    dear = with_fallback(0.0006, 0.001, 0.5)
    assert dear == pytest.approx(0.0011)
    assert break_even_calls(1000, 0.001, dear) is None, "a fallback for half of the calls eats what a call saves"
    assert break_even_calls_a_month(100, 1200, 4, 0.002, 0.001) == pytest.approx((100 + 400) / 0.001)


def test_shots_that_go_are_taken_from_what_is_shared() -> None:
    assert without_shots(Use(shared=500, own=100), 400) == Use(shared=100, own=100)
    assert without_shots(Use(shared=500, own=100), 550) == Use(shared=0, own=50)


shares = st.floats(0, 1)
money = st.floats(1e-9, 1e-3)


@given(st.builds(Price, money, money, money, money), shares, st.floats(0, 1e5))
def test_caching_is_cheaper_exactly_where_it_is_said_to_pay(price: Price, hits: float, shared: float) -> None:
    assume(price.cache_read <= price.cache_write)
    cached, plain = per_call(Use(shared=shared), price, hits=hits), per_call(Use(shared=shared), price)
    from_here = caching_pays_from(price)
    if hits and from_here is not None and hits > from_here + 1e-9:
        assert cached <= plain * (1 + 1e-9)
    if hits and from_here is None:
        assert cached >= plain * (1 - 1e-9)


@given(money, money, money)
def test_break_even_earns_back_exactly_the_outlay(outlay: float, before: float, after: float) -> None:
    calls = break_even_calls(outlay, before, after)
    assert (calls is None) == (before <= after)
    if calls is not None:
        assert calls * (before - after) == pytest.approx(outlay)


# ---------------------------------------------------------------------- the file of prices


def test_a_prices_file_is_read_strictly(tmp_path_factory: pytest.TempPathFactory) -> None:
    from tunesmith.errors import UserError

    path = tmp_path_factory.mktemp("prices") / "mine.yaml"
    path.write_text("schema: 1\nmodels:\n  mine: {input: -1, outptu: 2}\n")
    with pytest.raises(UserError) as caught:
        read_prices(path)
    told = caught.value.text
    assert f"{path}:3: models.mine.input: input should be greater than or equal to 0" in told
    assert "models.mine.output: field required" in told
    assert "models.mine.outptu: extra inputs are not permitted" in told
    path.write_text("schema: 1\nmodels:\n  mine: {input: 1, output: 2}\n")
    prices = read_prices(path)
    assert prices.price("mine").cache_read == prices.price("mine").input == pytest.approx(1e-6)
    with pytest.raises(UserError, match="holds no price of `other`; there are: mine"):
        prices.price("other")
