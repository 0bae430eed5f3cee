"""Looks at a gate split are counted, and the same look is counted once."""

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.gate.ledger import enter, look_number


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def judged(ledger: Path, candidate: str, split: str = "split-1", **changes: Any) -> int:
    """Enter a verdict as the gate does; returns which look it was."""
    look = look_number(ledger, split, candidate)
    enter(ledger, {"name": "smoke", "candidate": candidate, "gate_digest": split, "look": look} | changes)
    return look


def lines(ledger: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()]


def test_the_first_candidate_is_look_one_where_there_is_no_ledger_yet(ledger: Path) -> None:
    assert look_number(ledger, "split-1", "a") == 1
    assert not ledger.exists()


def test_the_same_evidence_twice_is_one_line(ledger: Path) -> None:
    assert [judged(ledger, "a"), judged(ledger, "a")] == [1, 1]
    assert len(lines(ledger)) == 1


def test_other_evidence_on_the_same_candidate_is_another_line_of_the_same_look(ledger: Path) -> None:
    assert [judged(ledger, "a", verdict_digest="x"), judged(ledger, "a", verdict_digest="y")] == [1, 1]
    assert [line["verdict_digest"] for line in lines(ledger)] == ["x", "y"]


def test_each_new_candidate_is_another_look(ledger: Path) -> None:
    assert [judged(ledger, candidate) for candidate in "abc"] == [1, 2, 3]


def test_a_candidate_judged_again_keeps_its_look(ledger: Path) -> None:
    assert [judged(ledger, candidate) for candidate in "abcba"] == [1, 2, 3, 2, 1]
    assert len(lines(ledger)) == 3


def test_another_gate_split_is_counted_by_itself(ledger: Path) -> None:
    assert [judged(ledger, "a"), judged(ledger, "b"), judged(ledger, "b", "split-2")] == [1, 2, 1]
    assert judged(ledger, "c") == 3


def test_earlier_lines_stay_as_they_are_and_say_when(ledger: Path) -> None:
    judged(ledger, "a")
    before = ledger.read_text(encoding="utf-8")
    judged(ledger, "b")
    assert ledger.read_text(encoding="utf-8").startswith(before)
    assert all(line["at"].endswith("+00:00") for line in lines(ledger))
