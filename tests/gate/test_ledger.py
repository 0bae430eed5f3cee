"""Looks at a gate split are counted once each, and a ledger that is not as it was written is found, by its line."""

import json
import multiprocessing
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tunesmith import files
from tunesmith.errors import Invalid
from tunesmith.gate import ledger as module
from tunesmith.gate.ledger import Ledger
from tunesmith.stats import spent


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


def filled(path: Path, looks: int = 5) -> Ledger:
    ledger = Ledger(path)
    for number in range(looks):
        ledger.look("split-1", f"candidate-{number}", name="smoke", lock="l" * 64)
        ledger.enter({"kind": "verdict", "candidate": f"candidate-{number}", "gate_digest": "split-1"})
    return ledger


def texts(ledger: Ledger) -> list[str]:
    return ledger.path.read_text(encoding="utf-8").splitlines()


# ---------------------------------------------------------------------- looks


def test_the_first_candidate_is_look_one_where_there_is_no_ledger_yet(ledger: Ledger) -> None:
    assert ledger.look_number("split-1", "a") == 1
    assert ledger.problems() == []
    assert not ledger.path.exists()


def test_the_same_candidate_on_the_same_split_is_the_same_look(ledger: Ledger) -> None:
    assert [ledger.look("split-1", name) for name in "abcba"] == [1, 2, 3, 2, 1]
    assert [line["kind"] for line in ledger.lines()] == ["genesis", "look", "look", "look"]


def test_another_split_is_counted_by_itself(ledger: Ledger) -> None:
    assert [ledger.look("split-1", "a"), ledger.look("split-2", "b"), ledger.look("split-2", "a")] == [1, 1, 2]


def test_what_says_the_same_is_entered_once(ledger: Ledger) -> None:
    for verdict in ("SHIP", "SHIP", "BLOCK", "SHIP"):
        ledger.enter({"kind": "verdict", "candidate": "a", "gate_digest": "split-1", "verdict": verdict})
    assert [line["verdict"] for line in ledger.lines()[1:]] == ["SHIP", "BLOCK"]


def test_looks_share_out_alpha_and_no_more() -> None:
    assert [round(spent(0.05, look), 4) for look in range(1, 6)] == [0.0304, 0.0076, 0.0034, 0.0019, 0.0012]


def look_at(path: str, candidate: str) -> None:
    Ledger(Path(path)).look("split-1", candidate)


def test_processes_that_look_at_once_have_looks_of_their_own(ledger: Ledger) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.starmap(look_at, [(str(ledger.path), f"candidate-{i}") for i in range(12)])
    assert sorted(line["look"] for line in ledger.lines()[1:]) == list(range(1, 13))
    assert ledger.problems() == []


# ---------------------------------------------------------------------- the chain


def test_a_whole_ledger_has_no_problems_and_each_line_names_the_one_before(ledger: Ledger) -> None:
    filled(ledger.path)
    lines = ledger.lines()
    assert ledger.problems() == []
    assert [line["n"] for line in lines] == list(range(1, 12))
    assert len({line["before"] for line in lines}) == len(lines)
    assert lines[0]["kind"] == "genesis"
    assert len(lines[0]["id"]) == 32


def edited(lines: list[str]) -> list[str]:
    return [*lines[:4], lines[4].replace("candidate-1", "candidate-9"), *lines[5:]]


def verdict_turned(lines: list[str]) -> list[str]:
    return [*lines[:-1], lines[-1].replace("candidate-4", "candidate-0")]


TAMPERINGS = {
    "a line in the middle is edited": (edited, ":5: was edited"),
    "the last line is edited": (verdict_turned, ":11: was edited"),
    "a line is deleted": (lambda lines: [*lines[:4], *lines[5:]], ":5: was line 6"),
    "two lines change places": (lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]], ":5: was line 6"),
    "the end is cut off": (lambda lines: lines[:-3], ":9: missing; 11 lines were written, 8 are there"),
    "a line is put in": (lambda lines: [*lines[:4], lines[3], *lines[4:]], ":5: was line 4"),
    "an empty line is put in": (lambda lines: [*lines[:4], "", *lines[4:]], ":5: not a line of the ledger"),
    "all is gone": (lambda lines: [], ":1: missing; 11 lines were written, 0 are there"),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_tampering_is_named_by_line_and_nothing_is_added_to_it(tampering: str, ledger: Ledger) -> None:
    change, told = TAMPERINGS[tampering]
    filled(ledger.path)
    ledger.path.write_text("".join(line + "\n" for line in change(texts(ledger))), encoding="utf-8")
    before = ledger.path.read_bytes()
    assert any(told in problem for problem in ledger.problems()), ledger.problems()
    for write in (lambda: ledger.look("split-1", "another"), lambda: ledger.enter({"kind": "verdict"})):
        with pytest.raises(Invalid) as caught:
            write()
        assert caught.value.exit_code == 12
    assert ledger.path.read_bytes() == before


def test_a_chain_that_was_forged_from_some_line_on_does_not_fit_its_anchor(ledger: Ledger) -> None:
    filled(ledger.path)
    forged: list[str] = []
    for line in map(json.loads, edited(texts(ledger))):
        line["before"] = module._digest(forged[-1]) if forged else module.NOTHING
        forged.append(json.dumps(line, ensure_ascii=False))
    ledger.path.write_text("".join(line + "\n" for line in forged), encoding="utf-8")
    assert ledger.problems() == [f"{ledger.path}:11: was edited after it was written"]


def test_a_ledger_or_an_anchor_that_is_gone_is_missed(ledger: Ledger) -> None:
    filled(ledger.path)
    shutil.copy(ledger.anchor, ledger.anchor.with_suffix(".kept"))
    ledger.anchor.unlink()
    assert "missing; it says how many lines" in ledger.problems()[0]
    shutil.copy(ledger.anchor.with_suffix(".kept"), ledger.anchor)
    ledger.path.unlink()
    assert ":1: missing; 11 lines were written" in ledger.problems()[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return filled(tmp_path_factory.mktemp("whole") / "ledger.jsonl")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_random_edit_goes_unseen(data: st.DataObject, whole: Ledger) -> None:
    """Bytes changed, cut out or put in anywhere; lines shuffled, dropped or doubled."""
    content = whole.path.read_bytes()
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(content) - 1))
        cut = data.draw(st.integers(0, 40))
        changed = content[:at] + data.draw(st.binary(max_size=20)) + content[at + cut :]
    else:
        lines = content.splitlines(keepends=True)
        chosen = data.draw(st.lists(st.sampled_from(range(len(lines))), max_size=len(lines) + 2))
        changed = b"".join(lines[i] for i in chosen)
    assume(changed != content)
    with tempfile.TemporaryDirectory() as directory:
        other = Ledger(Path(directory) / "ledger.jsonl")
        other.path.write_bytes(changed)
        shutil.copy(whole.anchor, other.anchor)
        assert other.problems()


# ---------------------------------------------------------------------- kills, and ledgers of before


@pytest.mark.parametrize("earlier", [0, 2])
def test_a_kill_between_line_and_anchor_loses_no_look(
    earlier: int, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(ledger.path, looks=earlier)
    before = len(ledger.lines())

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            ledger.look("split-1", "late")
    assert ledger.problems() == []
    assert len(ledger.lines()) == before + (1 if before else 2)
    assert ledger.look("split-1", "late") == ledger.looks("split-1").index("late") + 1
    ledger.look("split-1", "later")
    assert ledger.problems() == []
    assert files.read_json(ledger.anchor)["lines"] == len(ledger.lines())


OLD = {
    "at": "2026-11-01T00:00:00+00:00",
    "name": "smoke",
    "run": "smoke-0123456789ab",
    "gate_digest": "split-1",
    "look": 1,
    "verdict": "SHIP",
}


def test_a_ledger_of_before_is_taken_over_once_and_marked(ledger: Ledger) -> None:
    old = [{**OLD, "candidate": name, "look": look} for look, name in enumerate("ab", start=1)]
    ledger.path.write_text("".join(json.dumps(line) + "\n" for line in old), encoding="utf-8")
    assert ledger.problems() == []
    assert ledger.look("split-1", "b") == 2
    assert ledger.look("split-1", "c") == 3
    genesis, first, second, look = ledger.lines()
    assert "taken_over" in genesis
    assert first["taken_over"] is second["taken_over"] is True
    assert (first["candidate"], first["at"], look["candidate"]) == ("a", OLD["at"], "c")
    assert ledger.problems() == []


def test_a_chained_ledger_is_not_taken_over_again(ledger: Ledger) -> None:
    filled(ledger.path)
    plain = [{**OLD, "candidate": line["candidate"]} for line in ledger.lines()[1:3]]
    ledger.path.write_text("".join(json.dumps(line) + "\n" for line in plain), encoding="utf-8")
    assert ledger.problems()
    with pytest.raises(Invalid):
        ledger.look("split-1", "another")
