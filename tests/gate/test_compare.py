"""Logs that lm-eval and Inspect wrote themselves (0.4.13 and 0.3.285, six questions each), read and weighed."""

import json
from pathlib import Path
from typing import Any

import pytest
from backports.zstd import zipfile
from typer.testing import CliRunner

from tunesmith.cli import app
from tunesmith.errors import UserError
from tunesmith.gate.compare import compare
from tunesmith.gate.evidence import Arm
from tunesmith.gate.interop import metrics_of, read_arm

LOGS = Path(__file__).parent / "logs"
SAMPLES = LOGS / "samples_toy.jsonl"


def arm(name: str, scores: list[float], **others: Any) -> Arm:
    return Arm(name, {}, [{"id": f"q{i}", "group": f"q{i}", "scores": {"m": s}} for i, s in enumerate(scores)])


def test_an_inspect_log_is_an_arm() -> None:
    found = read_arm(LOGS / "incumbent.eval")
    assert sorted(found.ids)[:3] == ["q0, epoch 1", "q0, epoch 2", "q1, epoch 1"]
    assert len(set(found.groups)) == 6, "epochs of a question are one group"
    assert metrics_of(found) == ["match", "includes"]
    assert {row["id"][:2] for row in found.rows if row["scores"]["match"] == 1.0} == {"q0", "q1", "q2"}
    assert sorted(set(read_arm(LOGS / "incumbent.eval", group="group").groups)) == ["g0", "g1", "g2"]


def test_an_lm_eval_log_is_an_arm() -> None:
    found = read_arm(SAMPLES, group="q")
    assert len(found.rows) == 6
    assert found.groups[1] == "1+1?"
    assert metrics_of(found) == ["exact_match"]
    assert set(found.scores("exact_match")) == {0.0}


def changed(path: Path, change: Any) -> Path:
    lines = [json.loads(line) for line in SAMPLES.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))
    return path


def with_filters(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**line, "filter": name} for name in ("strict", "flexible") for line in lines]


def test_answers_of_several_filters_are_told_apart(tmp_path: Path) -> None:
    path = changed(tmp_path / "samples.jsonl", with_filters)
    with pytest.raises(UserError, match=r"several filters \(flexible, strict\); name one by --filter"):
        read_arm(path)
    with pytest.raises(UserError, match="no filter 'other'"):
        read_arm(path, only="other")
    assert len(read_arm(path, only="strict").rows) == 6


BROKEN = {
    "twice": (lambda lines: [*lines, lines[0]], "1 rows answer a question that another row answers too"),
    "no scores": (lambda lines: [{**line, "metrics": []} for line in lines], "line 1: holds no score"),
    "not a number": (lambda lines: [{**line, "exact_match": [1, 2]} for line in lines], "line 6: holds no score"),
    "empty": (lambda lines: [], "no log that is known"),
    "another form": (lambda lines: [{"a": 1}], "no log that is known"),
}


@pytest.mark.parametrize(("change", "says"), BROKEN.values(), ids=BROKEN.keys())
def test_a_log_that_cannot_be_weighed_is_refused(tmp_path: Path, change: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_arm(changed(tmp_path / "samples.jsonl", change))


@pytest.mark.parametrize(
    ("member", "value", "says"),
    [
        ("header.json", {"status": "error"}, "did not end"),
        ("samples/q0_epoch_1.json", {"id": "q0", "epoch": 1, "error": {"message": "no"}}, "failed in the harness"),
        (
            "samples/q0_epoch_1.json",
            {"id": "q0", "epoch": 1, "scores": {"s": {"value": "fine"}}},
            "a number or a grade",
        ),
        ("samples/q0_epoch_1.json", {"id": "q1", "epoch": 1, "scores": {"match": {"value": 1}}}, "answers too"),
    ],
)
def test_an_evaluation_that_failed_is_refused(tmp_path: Path, member: str, value: Any, says: str) -> None:
    with zipfile.ZipFile(LOGS / "incumbent.eval") as log, zipfile.ZipFile(tmp_path / "log.eval", "w") as other:
        for name in log.namelist():
            other.writestr(name, json.dumps(value).encode() if name == member else log.read(name))
    with pytest.raises(UserError, match=says):
        read_arm(tmp_path / "log.eval")
    (tmp_path / "cut.eval").write_bytes((LOGS / "incumbent.eval").read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be read"):
        read_arm(tmp_path / "cut.eval")


def test_rows_pair_by_question_and_not_by_place() -> None:
    before, after = arm("a", [0.0] * 30 + [1.0] * 10), arm("b", [1.0] * 20 + [0.0] * 10 + [1.0] * 10)
    after.rows.reverse()
    found = compare(before, after, None, 0.1, 0.05)
    assert (found["verdict"], len(found["fixed"]), len(found["broken"])) == ("SHIP", 20, 0)
    assert found["terms"][1]["estimate"] == pytest.approx(0.5)


OUTCOMES = [
    ([0.0] * 40, 0.0, "INCONCLUSIVE"),
    ([0.0] * 40, 0.5, "BLOCK"),
    ([1.0] * 30 + [0.0] * 10, 0.1, "SHIP"),
    ([1.0] * 2 + [0.0] * 38, 0.05, "INCONCLUSIVE"),
]


@pytest.mark.parametrize(("after", "wanted", "verdict"), OUTCOMES)
def test_the_verdicts(after: list[float], wanted: float, verdict: str) -> None:
    assert compare(arm("a", [0.0] * 40), arm("b", after), "m", wanted, 0.05)["verdict"] == verdict


def test_what_is_worse_is_not_better_even_where_nothing_more_was_asked() -> None:
    assert compare(arm("a", [1.0] * 40), arm("b", [0.0] * 40), "m", 0.0, 0.05)["verdict"] == "BLOCK"


def test_other_questions_are_not_comparable() -> None:
    found = compare(arm("a", [1.0] * 40), arm("b", [1.0] * 41), "m", 0.0, 0.05)
    assert (found["verdict"], found["means"]) == ("INVALID", {})
    with pytest.raises(UserError, match="there is no 'other'; both have: m"):
        compare(arm("a", [1.0] * 40), arm("b", [1.0] * 40), "other", 0.0, 0.05)
    with pytest.raises(UserError, match="outside 0 to 1"):
        compare(arm("a", [1.0] * 40), arm("b", [7.0] * 40), "m", 0.0, 0.05)


def test_the_command_ends_with_the_verdict() -> None:
    logs = [str(LOGS / name) for name in ("incumbent.eval", "candidate.eval")]
    ended = CliRunner().invoke(app, ["compare", *logs, "--metric", "match"])
    assert ended.exit_code == 11
    assert "INCONCLUSIVE: not settled by these rows" in ended.output
    assert "+0.167" in ended.output
