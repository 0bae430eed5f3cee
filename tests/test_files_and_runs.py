import json
import os
import signal
import subprocess
import sys

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith import __version__
from tunesmith.errors import UserError
from tunesmith.files import (
    publish,
    read_json,
    sha256_file,
    sha256_json,
    sha256_tree,
    write_atomic,
    write_json,
    write_jsonl,
)
from tunesmith.runs import LIBRARIES, Run, versions

INPUTS = {"base": "b1", "seed": 0}


class PowerCut(BaseException):
    """What no handler may catch."""


def cut_power(*arguments):
    raise PowerCut


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_atomic(path, "old\n")
    write_atomic(path, "new é\r\n")
    assert path.read_bytes() == "new é\r\n".encode()
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_write_that_is_cut_off_leaves_the_old_content(tmp_path, monkeypatch, call):
    path = tmp_path / "file.txt"
    write_atomic(path, "old")
    monkeypatch.setattr(os, call, cut_power)
    with pytest.raises(PowerCut):
        write_atomic(path, "new")
    assert path.read_text() == "old"


def test_a_file_is_renamed_only_after_its_bytes_are_on_the_disk(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: calls.append("fsync") or fsync(number))
    monkeypatch.setattr(os, "replace", lambda *paths: calls.append("replace") or replace(*paths))
    write_atomic(tmp_path / "file.txt", "text")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_text("a")
    publish(tmp_path / "source", tmp_path / "target")
    assert calls == ["fsync", "replace"] * 2


@pytest.mark.parametrize("write", [write_json, lambda path, value: write_jsonl(path, [value])])
def test_a_number_that_json_does_not_have_is_not_written(tmp_path, write):
    write(tmp_path / "file", {"a": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(tmp_path / "file", {"a": float("nan")})
    assert json.loads((tmp_path / "file").read_text()) == {"a": 1.5}


def test_json_lines_hold_one_value_a_line(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"a": "é\n\u2028"}, {"b": None}])
    assert (tmp_path / "rows.jsonl").read_bytes() == '{"a": "é\\n\u2028"}\n{"b": null}\n'.encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3),
    max_leaves=8,
)


def reordered(value):
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(part) for part in value] if isinstance(value, list) else value


@settings(deadline=None)
@given(value=JSON, other=JSON)
def test_the_digest_of_json_is_that_of_its_content_not_of_its_key_order(value, other):
    assert sha256_json(reordered(value)) == sha256_json(value)
    same = json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (sha256_json(value) == sha256_json(other)) is same


def test_the_digests_of_a_tree_are_those_of_its_files(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_text("1")
    (tmp_path / "a").write_text("2")
    assert list(sha256_tree(tmp_path).items()) == [
        ("a", sha256_file(tmp_path / "a")),
        ("b/c", sha256_file(tmp_path / "b" / "c")),
    ]


def test_publish_replaces_a_directory_whole(tmp_path):
    for name, files in {"old": ["stale", "both"], "new": ["both", "fresh"]}.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text(name)
    publish(tmp_path / "new", tmp_path / "old")
    assert {path.name: path.read_text() for path in (tmp_path / "old").iterdir()} == {"both": "new", "fresh": "new"}
    assert not (tmp_path / "new").exists()


def test_publish_makes_the_directories_above(tmp_path):
    (tmp_path / "file").write_text("x")
    publish(tmp_path / "file", tmp_path / "a" / "b" / "file")
    assert (tmp_path / "a" / "b" / "file").read_text() == "x"


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "runs" / "toy")


def do(run, stage, files, inputs=INPUTS, error=None):
    with run.stage(stage, inputs) as out:
        for name, text in files.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(text)
        if error:
            raise error


def contents(run):
    return {
        name: run.path(name).read_text()
        for name in sha256_tree(run.directory)
        if not name.startswith(("stages/", ".scratch/"))
    }


def test_a_run_is_named_by_all_that_decides_its_outcome(tmp_path):
    run = Run.of(tmp_path, "toy", INPUTS)
    assert run.directory == tmp_path / f"toy-{sha256_json(INPUTS)[:12]}"
    assert Run.of(tmp_path, "toy", {"seed": 0, "base": "b1"}).directory == run.directory
    assert Run.of(tmp_path, "toy", INPUTS | {"seed": 1}).directory != run.directory


def test_the_versions_are_those_of_the_installed_libraries():
    assert set(versions()) == {"tunesmith", *LIBRARIES}
    assert versions()["tunesmith"] == __version__


def test_a_finished_stage_is_published_and_done(run):
    assert not run.is_done("train", INPUTS)
    do(run, "train", {"adapter/weights": "w", "train.jsonl": "loss"})
    assert contents(run) == {"adapter/weights": "w", "train.jsonl": "loss"}
    assert run.is_done("train", INPUTS)
    assert not run.is_done("check", INPUTS)
    assert not (run.directory / ".scratch" / "train").exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, PowerCut])
def test_an_error_inside_a_stage_publishes_nothing(run, error):
    with pytest.raises(error):
        do(run, "train", {"weights": "half"}, error=error)
    assert contents(run) == {}
    assert not run.is_done("train", INPUTS)
    with run.stage("train", INPUTS) as out:
        assert list(out.iterdir()) == []
        (out / "weights").write_text("whole")
    assert contents(run) == {"weights": "whole"}
    assert run.is_done("train", INPUTS)


def test_a_stage_that_is_done_again_and_fails_is_no_longer_done(run):
    do(run, "train", {"weights": "first"})
    with pytest.raises(ValueError, match="half way"):
        do(run, "train", {"weights": "second"}, error=ValueError("half way"))
    assert not run.is_done("train", INPUTS)
    assert contents(run) == {"weights": "first"}


def test_a_killed_process_publishes_nothing(run):
    do(run, "train", {"weights": "first"})
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from tunesmith.runs import Run\n"
        "with Run(Path(sys.argv[1])).stage('train', {}) as out:\n"
        "    (out / 'weights').write_text('second')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(run.directory)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert contents(run) == {"weights": "first"}
    assert not run.is_done("train", {})
    assert not run.is_done("train", INPUTS)
    do(run, "train", {"other": "third"})
    assert contents(run) == {"weights": "first", "other": "third"}


def test_a_stage_cut_off_while_it_is_published_is_not_done(run, monkeypatch):
    from tunesmith import runs

    published = []

    def one_only(source, target):
        if published:
            cut_power()
        published.append(target.name)
        publish(source, target)

    monkeypatch.setattr(runs, "publish", one_only)
    with pytest.raises(PowerCut):
        do(run, "train", {"a": "1", "b": "2"})
    assert contents(run) == {"a": "1"}
    assert not run.is_done("train", INPUTS)


def test_a_stage_is_not_done_for_other_inputs(run):
    do(run, "train", {"weights": "w"})
    assert run.is_done("train", dict(reversed(INPUTS.items())))
    for other in ({}, INPUTS | {"seed": 1}, INPUTS | {"more": 0}):
        assert not run.is_done("train", other)


def test_a_stage_is_not_done_when_a_byte_of_its_output_changed_or_is_missing(run):
    do(run, "train", {"adapter/weights": "w", "train.jsonl": "loss"})
    path = run.path("adapter/weights")
    path.write_text("x")
    assert not run.is_done("train", INPUTS)
    path.write_text("w")
    assert run.is_done("train", INPUTS)
    path.unlink()
    assert not run.is_done("train", INPUTS)


def test_another_stages_files_do_not_touch_it(run):
    do(run, "check", {"check.json": "{}"})
    do(run, "train", {"adapter/weights": "w"})
    assert run.is_done("check", INPUTS)
    assert run.is_done("train", INPUTS)
    assert contents(run) == {"check.json": "{}", "adapter/weights": "w"}


def test_arms_of_several_stages_stand_side_by_side(run):
    do(run, "arm/dev/zero_shot", {"arms/dev/zero_shot.jsonl": "z"})
    do(run, "arm/zero_shot", {"arms/zero_shot.jsonl": "Z"})
    do(run, "arm/dev/few_shot", {"arms/dev/few_shot.jsonl": "f"})
    do(run, "arm/zero_shot", {"arms/zero_shot.jsonl": "again"}, {"seed": 1})
    assert contents(run) == {
        "arms/dev/zero_shot.jsonl": "z",
        "arms/dev/few_shot.jsonl": "f",
        "arms/zero_shot.jsonl": "again",
    }
    assert run.is_done("arm/dev/zero_shot", INPUTS)
    assert run.is_done("arm/zero_shot", {"seed": 1})


def test_a_directory_of_one_stage_is_replaced_whole(run):
    do(run, "train", {"adapter/weights": "old", "adapter/stale": "left over"})
    do(run, "train", {"adapter/weights": "new"}, {"seed": 1})
    assert contents(run) == {"adapter/weights": "new"}


def test_a_record_holds_inputs_outputs_and_time(run):
    do(run, "arm/dev/zero_shot", {"arms/dev/zero_shot.jsonl": "z"})
    record = read_json(run.directory / "stages" / "arm-dev-zero_shot.json")
    assert record.pop("seconds") >= 0
    assert record == {
        "stage": "arm/dev/zero_shot",
        "inputs": sha256_json(INPUTS),
        "outputs": {"arms/dev/zero_shot.jsonl": sha256_file(run.path("arms/dev/zero_shot.jsonl"))},
    }


def test_a_second_process_cannot_take_a_run_that_is_held(run):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tunesmith.cli import guarded\n"
        "from tunesmith.runs import Run\n"
        "def hold():\n"
        "    with Run(Path(sys.argv[1])).locked():\n"
        "        print('held')\n"
        "sys.exit(guarded(hold))\n"
    )
    command = [sys.executable, "-c", code, str(run.directory)]
    with run.locked():
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.stderr == (f"{run.directory}: another tunesmith is at work in this run; wait for it or stop it\n")
        assert (second.returncode, second.stdout) == (2, "")
    third = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (third.returncode, third.stdout) == (0, "held\n")


def test_a_lock_is_let_go_after_an_error(run):
    with pytest.raises(UserError), run.locked():
        raise UserError("stop")
    with FileLock(run.directory / ".lock", timeout=0):
        pass
