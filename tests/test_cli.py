"""The command's surface: what it is called, what it says, how it exits, what it imports."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Tunesmith, as_a_user
from tunesmith.errors import ExitCode

COMMANDS = [
    "baseline",
    "check",
    "compare",
    "curate",
    "diagnose",
    "doctor",
    "evaluate",
    "export",
    "gate",
    "leaks",
    "plan",
    "promote",
    "recipe",
    "run",
    "train",
    "verify",
]


def test_the_commands_are_these(tunesmith: Tunesmith) -> None:
    """Growth of the surface must be argued."""
    from typer.main import get_command

    from tunesmith.cli import app

    group = get_command(app)
    assert sorted(group.commands) == COMMANDS  # type: ignore[attr-defined]
    assert sorted(group.commands["recipe"].commands) == ["schema", "show", "validate"]  # type: ignore[attr-defined]
    assert all(command.help for command in group.commands.values())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("--help",), 0), (("recipe", "validate", "smoke"), 0), (("gate", "smoke"), 2)],
)
def test_light_commands_never_import_torch(project: Path, arguments: tuple[str, ...], code: int) -> None:
    from tunesmith.line import Line

    Line("smoke").curate()
    command = [sys.executable, "-X", "importtime", "-m", "tunesmith.cli", *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == code
    imported = {line.rsplit("|", 1)[-1].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "tunesmith" in imported
    assert not imported & {"torch", "transformers", "trl", "peft", "datasets", "bitsandbytes"}


def test_gate_of_a_finished_run_never_imports_torch(project: Path) -> None:
    """The lighter case above stops early; this one judges."""
    code = (
        "import sys; from tunesmith.gate import stage, report; from tunesmith.line import Line; "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=project)


def test_a_typo_exits_2_with_where_what_and_what_to_do(tunesmith: Tunesmith, project: Path) -> None:
    text = (project / "recipes" / "smoke.yaml").read_text()
    (project / "recipes" / "typo.yaml").write_text(text.replace("learning_rate:", "learning_rat:"))
    line = next(i for i, t in enumerate(text.splitlines(), start=1) if "learning_rate:" in t)
    done = tunesmith("run", "typo")
    assert done.code == ExitCode.USER
    assert f"recipes/typo.yaml:{line}: trainer.learning_rat: unknown key; did you mean `learning_rate`?\n" in done.err
    assert "Traceback" not in done.err


def test_a_wrong_type_exits_2(tunesmith: Tunesmith) -> None:
    done = tunesmith("recipe", "validate", "smoke", "--set", "lora.r=eight")
    assert done.code == ExitCode.USER
    assert done.err == "--set: lora.r: 'eight' is not int\n"


def test_an_unknown_recipe_exits_2(project: Path) -> None:
    """The command as a person starts it: exit code and streams are its own."""
    done = as_a_user(project, "run", "smoke-qlor")
    assert done.code == ExitCode.USER
    assert done.err == "smoke-qlor: no such recipe in recipes/; did you mean `smoke-qlora`?\n"


def test_a_missing_file_exits_2(tunesmith: Tunesmith, project: Path) -> None:
    (project / "data" / "smoke" / "schema.json").unlink()
    done = tunesmith("run", "smoke")
    assert done.code == ExitCode.USER
    assert done.err == "recipes/smoke.yaml:11: data.schema: no such file 'data/smoke/schema.json'\n"


def test_a_corrupt_line_exits_2(tunesmith: Tunesmith, project: Path) -> None:
    """Curation would make the dataset anew, so the line is one of a dataset without a script: a user's own."""
    from tunesmith.files import read_json, sha256_file, write_json

    assert tunesmith("curate", "smoke").code == 0
    directory = project / "data" / "smoke"
    lines = (directory / "train.jsonl").read_text().splitlines()
    # Inside the text that is open at the fortieth character.
    lines[2] = lines[2][:40]
    column = lines[2].rindex('"') + 1
    (directory / "train.jsonl").write_text("\n".join(lines) + "\n")
    manifest = read_json(directory / "manifest.json")
    manifest["files"]["train.jsonl"]["sha256"] = sha256_file(directory / "train.jsonl")
    write_json(directory / "manifest.json", manifest)
    done = tunesmith("check", "smoke")
    assert done.code == ExitCode.USER
    assert done.err.splitlines()[-2:] == [
        f"data/smoke/train.jsonl:3: not JSON (Unterminated string starting at at column {column}); "
        "each line is one JSON object",
        "hint: a row is {id, group, messages, completion, rejected?, tools?, meta?}; fix the lines named",
    ]


def test_a_changed_split_exits_2(tunesmith: Tunesmith, project: Path) -> None:
    assert tunesmith("curate", "smoke").code == 0
    path = project / "data" / "smoke" / "gate.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    done = tunesmith("check", "smoke")
    assert done.code == ExitCode.USER
    assert "data/smoke/gate.jsonl: differs from its manifest; splits are written once\n" in done.err


def test_a_row_that_is_too_long_exits_2(tunesmith: Tunesmith) -> None:
    done = tunesmith("run", "smoke", "--set", "data.max_tokens=94")
    assert done.code == ExitCode.USER
    assert "check `length` fails: " in done.err
    assert "wanted: each row fits into data.max_tokens = 94" in done.err
    assert "hint: all row ids are in runs/smoke-" in done.err
    again = tunesmith("run", "smoke", "--set", "data.max_tokens=94")
    assert again.code == ExitCode.USER, "a failed check is not passed by asking twice"


def test_gate_before_evaluation_says_what_is_missing(tunesmith: Tunesmith) -> None:
    assert tunesmith("curate", "smoke").code == 0
    done = tunesmith("gate", "smoke")
    assert done.code == ExitCode.USER
    assert "selection.json: not there yet; `tunesmith baseline` makes it" in done.err


def test_a_value_that_upstream_refuses_is_the_users_fault(tunesmith: Tunesmith) -> None:
    assert tunesmith("curate", "smoke").code == 0
    done = tunesmith("train", "smoke", "--set", "trainer.lr_scheduler_type=cosin")
    assert done.code == ExitCode.USER
    assert "trainer: trl refuses it:" in done.err
    assert "Traceback" not in done.err


def test_recipe_show_tells_where_each_value_comes_from(tunesmith: Tunesmith) -> None:
    done = tunesmith("recipe", "show", "smoke-qlora", "--set", "seed=3")
    assert done.code == 0
    lines = {line.split(" = ")[0]: line for line in done.out.splitlines()}
    assert lines["quantization"].endswith("# recipes/smoke-qlora.yaml:5")
    assert "# recipes/smoke.yaml:" in lines["lora.r"]
    assert lines["seed"].endswith("# --set")
    assert lines["gate.alpha"].endswith("# default")


def test_doctor_names_device_and_versions(tunesmith: Tunesmith) -> None:
    done = tunesmith("doctor")
    assert done.code == 0
    assert "device" in done.out
    assert "trl         1.16" in done.out


def test_one_process_at_a_time_works_in_a_run(project: Path, tunesmith: Tunesmith) -> None:
    from tunesmith.line import Line

    line = Line("smoke")
    line.curate()
    with line.run.locked():
        done = tunesmith("check", "smoke")
    assert done.code == ExitCode.USER
    assert "another tunesmith is at work in this run; wait for it or stop it" in done.err


def test_a_full_disk_is_the_machines_fault(capsys: pytest.CaptureFixture[str]) -> None:
    import errno

    from tunesmith.cli import guarded

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x")

    assert guarded(full) == ExitCode.ENVIRONMENT
    assert capsys.readouterr().err == "runs/x: No space left on device; nothing half-written was kept\n"


def test_an_interruption_is_resumable(capsys: pytest.CaptureFixture[str]) -> None:
    from tunesmith.cli import guarded

    def interrupted() -> None:
        raise KeyboardInterrupt

    assert guarded(interrupted) == ExitCode.INTERRUPTED
    assert "run the same command again" in capsys.readouterr().err
