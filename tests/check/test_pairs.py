"""A pair that would teach nothing, or something else, is named before step 0."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.check.test_checks import row
from tunesmith.beginning import Beginning
from tunesmith.check.stage import Rendering, check, examine_rejected, refuse_failed, render_each
from tunesmith.errors import UserError
from tunesmith.files import read_json, sha256_file, write_json
from tunesmith.line import Line
from tunesmith.prompt import Renderer
from tunesmith.rows import Message, Row
from tunesmith.tokens import rendered_pairs


@pytest.fixture(scope="module")
def renderer(tiny_base):
    return Renderer(AutoTokenizer.from_pretrained(tiny_base, local_files_only=True))


def pair(row_id, rejected='{"n":2}', **more):
    held = row(row_id, **more).as_dict()
    return Row.model_validate(held | {"rejected": {"role": "assistant", "content": rejected}})


GOOD = [pair("a"), pair("b"), pair("c")]


def failing(renderer, rows, *, spoil=None, max_tokens=64):
    trained = render_each(rows, renderer)
    turns = [other for one in rows for turn in one.turns() if (other := turn.with_rejected())]
    worse = render_each(turns, renderer)
    if spoil:
        worse = Rendering([spoil(one) if one.row.id == "bad" else one for one in worse.checked], worse.refused)
    found = examine_rejected(trained, worse, renderer, max_tokens)
    return {finding.name: finding.rows for finding in found if finding.status == "FAIL"}


def spoiled(change):
    """A rendering that went wrong after the answer was rendered."""

    def spoil(one):
        changed = change(one.rendered)
        return replace(one, rendered=changed, input_ids=changed.input_ids, labels=changed.labels)

    return spoil


def talk(row_id):
    messages = [Message(role="user", content="hello"), Message(role="assistant", content="yes")]
    return pair(row_id).model_copy(
        update={"messages": [*messages, Message(role="user", content="and?")], "trained": [1]}
    )


ALONE = {
    "none": (row("bad"), None, {"pairs": ["bad"]}),
    "an earlier turn": (talk("bad"), None, {"pairs": ["bad#1"]}),
    "the same": (pair("bad", '{"n":1}'), None, {"pairs differ": ["bad"]}),
    "too long": (pair("bad", "x" * 90), None, {"rejected length": ["bad"]}),
    "no end": (
        pair("bad"),
        spoiled(lambda r: replace(r, completion_ids=r.completion_ids[:-1])),
        {"rejected end token": ["bad"]},
    ),
    "another answer": (
        pair("bad"),
        spoiled(lambda r: replace(r, completion_ids=[r.completion_ids[0], *r.completion_ids])),
        {"rejected is the answer": ["bad"]},
    ),
    "another prompt": (
        pair("bad"),
        spoiled(lambda r: replace(r, prompt_ids=r.prompt_ids[1:])),
        {"one prompt": ["bad"]},
    ),
    "nothing": (
        pair("bad"),
        spoiled(lambda r: replace(r, completion_ids=[])),
        {"rejected loss tokens": ["bad"], "rejected end token": ["bad"]},
    ),
}


@pytest.mark.parametrize(("bad", "spoil", "wanted"), ALONE.values(), ids=ALONE.keys())
def test_a_bad_pair_is_named_and_no_other(renderer, bad, spoil, wanted):
    assert failing(renderer, GOOD) == {}
    assert failing(renderer, [*GOOD, bad], spoil=spoil, max_tokens=90) == wanted


# ---------------------------------------------------------------------- the stage


@pytest.fixture
def line(project):
    line = Line("smoke-dpo")
    line.curate()
    return line


def begun(line: Line, directory: Path, data: str = "data/smoke-dpo") -> Beginning:
    """A run of which only is left what says what it was trained on."""
    digest = sha256_file(line.loaded.root / data / "train.jsonl")
    (directory / "adapter").mkdir(parents=True)
    write_json(directory / "adapter" / "manifest.json", {"train_digest": digest})
    (directory / "recipe.lock.yaml").write_text(f"recipe:\n  data:\n    directory: {data}\n")
    return Beginning(directory, line.loaded.root)


def checked(line: Line, out: Path, beginning: Beginning | None):
    check(line.loaded, line.dataset, line.base, out, beginning)
    return read_json(out / "check.json")


def test_pairs_that_pass_are_left_as_tokens(line, tmp_path):
    result = checked(line, tmp_path, begun(line, tmp_path / "run"))
    assert {finding["status"] for finding in result["checks"]} == {"PASS"}
    renderer = Renderer(line.base.tokenizer(), line.base.end_ids())
    for split in ("train", "dev"):
        read = rendered_pairs(renderer, line.dataset, split, tmp_path / "tokens")
        assert read == rendered_pairs(renderer, line.dataset, split, tmp_path / "nowhere")
        rows = line.dataset.rows(split)
        assert [pair[1].completion_ids for pair in read] == [
            renderer.completion_ids(one.with_rejected())[0] for one in rows
        ]
    assert (tmp_path / "tokens" / "train-rejected.safetensors").is_file()


def test_under_sft_rejected_answers_are_said_to_be_left_alone(line, tmp_path, capsys):
    result = checked(line, tmp_path, None)
    (said,) = [finding for finding in result["checks"] if finding["status"] != "PASS"]
    assert (said["name"], said["status"], len(said["rows"])) == ("rejected", "WARN", 144)
    refuse_failed(result, tmp_path / "check.json", line.dataset)
    assert "144 rows hold a rejected answer, from which kind: sft does not learn" in capsys.readouterr().err
    assert not (tmp_path / "tokens" / "train-rejected.safetensors").exists()


def test_a_held_out_row_on_which_the_beginning_was_trained_fails(line, tmp_path):
    other = line.loaded.root / "data" / "other"
    other.mkdir()
    known = line.dataset.rows("gate")[:2]
    lines = [json.dumps(one.as_dict()) for one in known]
    (other / "train.jsonl").write_text("\n".join(lines))
    files = {"train.jsonl": {"sha256": sha256_file(other / "train.jsonl")}}
    write_json(other / "manifest.json", {"files": files, "systems": []})
    result = checked(line, tmp_path, begun(line, tmp_path / "run", "data/other"))
    (failed,) = [finding for finding in result["checks"] if finding["status"] == "FAIL"]
    groups = {one.group for one in known}
    assert failed["name"] == "begun from"
    assert set(failed["rows"]) >= {one.id for one in line.dataset.rows("gate") if one.group in groups}
    with pytest.raises(UserError, match="check `begun from` fails: "):
        refuse_failed(result, tmp_path / "check.json", line.dataset)


def test_rows_of_the_beginning_that_are_others_now_prove_nothing(line, tmp_path):
    beginning = begun(line, tmp_path / "run")
    write_json(beginning.adapter / "manifest.json", {"train_digest": "another"})
    with pytest.raises(UserError, match=r"holds other rows than .* was trained on"):
        beginning.rows()
    (beginning.run / "recipe.lock.yaml").unlink()
    with pytest.raises(UserError, match="missing; it says what the adapter was trained on"):
        beginning.rows()
