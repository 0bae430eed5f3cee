"""How many rows bounds need: against statsmodels, against published figures, and against the bounds themselves."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from statsmodels.regression.mixed_linear_model import MixedLM
from statsmodels.stats.power import NormalIndPower

from tunesmith.design import (
    design_effect,
    detectable_gain,
    intraclass_correlation,
    rows_for_gain,
    rows_for_margin,
    rows_for_mean,
    smallest_margin,
)
from tunesmith.stats import tango

ALPHA = 0.05


@pytest.mark.parametrize(
    ("gain", "discordance", "power", "rows"), [(0.08, 0.25, 0.95, 418), (0.05, 0.25, 0.95, 1077), (0.05, 0.2, 0.8, 493)]
)
def test_rows_for_a_gain(gain: float, discordance: float, power: float, rows: int) -> None:
    assert rows_for_gain(gain, discordance, ALPHA, power) == rows


@settings(deadline=None)
@given(st.floats(0.01, 0.3), st.floats(0.02, 0.6), st.floats(0.5, 0.99))
def test_what_rows_detect_is_what_needs_those_rows(gain: float, discordance: float, power: float) -> None:
    assume(gain < discordance)
    rows = rows_for_gain(gain, discordance, ALPHA, power)
    assert rows is not None
    assert detectable_gain(rows, discordance, ALPHA, power) == pytest.approx(gain, rel=0.6 / rows + 1e-6)


def test_no_gain_is_larger_than_the_part_of_pairs_that_differ() -> None:
    assert rows_for_gain(0.2, 0.1, ALPHA, 0.8) is None
    assert detectable_gain(50, 0.05, ALPHA, 0.8) is None
    assert detectable_gain(50, 0.0, ALPHA, 0.8) is None


@pytest.mark.parametrize(("gain", "discordance"), [(0.08, 0.25), (0.05, 0.1), (0.12, 0.4)])
def test_connors_rows_have_the_power_that_they_are_for(gain: float, discordance: float) -> None:
    rows = rows_for_gain(gain, discordance, ALPHA, 0.9)
    assert rows is not None
    shares = [(discordance + gain) / 2, (discordance - gain) / 2, 1 - discordance]
    counts = np.random.default_rng(0).multinomial(rows, shares, size=3000)
    shown = np.mean([tango(int(b), int(c), rows, ALPHA)[0] > 0 for b, c, _ in counts])
    assert shown == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(("margin", "rows"), [(0.02, 773), (0.03, 344), (0.05, 124)])
def test_rows_for_a_margin(margin: float, rows: int) -> None:
    assert rows_for_margin(margin, 0.05, ALPHA, 0.8) == rows
    assert smallest_margin(rows, 0.05, ALPHA, 0.8) == pytest.approx(margin, rel=0.002)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 0.1), st.floats(0.02, 0.5), st.floats(0.6, 0.99))
def test_rows_for_a_margin_agree_with_statsmodels(margin: float, variance: float, power: float) -> None:
    theirs = NormalIndPower(ddof=0).solve_power(
        effect_size=margin / math.sqrt(variance), alpha=ALPHA, power=power, ratio=0, alternative="larger"
    )
    assume(theirs > 2)  # nan where their search fails
    assert rows_for_margin(margin, variance, ALPHA, power) == math.ceil(theirs - 1e-6)


def test_a_harm_beyond_the_margin_is_never_shown_to_be_within_it() -> None:
    assert rows_for_margin(0.02, 0.05, ALPHA, 0.8, effect=-0.02) is None
    larger = rows_for_margin(0.02, 0.05, ALPHA, 0.8, effect=-0.01)
    assert larger is not None
    assert larger > 4 * 772


def test_rows_for_a_mean_are_millers() -> None:
    assert rows_for_mean(0.03, 1 / 9, 0.025, 0.8) == 969
    assert rows_for_mean(0.03, 1 / 9, 0.025, 0.8, noise=(1 / 6, 1 / 6)) == 3876
    averaged = rows_for_mean(0.03, 1 / 9, 0.025, 0.8, noise=(1 / 6, 1 / 6), answers=(4, 4))
    assert 969 < averaged < 3876 / 2


@pytest.mark.parametrize("truth", [0.0, 0.2, 0.5])
def test_the_correlation_within_groups_is_found(truth: float) -> None:
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 12, 400)
    member = np.repeat(np.arange(400), sizes)
    values = rng.normal(0, math.sqrt(truth), 400)[member] + rng.normal(0, math.sqrt(1 - truth), len(member))
    found = intraclass_correlation(values.tolist(), [str(group) for group in member])
    assert found == pytest.approx(truth, abs=0.06)
    if truth:
        fitted = MixedLM(values, np.ones(len(values)), member).fit()
        between = float(np.asarray(fitted.cov_re)[0, 0])
        assert found == pytest.approx(between / (between + fitted.scale), abs=0.03)


@pytest.mark.parametrize("groups", [["a", "b", "c"], ["a", "a", "a"]])
def test_groups_of_one_row_or_one_group_tell_no_correlation(groups: list[str]) -> None:
    with pytest.raises(ValueError, match="do not tell it"):
        intraclass_correlation([1.0, 0.0, 1.0], groups)


def test_rows_that_are_all_alike_have_no_correlation() -> None:
    assert intraclass_correlation([1.0] * 4, list("aabb")) == 0.0


def test_the_design_effect_is_the_variance_that_groups_add() -> None:
    assert design_effect([5] * 40, 0.3) == pytest.approx(2.2)
    assert design_effect([1] * 40, 0.9) == 1.0
    sizes, icc = [20, 10, 5, *[1] * 15], 0.4
    rng = np.random.default_rng(2)
    member = np.repeat(np.arange(len(sizes)), sizes)
    shared = rng.normal(0, math.sqrt(icc), (20_000, len(sizes)))[:, member]
    means = (shared + rng.normal(0, math.sqrt(1 - icc), (20_000, len(member)))).mean(axis=1)
    assert means.var() * len(member) == pytest.approx(design_effect(sizes, icc), rel=0.04)


def test_the_tables_of_the_document_are_those_of_the_script(repository: Path) -> None:
    tables = runpy.run_path(str(repository / "scripts" / "gate_tables.py"))["tables"]()
    text = (repository / "docs" / "GATE.md").read_text(encoding="utf-8")
    assert [name for name, table in tables.items() if table not in text] == []
