"""Lock, looks and promotion on a whole run of the tiny base: what was fixed before training stays fixed."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.curate.promote import CHANGED, promote, unfinished
from tunesmith.errors import Invalid, UserError
from tunesmith.files import read_json, sha256_json, write_json
from tunesmith.gate.lock import OUTSIDE_DIGEST, read_lock
from tunesmith.line import Line
from tunesmith.rows import SPLITS, Dataset, read_rows
from tunesmith.stats import spent

SHORT = ("trainer.num_train_epochs=6", "curate.split.shares={train: 0.45, dev: 0.05, gate: 0.2, confirm: 0.3}")


def arguments(*sets: str) -> list[str]:
    return [part for text in (*SHORT, *sets) for part in ("--set", text)]


def command(root: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "tunesmith.cli", *words]
    return subprocess.run(line, cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, repository: Path) -> Path:
    """A project in which smoke has run to its verdict."""
    root = tmp_path_factory.mktemp("finished")
    for name in ("recipes", "scripts"):
        shutil.copytree(repository / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "data" / "smoke").mkdir(parents=True)
    shutil.copy(repository / "data" / "smoke" / "schema.json", root / "data" / "smoke")
    (root / ".cache").mkdir()
    (root / ".cache" / "tiny-base").symlink_to(tiny_base)
    done = command(root, "run", "smoke", "--until", "gate", *arguments())
    assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.fixture
def copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That project once more, to be tampered with; the working directory."""
    root = tmp_path / "copy"
    shutil.copytree(finished, root, symlinks=True)
    monkeypatch.chdir(root)
    return root


def run_of(root: Path) -> Path:
    (directory,) = (root / "runs").glob("smoke-*/verdict.json")
    return directory.parent


def judged(*sets: str) -> dict[str, Any]:
    line = Line("smoke", sets=[*SHORT, *sets])
    with line.run.locked():
        return line.gate()


def failing(verdict: dict[str, Any]) -> dict[str, str]:
    assert (verdict["verdict"], verdict["exit_code"]) == ("INVALID", 12)
    return {term["name"]: term["says"] for term in verdict["terms"] if not term["pass"]}


# ---------------------------------------------------------------------- what an honest run leaves


def test_a_run_is_locked_before_it_is_trained_and_the_lock_is_bound_everywhere(finished: Path) -> None:
    run = run_of(finished)
    lock, verdict = read_lock(run / "gate.lock"), read_json(run / "verdict.json")
    assert lock is not None
    assert lock["digest"] == sha256_json({k: v for k, v in lock.items() if k not in OUTSIDE_DIGEST})
    assert read_json(run / "adapter" / "manifest.json")["lock_digest"] == lock["digest"]
    lines = [json.loads(line) for line in (finished / "runs" / "ledger.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["genesis", "lock", "look", "verdict"]
    assert lines[1]["lock"] == lock
    assert lines[2]["lock"] == lines[3]["lock"] == lock["digest"]
    assert lines[2]["by"] == "evaluate"
    assert verdict["lock"]["digest"] == lock["digest"]
    assert verdict["ledger"] == lines[0]["id"]
    assert (verdict["look"], verdict["alpha"]) == (1, spent(0.05, 1))
    assert verdict["ci_level"] == 1 - 2 * spent(0.05, 1)


def test_a_lock_says_all_that_decides(finished: Path) -> None:
    lock = read_lock(run_of(finished) / "gate.lock")
    assert lock is not None
    manifest = read_json(finished / "data" / "smoke" / "manifest.json")["files"]
    assert lock["incumbent"] == {"arm": "constrained", "shots": "none", "k": 0}
    assert lock["primary"] == {"metric": "exact_match", "delta": 0.1, "alpha": 0.05}
    assert lock["splits"] == {split: manifest[f"{split}.jsonl"]["sha256"] for split in SPLITS}
    assert lock["gate"]["merged_margin"] == 0.1
    assert lock["decoding"]["decoding"] == "greedy"
    assert 0 < lock["plan"]["power"] <= 1
    assert {"scorer", "base", "prompt", "written_at"} <= lock.keys()


def test_the_incumbents_second_answers_are_the_noise_floor(finished: Path) -> None:
    noise = read_json(run_of(finished) / "verdict.json")["noise"]
    assert (noise["arm"], noise["repeats"]) == ("constrained", 1)
    assert 0 <= noise["discordance"] <= noise["answers_that_differ"] < 0.1
    again = read_json(run_of(finished) / "again" / "gate-1" / "constrained.json")
    first = read_json(run_of(finished) / "arms" / "constrained.json")
    assert again["settings"]["batch_rows"] != first["settings"]["batch_rows"]


# ---------------------------------------------------------------------- what is changed after training


def test_a_margin_that_is_moved_after_a_look_is_named(copy: Path) -> None:
    assert judged()["verdict"] == "SHIP"
    found = failing(judged("gate.min_gain=0.01"))
    assert found.keys() == {"lock_unchanged"}
    assert "gate.min_gain: 0.1 in the lock, 0.01 now" in found["lock_unchanged"]
    # What was asked for before is what is judged again.
    assert judged()["verdict"] == "SHIP"


def edit_by_hand(run: Path) -> None:
    path = run / "gate.lock"
    text = path.read_text()
    assert "min_gain: 0.1\n" in text
    path.write_text(text.replace("min_gain: 0.1\n", "min_gain: 0.01\n").replace("delta: 0.1\n", "delta: 0.01\n"))


def edit_and_seal(run: Path) -> None:
    edit_by_hand(run)
    lock = read_lock(run / "gate.lock")
    assert lock is not None
    path, digest = run / "gate.lock", sha256_json({k: v for k, v in lock.items() if k not in OUTSIDE_DIGEST})
    path.write_text(path.read_text().replace(lock["digest"], digest))


def write_later(run: Path) -> None:
    path = run / "gate.lock"
    path.write_text(path.read_text().replace("written_at: '20", "written_at: '19"))


def forget_the_lock(run: Path) -> None:
    manifest = read_json(run / "adapter" / "manifest.json")
    write_json(run / "adapter" / "manifest.json", manifest | {"lock_digest": None})


def begin_under_another(run: Path) -> None:
    manifest = read_json(run / "adapter" / "manifest.json")
    write_json(run / "adapter" / "manifest.json", manifest | {"drift": ["lock: None → 'abc'"]})


CHANGES: dict[str, tuple[Callable[[Path], None], dict[str, str]]] = {
    "the lock is edited": (
        edit_by_hand,
        {"locked_before_training": "holds no such lock", "lock_unchanged": "gate.min_gain: 0.1 in the lock, 0.01 now"},
    ),
    "the lock is edited and sealed anew": (
        edit_and_seal,
        {"locked_before_training": "trained under lock", "lock_unchanged": "was looked at under lock"},
    ),
    "the lock's time is edited": (
        write_later,
        {"locked_before_training": "holds no such lock", "lock_unchanged": "not the one that was entered"},
    ),
    "the lock is deleted": (
        lambda run: (run / "gate.lock").unlink(),
        {"locked_before_training": "there is no gate.lock", "lock_unchanged": "there is no gate.lock"},
    ),
    "the adapter is older than the lock": (
        forget_the_lock,
        {"locked_before_training": "the adapter was trained when there was no lock"},
    ),
    "training was begun under another lock": (
        begin_under_another,
        {"locked_before_training": "training was begun under another lock, or none"},
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_lock_that_does_not_bind_makes_the_verdict_invalid(change: str, copy: Path) -> None:
    tamper, told = CHANGES[change]
    tamper(run_of(copy))
    found = failing(judged())
    assert found.keys() == told.keys()
    for name, text in told.items():
        assert text in found[name]


def test_the_line_keeps_a_lock_that_something_was_trained_under(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run_of(copy) / "gate.lock").read_bytes()
    line = Line("smoke", sets=[*SHORT, "gate.min_gain=0.01"])
    line.plan()
    assert (run_of(copy) / "gate.lock").read_bytes() == before
    assert "gate.min_gain: 0.1 in the lock, 0.01 now; the verdict will be INVALID" in capsys.readouterr().err


def test_an_adapter_from_before_the_lock_is_trained_anew(copy: Path) -> None:
    line = Line("smoke", sets=SHORT)
    assert not line.trained_unlocked()
    forget_the_lock(run_of(copy))
    assert line.trained_unlocked()


# ---------------------------------------------------------------------- the ledger


def test_an_edited_ledger_makes_the_verdict_invalid_until_it_is_put_back(copy: Path) -> None:
    ledger = copy / "runs" / "ledger.jsonl"
    kept = ledger.read_bytes()
    ledger.write_bytes(kept.replace(b'"kind": "look"', b'"kind": "lock"', 1))
    found = failing(judged())
    assert "ledger.jsonl:3: was edited after it was written" in found["ledger_whole"]
    with pytest.raises(UserError, match="the verdict is INVALID"):
        Line("smoke", sets=SHORT).export()
    ledger.write_bytes(kept)
    assert judged()["verdict"] == "SHIP"


def test_who_throws_the_ledger_away_has_no_verdict(copy: Path) -> None:
    for path in (copy / "runs").glob("ledger*"):
        path.unlink()
    run_of(copy).joinpath("verdict.json").unlink()
    line = Line("smoke", sets=SHORT)
    with line.run.locked():
        found = failing(line.gate())
    assert "the ledger holds no such lock" in found["locked_before_training"]


@pytest.fixture
def looked_at(copy: Path) -> Line:
    """The project after four other candidates were looked at on its gate split."""
    line = Line("smoke", sets=SHORT)
    for number in range(4):
        assert line.ledger.look(line.gate_digest, f"candidate-{number}", name="smoke") == number + 2
    return line


def untrained(copy: Path, *, looks: int) -> None:
    """The project as it is before training, with so many looks of others and none of its own."""
    run = run_of(copy)
    shutil.rmtree(run / "adapter")
    for path in (*(copy / "runs").glob("ledger*"), run / "gate.lock", run / "verdict.json"):
        path.unlink()
    line = Line("smoke", sets=SHORT)
    for number in range(looks):
        line.ledger.look(line.gate_digest, f"candidate-{number}", name="smoke")


def test_a_sixth_candidate_is_refused_before_anything_is_trained(copy: Path) -> None:
    untrained(copy, looks=5)
    line = Line("smoke", sets=SHORT)
    with pytest.raises(Invalid, match=r"gate.jsonl: has had its 5 looks and is retired") as caught:
        line.plan()
    assert caught.value.exit_code == 12
    assert "`tunesmith promote smoke` makes the confirm rows the new gate split" in caught.value.text
    assert line.lock_digest() is None


def test_a_plan_that_is_too_weak_is_refused_unless_it_is_accepted_by_name(copy: Path) -> None:
    untrained(copy, looks=1)
    weak = ["gate.min_gain=0.05"]
    with pytest.raises(UserError, match=r"would pass with a chance of 0\.") as caught:
        Line("smoke", sets=[*SHORT, *weak]).plan()
    assert any("gain_adapter: 92 rows, about" in problem for problem in caught.value.problems)
    (told,) = (problem for problem in caught.value.problems if "accept it by name" in problem)
    accept = told.rpartition("gate.accept_power=")[2].rstrip("`")
    assert Line("smoke", sets=[*SHORT, *weak]).lock_digest() is None
    accepted = Line("smoke", sets=[*SHORT, *weak, f"gate.accept_power={accept}"])
    accepted.plan()
    lock = read_lock(accepted.run.path("gate.lock"))
    assert lock is not None
    assert lock["gate"]["accept_power"] == float(accept) <= lock["plan"]["power"] < 0.8
    # One candidate was looked at before, so this plan is for the second look's share of alpha.
    assert (lock["plan"]["look"], lock["plan"]["alpha"]) == (2, round(spent(0.05, 2), 4))


def test_a_sixth_look_that_was_taken_all_the_same_is_invalid(looked_at: Line, copy: Path) -> None:
    """The adapter is younger than five looks: its own, the first, is taken out of the ledger of this test."""
    for path in (copy / "runs").glob("ledger*"):
        path.unlink()
    lock = read_lock(run_of(copy) / "gate.lock")
    looked_at.ledger.enter({"kind": "lock", "name": "smoke", "run": run_of(copy).name, "lock": lock})
    for number in range(5):
        looked_at.ledger.look(looked_at.gate_digest, f"candidate-{number}", name="smoke")
    run_of(copy).joinpath("verdict.json").unlink()
    found = failing(judged())
    assert found.keys() == {"looks_left"}
    assert "look 6 of 5 at this gate split: it is retired; `tunesmith promote smoke`" in found["looks_left"]


# ---------------------------------------------------------------------- promotion


def test_confirm_stays_sealed_while_there_are_looks_left(copy: Path) -> None:
    with pytest.raises(UserError, match="has 4 of 5 looks left; confirm stays sealed"):
        Line("smoke", sets=SHORT).promote()


def test_confirm_becomes_the_gate_split_and_the_old_one_joins_dev(looked_at: Line, copy: Path) -> None:
    data = copy / "data" / "smoke"
    before = {name: read_rows(data / name) for name in CHANGED}
    done = command(copy, "promote", "smoke", *arguments())
    assert done.returncode == 0, done.stderr
    dataset = Dataset(data)
    manifest = dataset.manifest()
    assert dataset.rows("gate") == before["confirm.jsonl"]
    assert dataset.rows("dev") == [*before["dev.jsonl"], *before["gate.jsonl"]]
    assert manifest["files"]["confirm.jsonl"]["rows"] == 0
    rows = [len(before[name]) for name in ("dev.jsonl", "gate.jsonl", "confirm.jsonl")]
    assert f"Rows now: dev {rows[0] + rows[1]}, gate {rows[2]}, confirm 0." in (data / "CARD.md").read_text()
    (promotion,) = manifest["promotions"]
    assert promotion["after"]["gate.jsonl"] == promotion["before"]["confirm.jsonl"] == dataset.digest("gate")
    # Curation finds its dataset as it made it; the new split has had no look; confirm cannot be promoted twice.
    line = Line("smoke", sets=SHORT)
    line.curate()
    assert Dataset(data).manifest() == manifest
    assert line.ledger.looks(line.gate_digest) == []
    assert [entry["kind"] for entry in line.ledger.lines()][-1] == "promotion"
    for number in range(5):
        line.ledger.look(line.gate_digest, f"candidate-{number}")
    with pytest.raises(UserError, match="there is nothing left to promote"):
        line.promote()


def test_a_promotion_that_was_killed_is_finished(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, moved = Dataset(copy / "data" / "smoke"), []
    confirm = dataset.rows("confirm")
    from tunesmith.curate import promote as module

    real = module.publish

    def killed(source: Path, target: Path) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        real(source, target)

    monkeypatch.setattr(module, "publish", killed)
    with pytest.raises(KeyboardInterrupt):
        promote(dataset)
    with pytest.raises(UserError):
        dataset.manifest()
    assert unfinished(dataset)
    monkeypatch.setattr(module, "publish", real)
    promote(dataset)
    assert dataset.rows("gate") == confirm
    assert not unfinished(dataset)


def test_a_broken_ledger_stops_the_line_before_training(copy: Path) -> None:
    ledger = copy / "runs" / "ledger.jsonl"
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:-1]))
    line = Line("smoke", sets=SHORT)
    with pytest.raises(Invalid, match=r"ledger.jsonl:4: missing"):
        line.count_look()
