"""What a diagnosis says of planted causes: in cases made here, and in small logs made by the script."""

import json
import random
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cost import Use
from tunesmith.diagnose.causes import Case, Cause
from tunesmith.diagnose.options import TUNED, Option, costs
from tunesmith.diagnose.stage import diagnose, effects, shapley
from tunesmith.diagnosing import diagnose_log, shared_beginning
from tunesmith.errors import UserError
from tunesmith.files import read_json, write_json, write_jsonl
from tunesmith.prices import read_prices
from tunesmith.sections import CostSection

CELLS = ("y00", "rerun", "y10", "p10", "y01", "p01", "y11")


def case(number: int, cells: str, cause: Cause | None = None, **more: Any) -> Case:
    """A row by its cells as digits, in the order of CELLS."""
    seen = {name: digit == "1" for name, digit in zip(CELLS, cells, strict=True)}
    settings = {"group": f"g{number}", "weight": 1.0, "cause": cause, "need": cause} | more
    return Case(id=f"r{number}", right=seen["y00"], cells=seen, **settings)


# ---------------------------------------------------------------------- effects


def test_what_comes_right_by_itself_is_taken_off_the_effect() -> None:
    """Of 40 rows the source repairs 20 and the irrelevant one 10 of the same: net a quarter."""
    cases = [case(i, "0010001") for i in range(10)] + [case(i, "0011001") for i in range(10, 20)]
    cases += [case(i, "0000000") for i in range(20, 40)]
    found = effects(cases)["source"]
    assert found["repaired"] == 0.5
    assert found["repaired_by_placebo"] == 0.25
    assert found["net"]["estimate"] == pytest.approx(0.25)
    assert found["net"]["low"] > 0
    assert found["mcnemar_p"] == pytest.approx(0.5**10)


def test_what_an_intervention_breaks_is_told() -> None:
    cases = [case(i, "0000000") for i in range(20)] + [case(i, "1111101") for i in range(20, 30)]
    cases += [case(i, "1101111") for i in range(30, 40)]
    told = effects(cases)
    assert told["source"]["broken"]["estimate"] == 0.5
    assert told["aid"]["broken"]["estimate"] == 0.0


def test_shapley_splits_the_whole_gain() -> None:
    """Both alone bring nothing in half of the rows and everything together: each gets half of it."""
    cases = [case(i, "0000001") for i in range(30)] + [case(i, "0010001") for i in range(30, 60)]
    found = shapley(cases, cases)
    assert found is not None
    gain = found["right"]["y11"] - found["right"]["y00"]
    assert found["source"]["estimate"] + found["aid"]["estimate"] == pytest.approx(gain) == 1.0
    assert found["source"]["estimate"] == pytest.approx(0.5 * 0.5 + 0.5 * 1.0)
    assert found["source"]["low"] < found["source"]["estimate"] < found["source"]["high"]


def test_rows_that_were_tried_stand_for_those_that_were_not() -> None:
    """Ten of ninety right rows were tried, and all ten failing ones."""
    tried = [case(i, "0010001") for i in range(10)] + [case(i, "1111111") for i in range(10, 20)]
    others = [Case(f"o{i}", f"o{i}", 1.0, right=True) for i in range(80)]
    found = shapley(tried, [*tried, *others])
    assert found is not None
    assert found["right"]["y00"] == pytest.approx(0.9)
    assert found["source"]["estimate"] == pytest.approx(0.1)


# ---------------------------------------------------------------------- the whole


def told(cases: list[Case], **more: Any) -> dict[str, Any]:
    return diagnose(cases, **{"passages": False, "suspected": {}, "about": {}} | more)


def planted(shares: dict[Cause, float], failing: int, drawn: random.Random) -> list[Case]:
    rows = {
        Cause.RETRIEVAL: "0010001",
        Cause.SHAPE: "0000101",
        Cause.BOTH: "0000001",
        Cause.CAPABILITY: "0000000",
        Cause.EITHER: "0010101",
    }
    chosen = drawn.choices([*shares], [*shares.values()], k=failing)
    return [case(i, rows[cause], cause) for i, cause in enumerate(chosen)]


def test_planted_shares_are_in_their_intervals() -> None:
    """All of four shares at once, by intervals of 95 % each: missed together in at most one case of five."""
    shares = {Cause.RETRIEVAL: 0.5, Cause.SHAPE: 0.25, Cause.BOTH: 0.15, Cause.CAPABILITY: 0.1}
    missed: Counter[Cause] = Counter()
    trials = 120
    for seed in range(trials):
        found = told(planted(shares, 120, random.Random(seed)))["causes"]
        for cause, share in shares.items():
            missed[cause] += not found[cause.value]["low"] <= share <= found[cause.value]["high"]
    assert max(missed.values()) <= trials * 0.05 + 3.1 * (trials * 0.05 * 0.95) ** 0.5


def test_a_closed_shape_is_measured_beyond_its_placebo() -> None:
    closed = [case(i, "0000101", Cause.SHAPE, closed=True) for i in range(60)]
    found = told(closed)
    assert found["closed_without_training"]["estimate"] == 1.0
    assert [step["action"] for step in found["prescription"]["steps"]] == ["constrained_decoding"]
    stuck = [case(i, "0000000", Cause.CAPABILITY, need=Cause.SHAPE, closed=False) for i in range(60)]
    found = told(stuck)
    assert found["causes"]["capability_or_label"]["estimate"] == 1.0
    assert [step["action"] for step in found["prescription"]["steps"]] == ["fine_tuning"]


def test_too_few_rows_leave_with_the_code_of_an_open_question() -> None:
    found = told([case(i, "0010001", Cause.RETRIEVAL) for i in range(5)])
    assert (found["decided"], found["exit_code"]) == (False, 11)


def test_rows_weigh_as_their_traffic() -> None:
    heavy = [case(i, "0010001", Cause.RETRIEVAL, weight=9.0) for i in range(30)]
    light = [case(i, "0000101", Cause.SHAPE) for i in range(30, 60)]
    assert told([*heavy, *light])["causes"]["retrieval"]["estimate"] == pytest.approx(0.9)


def test_nothing_to_judge_is_the_users_to_repair() -> None:
    with pytest.raises(UserError, match="no row has a reference"):
        told([])
    with pytest.raises(UserError, match="all rows ask the same"):
        told([case(i, "0010001", Cause.RETRIEVAL, group="one") for i in range(30)])


# ---------------------------------------------------------------------- costs


def test_options_are_priced_and_the_tuned_one_is_set_against_each() -> None:
    options = {
        "as_is": Option(Use(2000, 400, 0, 150), accuracy=0.6),
        "with_source": Option(Use(2000, 400, 900, 150), retrieves=True),
        TUNED: Option(Use(0, 400, 0, 150)),
    }
    section = CostSection(serves="gpt-5-mini", tuned="gpt-5-mini", cache_hits=0.95, hosting=864.0, retrieval=0.0001)
    found = costs(options, section, read_prices(), about="")
    assert found["cache_factor"] == pytest.approx(0.145)
    as_is, source = found["options"]["as_is"], found["options"]["with_source"]
    assert as_is["usd_per_1000_calls"] == pytest.approx(0.4725)
    assert as_is["usd_per_1000_right"] == pytest.approx(0.4725 / 0.6)
    assert source["usd_per_1000_calls"] == pytest.approx(0.4725 + 0.225 + 0.1)
    assert as_is["break_even_calls_a_month"] == pytest.approx(864 / 0.0000725, rel=1e-6)
    dear = costs(options, section.model_copy(update={"tuned": "gpt-5"}), read_prices(), about="")
    assert dear["options"]["as_is"]["break_even_calls_a_month"] == "never"


def test_what_texts_share_is_their_common_beginning() -> None:
    assert shared_beginning(["abc1", "abd", "abcx"]) == 2
    assert shared_beginning(["abc", "abc"]) == 3


# ---------------------------------------------------------------------- the script's logs, small

TOWNS = ["Salem", "Dayton", "Macon", "Provo", "Tulsa", "Boise", "Akron", "Waco", "Reno", "Mesa", "Ogden", "Flint"]
STREETS = ["Elm", "Oak", "Pine", "Cedar", "Maple", "Birch", "Walnut", "Cherry", "Laurel", "Aspen"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> tuple[Path, dict[str, dict[str, float]]]:
    """Logs over rows in the form of the curated ones, which are not in the repository."""
    root = tmp_path_factory.mktemp("logs")
    drawn = random.Random(5)
    for name in ("bank-answers", "json-extract"):
        (root / name).mkdir()
        write_json(root / name / "schema.json", read_json(repository / "data" / name / "schema.json"))
    write_rows(root / "bank-answers", [question(i, drawn) for i in range(240)])
    write_rows(root / "json-extract", [address(i, drawn) for i in range(240)])
    script = runpy.run_path(str(repository / "scripts" / "make_diagnosis_logs.py"))
    return root, script["make"](root, root / "out", rows=240, seed=1)


def write_rows(directory: Path, rows: list[dict[str, Any]]) -> None:
    write_jsonl(directory / "train.jsonl", rows[:200])
    write_jsonl(directory / "dev.jsonl", rows[200:])


def a_row(number: int, system: str, asked: str, answer: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": asked}]
    completion = {"role": "assistant", "content": json.dumps(answer)}
    return {"id": f"r{number}", "group": f"g{number}", "messages": messages, "completion": completion}


def question(number: int, drawn: random.Random) -> dict[str, Any]:
    def passage(i: int) -> str:
        return (
            f"[doc{i}#1] Card number {i}: Fees\n- Annual fee: {drawn.randint(10, 99)} crowns a year.\n- Late fee: none."
        )

    passages = [passage(number), passage(number + 1000), passage(number + 2000)]
    fee = passages[0].split("fee: ")[1].split(".")[0]
    drawn.shuffle(passages)
    asked = f"Question: What is the fee of card {number}?\n\nPassages:\n\n" + "\n\n".join(passages)
    return a_row(number, "Answer from the passages.", asked, {"answer": fee, "document": f"doc{number}#1"})


def address(number: int, drawn: random.Random) -> dict[str, Any]:
    parts = {"number": str(number + 100), "street": f"{drawn.choice(STREETS)} Street", "city": drawn.choice(TOWNS)}
    parts |= {"state": drawn.choice(["OH", "GA", "UT"]), "zip": str(drawn.randint(10000, 99999))}
    text = f"{parts['number']} {parts['street']}, {parts['city']}, {parts['state']} {parts['zip']}"
    return a_row(number, "Extract the address.", text, parts)


@pytest.mark.parametrize(
    ("name", "actions", "fine_tune"),
    [
        ("missing-facts", ["retrieval"], "no"),
        ("wrong-shape", ["fine_tuning"], "yes"),
        ("wrong-form", ["constrained_decoding"], "no"),
        ("both", ["hybrid"], "yes"),
        ("wrong-labels", ["fix_labels"], "no"),
    ],
)
def test_each_log_gets_what_its_cause_calls_for(
    made: tuple[Path, dict[str, dict[str, float]]], name: str, actions: list[str], fine_tune: str, tmp_path: Path
) -> None:
    root, shares = made
    path, found = diagnose_log(root / "out" / f"{name}.jsonl", tmp_path / "runs", CostSection(), read_prices())
    assert found == read_json(path)
    assert [step["action"] for step in found["prescription"]["steps"]] == actions
    assert (found["prescription"]["fine_tune"], found["exit_code"]) == (fine_tune, 0)
    for cause in Cause:
        each = found["causes"][cause.value]
        assert each["low"] <= shares[name].get(cause.value, 0.0) <= each["high"], cause
    assert found["cost"]["options"]["as_is"]["usd_per_1000_calls"] > 0


def test_a_log_is_diagnosed_once(made: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = made[0] / "out" / "both.jsonl"
    first, _ = diagnose_log(log, tmp_path / "runs", CostSection(), read_prices())
    before = first.stat().st_mtime_ns
    again, _ = diagnose_log(log, tmp_path / "runs", CostSection(), read_prices())
    assert (again, again.stat().st_mtime_ns) == (first, before)
    dearer, _ = diagnose_log(log, tmp_path / "runs", CostSection(miss=1.0), read_prices())
    assert dearer != first
    monkeypatch.setattr("tunesmith.diagnosing.SCHEMA", 0)
    diagnose_log(log, tmp_path / "runs", CostSection(), read_prices())
    assert first.stat().st_mtime_ns != before
