"""The interventions: what stands before the model in each, and a whole diagnosis on the tiny base."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tunesmith.cli import app
from tunesmith.diagnosing import Diagnosis
from tunesmith.errors import UserError
from tunesmith.evaluate.arms import with_shots
from tunesmith.evaluate.oracle import Aid, Interventions, aid_of, is_given, sources_of, with_source
from tunesmith.evaluate.stage import open_arena
from tunesmith.files import read_jsonl, sha256_tree, write_jsonl
from tunesmith.line import Line
from tunesmith.rows import Message, Row

AID = Aid(k=2, constrained=True)


def fact(number: int, colour: str, *, given: bool = False) -> Row:
    source = f"Entry {number} of the list. " + f"The lamp of room {number} is {colour}. " * (1 + number % 3)
    asked = f"Which colour is the lamp of room {number}?" + (f"\n{source}" if given else "")
    return Row(
        id=f"r{number}",
        group=f"g{number}",
        messages=[Message(role="system", content="Answer as JSON."), Message(role="user", content=asked)],
        completion=Message(role="assistant", content=json.dumps({"colour": colour})),
        meta={"gold_text": source},
    )


COLOURS = ["red", "blue", "green", "white"]
ROWS = [fact(i, COLOURS[i % 4]) for i in range(8)] + [fact(99, "red", given=True)]


@pytest.fixture
def interventions(project: Path) -> Interventions:
    line = Line("smoke")
    line.curate()
    return Interventions(open_arena(line.loaded, line.dataset, line.base), ROWS, AID)


def text(messages: list[Message]) -> str:
    return "\n".join(f"{m.role}: {m.content}" for m in messages)


# ---------------------------------------------------------------------- messages


def test_each_cell_puts_before_the_model_what_it_says(interventions: Interventions) -> None:
    row = ROWS[0]
    (source,) = sources_of(row)
    asked = text(list(row.messages))
    for cell in ("y00", "rerun"):
        assert text(interventions.messages(row, cell)) == asked
    assert text(interventions.messages(row, "y10")) == f"{asked}\n\nSource:\n\n{source}"
    shots = text(with_shots(row, interventions.shots))
    assert text(interventions.messages(row, "shots")) == text(interventions.messages(row, "y01")) == shots
    both = text(interventions.messages(row, "y11"))
    assert both.startswith(shots)
    assert both.endswith(source)


def test_no_cell_shows_the_reference_or_another_rows_answer(interventions: Interventions) -> None:
    train = {row.reference for row in interventions.arena.train}
    for row in ROWS:
        for cell in ("rerun", "y10", "p10", "shots", "y01", "p01", "y11"):
            said = [m.content for m in interventions.messages(row, cell) if m.role == "assistant"]
            assert set(said) <= train
            assert row.reference not in text(interventions.messages(row, cell)) or row.reference in train


def test_the_irrelevant_source_is_as_long_and_does_not_answer(interventions: Interventions) -> None:
    for row in ROWS[:8]:
        colour = json.loads(row.reference)["colour"]
        length = len(interventions._ids(sources_of(row)[0]))
        placebo = interventions.irrelevant(row)
        assert colour not in placebo
        assert abs(len(interventions._ids(placebo)) - length) <= 2
        assert f"room {row.id[1:]} " not in placebo


def test_the_neutral_instruction_is_as_long_as_the_aid(interventions: Interventions) -> None:
    renderer = interventions.arena.renderer
    for row in ROWS[:4]:
        aided, neutral = (renderer.prompt_ids(interventions.messages(row, cell), row.tools) for cell in ("y01", "p01"))
        assert abs(len(aided) - len(neutral)) <= 4
        assert [m.role for m in interventions.messages(row, "p01")] == ["system", "user"]


def test_a_source_that_stands_in_the_prompt_is_not_said_twice(interventions: Interventions) -> None:
    assert is_given(ROWS[-1])
    assert not is_given(ROWS[0])
    assert is_given(ROWS[0].model_copy(update={"meta": None}))
    assert [row.id for row in interventions.rows_of("y10")] == [f"r{i}" for i in range(8)]
    assert interventions.rows_of("y01") == ROWS


def test_a_source_goes_below_the_question() -> None:
    turns = [Message(role="user", content="one"), Message(role="assistant", content="two")]
    row = ROWS[0].model_copy(update={"messages": turns})
    assert [m.content for m in with_source(row, ["a", "b"])] == ["one\n\nSource:\n\na\n\nb", "two"]


def test_the_aid_is_the_strongest_that_the_arms_offer(project: Path) -> None:
    recipe = Line("json-extract").recipe
    assert aid_of(recipe) == Aid(k=6, constrained=True)
    bare = recipe.model_copy(update={"arms": recipe.arms.model_copy(update={"few_shot": [], "constrained": False})})
    with pytest.raises(UserError, match="without an aid to the shape"):
        aid_of(bare)


# ---------------------------------------------------------------------- the whole, on the tiny base


def cells(run: Path) -> dict[str, Any]:
    return {path.stem: read_jsonl(path) for path in sorted((run / "diagnosis").glob("*.jsonl"))}


def test_dev_rows_are_diagnosed_once_and_gate_rows_never(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = Diagnosis("smoke")
    line.curate()
    path, told = line.diagnose(failing=12)
    dev = {row.id for row in line.dataset.rows("dev")}
    answered = cells(path.parent)
    assert {"rerun", "shots", "y01", "p01"} <= answered.keys()
    assert all({line["id"] for line in lines} <= dev for lines in answered.values())
    assert (told["rows"], told["measured"], told["facts_given"]) == (len(dev), True, told["examined"])
    assert not list((path.parent / "arms").glob("*.jsonl")), "no gate row is answered"
    before = sha256_tree(path.parent)
    capsys.readouterr()
    again = Diagnosis("smoke")
    assert again.diagnose(failing=12) == (path, told)
    assert "unchanged: " in capsys.readouterr().err
    assert "base_model" not in vars(again), "nothing is answered again"
    assert sha256_tree(path.parent) == before


def test_a_log_is_tried_on_a_recipes_base(project: Path) -> None:
    lines = [
        {
            "id": row.id,
            "messages": [message.as_dict() for message in row.messages],
            "output": "?",
            "reference": row.reference,
            "gold": sources_of(row),
        }
        for row in ROWS[:8]
    ]
    log = project / "calls.jsonl"
    write_jsonl(log, lines)
    line = Diagnosis("smoke")
    line.curate()
    path, told = line.diagnose(log)
    answered = cells(path.parent)
    assert {len(lines) for lines in answered.values()} == {8}
    assert {"y00", "y10", "p10", "y11"} <= answered.keys()
    assert (told["rows"], told["log"]["file"]) == (8, "calls.jsonl")
    write_jsonl(log, [lines[0] | {"reference": "red"}, {"prompt": "q", "output": "a"}])
    with pytest.raises(UserError) as caught:
        Diagnosis("smoke").diagnose(log)
    assert len(caught.value.problems) == 2
    assert "r0: the reference is no JSON object" in caught.value.text
    assert "line-2: has no reference" in caught.value.text


# ---------------------------------------------------------------------- the command


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_a_log_alone_exits_11_where_rows_are_few(project: Path) -> None:
    lines = [{"prompt": f"q{i}", "output": "a", "reference": "b", "note": 1} for i in range(9)]
    write_jsonl(project / "few.jsonl", lines)
    done = command("diagnose", "few.jsonl")
    assert done.exit_code == 11, done.output
    assert "not enough rows to say: 9 failing rows tell no cause from another" in done.output
    assert "about 20 failing rows would settle it, about 20 rows in all" in done.output
    assert "not read: `note`, in 9 rows" in done.output


def test_a_log_alone_loads_no_model(project: Path) -> None:
    write_jsonl(project / "few.jsonl", [{"prompt": f"q{i}", "output": "a", "reference": "b"} for i in range(9)])
    program = (
        "import sys\nfrom tunesmith.cli import app\ntry: app(['diagnose', 'few.jsonl'])\nexcept SystemExit: pass\n"
    )
    program += "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    done = subprocess.run([sys.executable, "-c", program], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "diagnosis.json" in done.stdout


def test_what_does_not_go_together_is_refused(project: Path) -> None:
    write_jsonl(project / "few.jsonl", [{"prompt": "q", "output": "a"}])
    for arguments, told in (
        (("few.jsonl", "--base", "tiny"), "a log alone is read"),
        (("smoke", "--recipe", "smoke"), "is for a log"),
        (("few.jsonl",), "no row has a reference"),
        (("few.jsonl", "--model", "nobody"), "holds no price of `nobody`"),
        (("nothing.jsonl",), "nothing.jsonl: no such file"),
    ):
        assert told in str(command("diagnose", *arguments).exception)
