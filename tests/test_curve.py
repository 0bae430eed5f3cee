"""What is said about more rows holds on simulated curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.curve.fit import covariance, project, trend
from tunesmith.curve.stage import NO_EFFECT, Point, curve, examine
from tunesmith.errors import UserError
from tunesmith.files import read_json
from tunesmith.recipe import Recipe

ROWS = [100, 200, 400, 800]
GROUPS = [f"g{row // 2}" for row in range(120)]


def answers(rng: Any, means: Sequence[float], own: float = 0.5) -> Any:
    """Right or wrong, (sizes, dev rows): a row is as hard as itself and its group, at every size."""
    groups = np.repeat(rng.normal(size=60), 2)
    noise = rng.normal(size=(len(means), 120)) * own
    difficulty = (groups + rng.normal(size=120) + noise) / np.sqrt(2 + own**2)
    from scipy.stats import norm

    return (difficulty < norm.ppf(np.asarray(means))[:, None]).astype(float)


def power(ceiling: float, gap: float, rate: float, rows: Sequence[int] = ROWS) -> Any:
    return ceiling - gap * (np.asarray(rows) / ROWS[-1]) ** -rate


# ---------------------------------------------------------------------- statistics, by simulation


def test_without_an_effect_growth_is_claimed_as_rarely_as_alpha_says() -> None:
    rng, runs = np.random.default_rng(0), 400
    found = [trend(ROWS, answers(rng, [0.6] * 4), GROUPS, 0.05) for _ in range(runs)]
    claimed = sum(interval.low > 0 for interval in found) / runs
    # Three standard errors of 400 runs; rows of a group taken for independent would not change a paired slope much.
    assert claimed <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    covered = sum(interval.low <= 0 <= interval.high for interval in found) / runs
    assert covered >= 0.9 - 3 * np.sqrt(0.9 * 0.1 / runs)


def test_an_effect_is_found_and_its_size_is_that_of_the_line() -> None:
    rng = np.random.default_rng(1)
    means = [0.3, 0.4, 0.5, 0.6]
    found = [trend(ROWS, answers(rng, means), GROUPS, 0.05) for _ in range(100)]
    assert np.mean([interval.estimate for interval in found]) == pytest.approx(0.1, abs=0.005)
    assert sum(interval.low > 0 for interval in found) >= 95
    assert trend(ROWS[::-1], answers(rng, means), GROUPS, 0.05).high < 0


def test_the_trend_is_the_least_squares_slope_over_doublings() -> None:
    rng = np.random.default_rng(2)
    rows, scores = [70, 150, 310, 800], rng.random((4, 120))
    slope = np.polyfit(np.log2(rows), scores.mean(axis=1), 1)[0]
    assert trend(rows, scores, GROUPS, 0.05).estimate == pytest.approx(slope)


def test_the_covariance_is_that_of_the_means_over_fresh_groups_of_rows() -> None:
    rng = np.random.default_rng(3)
    drawn = [answers(rng, [0.3, 0.5, 0.6, 0.7]) for _ in range(1500)]
    wanted = np.cov(np.stack([scores.mean(axis=1) for scores in drawn]).T)
    found = np.mean([covariance(scores, GROUPS) for scores in drawn[:200]], axis=0)
    assert found == pytest.approx(wanted, rel=0.12)
    # The sizes share the dev rows: as if they did not, their errors would have no covariance.
    assert wanted[1, 2] > 0.5 * wanted[1, 1]


def test_where_all_is_right_there_is_noise_all_the_same() -> None:
    noise = covariance(np.ones((3, 20)), [str(row) for row in range(20)])
    assert np.allclose(noise, np.eye(3) * 0.5 / 22**2)


@pytest.mark.parametrize("truth", [(0.9, 0.15, 0.5), (0.7, 0.05, 1.0)])
def test_the_interval_of_the_projection_holds_the_truth(truth: tuple[float, float, float]) -> None:
    """A 90 % interval over 40 curves: at least 80 %, since four points bound three parameters loosely."""
    rng, held, runs = np.random.default_rng(4), 0, 40
    wanted = power(*truth, rows=[1600])[0]
    for _ in range(runs):
        scores = answers(rng, power(*truth))
        found = project(ROWS, scores.mean(axis=1).tolist(), covariance(scores, GROUPS), [1600], 0.05, refits=40)
        held += found.low[0] <= wanted <= found.high[0]
        assert found.low[0] <= found.estimate[0] <= found.high[0] <= 1
        assert found.failed == 0
    assert held / runs >= 0.8
    assert found.high[0] - found.low[0] > 0.02


def test_scores_on_a_power_law_are_followed_along_it() -> None:
    truth = (0.9, 0.1, 0.6)
    noise = np.eye(4) * 1e-6
    found = project(ROWS, power(*truth).tolist(), noise, [1600, 3200], 0.05, refits=20)
    assert found.estimate == pytest.approx(power(*truth, rows=[1600, 3200]).tolist(), abs=0.005)
    assert (found.ceiling, found.rate) == (pytest.approx(0.9, abs=0.01), pytest.approx(0.6, abs=0.05))


def test_points_that_scatter_more_than_dev_explains_widen_the_interval() -> None:
    noise = np.eye(4) * 1e-4
    smooth = project(ROWS, power(0.9, 0.1, 0.6).tolist(), noise, [1600], 0.05, refits=40)
    scattered = project(ROWS, [0.55, 0.75, 0.70, 0.85], noise, [1600], 0.05, refits=40)
    assert scattered.high[0] - scattered.low[0] > 2 * (smooth.high[0] - smooth.low[0])


def test_refits_that_fail_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.curve import fit

    real, calls = fit._fit, iter(range(100))

    def sometimes(*arguments: Any) -> Any:
        if next(calls) % 5 == 4:
            raise RuntimeError
        return real(*arguments)

    monkeypatch.setattr(fit, "_fit", sometimes)
    found = project(ROWS, power(0.9, 0.1, 0.6).tolist(), np.eye(4) * 1e-4, [1600], 0.05, refits=20)
    assert (found.refits, found.failed) == (20, 4)


# ---------------------------------------------------------------------- what is said


def recipe(**sets: Any) -> Recipe:
    """The least that a recipe says."""
    values: dict[str, Any] = {
        "name": "toy",
        "base": "tiny",
        "data": {"directory": "data", "schema": "schema.json", "max_tokens": 64},
        "lora": {"r": 8},
        "trainer": {"num_train_epochs": 3} | sets,
        "arms": {"max_new_tokens": 8},
        "gate": {"min_gain": 0.1},
    }
    return Recipe.model_validate(values)


def points(scores: Any, rows: Sequence[int] = ROWS) -> list[Point]:
    found = []
    for size, one in zip(rows, scores, strict=True):
        lines = [
            {"id": f"row-{row}", "group": group, "scores": {"exact_match": score}}
            for row, (group, score) in enumerate(zip(GROUPS, one, strict=True))
        ]
        # In another order for every size: rows are matched by id.
        found.append(Point(size, size // 8, f"runs/{size}", lines[size % 7 :] + lines[: size % 7]))
    return found


def test_a_flat_curve_gets_no_number(tmp_path: Path) -> None:
    scores = answers(np.random.default_rng(6), [0.6] * 4)
    curve(points(scores), None, None, recipe(), tmp_path)
    told = read_json(tmp_path / "curve.json")
    assert NO_EFFECT in told["says"]
    assert told["projection"] is None
    assert told["trend"]["low"] < 0 < told["trend"]["high"]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_curve_that_falls_is_said_to_fall() -> None:
    scores = answers(np.random.default_rng(7), [0.8, 0.7, 0.6, 0.5])
    told = examine(points(scores), None, None, recipe())
    assert "scores fall with more rows" in told["says"]
    assert told["projection"] is None


def test_a_curve_that_rises_is_projected_and_called_a_guess(tmp_path: Path) -> None:
    scores = answers(np.random.default_rng(8), [0.3, 0.5, 0.62, 0.7])
    best = points(scores[:1], [100])[0]
    curve(points(scores), best, "few_shot", recipe(max_steps=50), tmp_path)
    told = read_json(tmp_path / "curve.json")
    assert "a projection from 4 points is a guess" in told["says"]
    assert "0 of 400 refits failed" in told["says"]
    assert told["ahead"] == [1600, 3200]
    assert told["projection"]["rows"][-1] == 3200
    assert told["equal"].startswith("the recipe's 50 steps for every size")
    assert told["incumbent"]["arm"] == "few_shot"
    assert told["incumbent"]["score"] == told["points"][0]["score"] == pytest.approx(float(scores[0].mean()))
    assert told["points"][0]["low"] < told["points"][0]["score"] < told["points"][0]["high"]


def test_too_few_sizes_are_refused() -> None:
    scores = answers(np.random.default_rng(9), [0.3, 0.5, 0.7, 0.7])
    with pytest.raises(UserError, match="too few for a curve"):
        examine(points(scores[:2], ROWS[:2]), None, None, recipe())
    with pytest.raises(UserError, match="too few for a curve"):
        examine(points(scores, [1, 1, 2, 2]), None, None, recipe())
