"""Each check is shown one row broken in its way among good ones, and must name that row alone."""

import json
import re
from dataclasses import replace
from statistics import mean

import pytest
from transformers import AutoTokenizer

from tests.conftest import REPOSITORY
from tunesmith.bases import Base
from tunesmith.check import checks
from tunesmith.check.checks import Checked
from tunesmith.check.shown import visible
from tunesmith.check.stage import about_rows, examine, examine_model, refuse_failed, render_each
from tunesmith.errors import UserError
from tunesmith.files import read_json, sha256_file, write_json, write_jsonl
from tunesmith.findings import Finding
from tunesmith.line import Line
from tunesmith.prompt import IGNORE, Renderer
from tunesmith.recipe import load_recipe
from tunesmith.rows import Dataset, Message, Row

START, END = 1, 2
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}
NAMES = [
    "template",
    "loss tokens",
    "prompt masked",
    "loss is completion",
    "end token",
    "single BOS",
    "length",
    "control tokens",
    "schema",
    "tools",
    "splits",
]

ABOUT_THE_MODEL = [
    "vocabulary",
    "system message",
    "target modules",
    "even layers",
    "tied embeddings",
]


@pytest.fixture(scope="module")
def renderer(tiny_base):
    return Renderer(AutoTokenizer.from_pretrained(tiny_base, local_files_only=True))


def row(row_id, *, group=None, user=None, completion='{"n":1}'):
    return Row(
        id=row_id,
        group=group or f"group of {row_id}",
        messages=[Message(role="user", content=user or f"prompt of {row_id}")],
        completion=Message(role="assistant", content=completion),
    )


GOOD = [row("a"), row("b"), row("c")]


def checked(renderer, one):
    rendered = renderer.render(one)
    return Checked(one, rendered, rendered.input_ids, rendered.labels)


@pytest.fixture
def good(renderer):
    return [checked(renderer, one) for one in GOOD]


def prompt_length(c):
    return len(c.rendered.prompt_ids)


def mask_everything(c):
    return replace(c, labels=[IGNORE] * len(c.labels))


def unmask_the_last_prompt_token(c):
    last = prompt_length(c) - 1
    return replace(c, labels=[*c.labels[:last], c.input_ids[last], *c.labels[last + 1 :]])


def unmask_the_first_prompt_token(c):
    return replace(c, labels=[c.input_ids[0], *c.labels[1:]])


def mask_a_completion_token(c):
    at = prompt_length(c) + 2
    return replace(c, labels=[*c.labels[:at], IGNORE, *c.labels[at + 1 :]])


def change_a_label(c):
    at = prompt_length(c) + 2
    return replace(c, labels=[*c.labels[:at], c.labels[at] + 1, *c.labels[at + 1 :]])


def mask_the_end_token(c):
    return replace(c, labels=[*c.labels[:-1], IGNORE])


def cut_the_end_token(c):
    return replace(c, input_ids=c.input_ids[:-1], labels=c.labels[:-1])


def add_a_newline_after_the_end(c):
    return replace(c, input_ids=[*c.input_ids, 201], labels=[*c.labels, 201])


def empty(c):
    return replace(c, input_ids=[], labels=[])


def double_the_start(c):
    return replace(c, input_ids=[START, *c.input_ids], labels=[IGNORE, *c.labels])


def lengthen(c):
    return replace(c, input_ids=[c.input_ids[0], *[50] * 99, *c.input_ids[1:]], labels=[*[IGNORE] * 99, *c.labels])


def swap_text(**changes):
    """The ids stay, the row they came from is another."""
    return lambda c: replace(c, row=row(c.row.id, **changes))


BREAKS = [
    (lambda r: checks.no_loss, mask_everything),
    (lambda r: checks.no_loss, empty),
    (lambda r: checks.loss_on_prompt, unmask_the_last_prompt_token),
    (lambda r: checks.loss_on_prompt, unmask_the_first_prompt_token),
    (checks.loss_elsewhere, mask_a_completion_token),
    (checks.loss_elsewhere, change_a_label),
    (checks.loss_elsewhere, unmask_the_first_prompt_token),
    (checks.loss_elsewhere, swap_text(completion='{"n":2}')),
    (checks.no_end_token, mask_the_end_token),
    (checks.no_end_token, cut_the_end_token),
    (checks.no_end_token, add_a_newline_after_the_end),
    (checks.no_end_token, empty),
    (checks.double_bos, double_the_start),
    (lambda r: checks.too_long(100), lengthen),
    (checks.control_tokens, swap_text(user="say <|im_end|> now")),
    (checks.control_tokens, swap_text(completion="<|im_start|>")),
    (lambda r: checks.off_schema(SCHEMA), swap_text(completion='{"n":"1"}')),
    (lambda r: checks.off_schema(SCHEMA), swap_text(completion='{"m":1}')),
    (lambda r: checks.off_schema(SCHEMA), swap_text(completion='{"n":1')),
    (lambda r: checks.off_schema(SCHEMA), swap_text(completion="one")),
    (lambda r: checks.off_schema(SCHEMA), swap_text(completion='{"n":1} done')),
    (lambda r: checks.off_schema(None), swap_text(completion=" ")),
]


@pytest.mark.parametrize(("make", "broken"), BREAKS)
def test_a_check_names_the_one_row_that_is_broken_in_its_way(renderer, good, make, broken):
    check = make(renderer)
    assert check(good) == []
    assert check([good[0], broken(good[1]), good[2]]) == ["b"]
    assert check([broken(one) for one in good]) == ["a", "b", "c"]


def test_a_row_of_exactly_the_length_is_not_too_long(good):
    longest = len(good[0].input_ids)
    assert checks.too_long(longest)(good) == []
    assert checks.too_long(longest - 1)(good) == ["a", "b", "c"]


def test_a_tokenizer_without_bos_has_no_double_bos(tiny_base, good):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base, local_files_only=True)
    tokenizer.bos_token = None
    assert checks.double_bos(Renderer(tokenizer))([double_the_start(one) for one in good]) == []


def test_a_held_out_row_whose_group_or_prompt_stands_in_train_straddles():
    held_out = [row("x"), row("y", group="group of a"), row("z", user="prompt of b"), row("w", user="prompt of  b")]
    assert checks.leaking(GOOD, held_out, None) == ["y", "z", "w"]  # spaces do not make another prompt
    assert checks.leaking(GOOD, [], None) == []


def findings(renderer, rows, held_out=(), max_tokens=200):
    return examine(rows, render_each(rows, renderer), held_out, renderer, SCHEMA, max_tokens, None)


def failed(found):
    return {finding.name: finding.rows for finding in found if finding.status == "FAIL"}


def test_good_rows_pass_every_check(renderer):
    found = findings(renderer, GOOD, [row("x")])
    assert [finding.name for finding in found] == NAMES
    assert {finding.status for finding in found} == {"PASS"}
    assert found[6].as_dict() == {
        "name": "length",
        "status": "PASS",
        "says": "each row fits into data.max_tokens = 200",
        "rows": [],
        "faults": [5],
        "evidence": "all 3 rows",
        "remedy": found[6].remedy,
    }
    assert "raise data.max_tokens" in found[6].remedy


BAD_ROWS = {
    "too long": (row("bad", user="x" * 300), {"length": ["bad"]}),
    "end of turn in the prompt": (row("bad", user="a<|im_end|>b"), {"control tokens": ["bad"]}),
    "off the schema": (row("bad", completion='{"n":null}'), {"schema": ["bad"]}),
    "no content": (
        Row(
            id="bad",
            group="g",
            messages=[Message(role="user", content="x")],
            completion=Message(role="assistant", tool_calls=[]),
        ),
        {"template": ["bad"]},
    ),
}


@pytest.mark.parametrize(("bad", "expected"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_fails_its_check_and_no_other(renderer, bad, expected):
    assert failed(findings(renderer, [GOOD[0], bad, GOOD[1]])) == expected


def test_a_straddling_row_fails_the_check_of_splits(renderer):
    found = findings(renderer, GOOD, [row("x"), row("y", group="group of a")])
    assert failed(found) == {"splits": ["y"]}


def tampered(tiny_base, template):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base, local_files_only=True)
    tokenizer.chat_template = template(tokenizer.chat_template)
    return Renderer(tokenizer)


def test_a_template_without_end_token_fails_for_every_row(tiny_base):
    renderer = tampered(tiny_base, lambda text: text.replace("<|im_end|>", ""))
    assert failed(findings(renderer, GOOD)) == {"end token": ["a", "b", "c"]}


def test_a_template_that_begins_with_two_bos_fails_for_every_row(tiny_base):
    renderer = tampered(tiny_base, lambda text: "{{ '<|im_start|>' }}" + text)
    assert failed(findings(renderer, GOOD)) == {"single BOS": ["a", "b", "c"]}


INTRODUCES = """{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are tiny.<|im_end|>\n{% endif %}"""


def test_a_system_message_that_the_template_inserts_is_told(tiny_base, renderer):
    assert renderer.own_system() == ""
    own = tampered(tiny_base, lambda text: INTRODUCES + text)
    assert own.own_system() == "You are tiny."
    base = Base("tiny", tiny_base, "", {})
    recipe = load_recipe("smoke", root=REPOSITORY).recipe

    def about_the_system(rows):
        found = examine_model(recipe, base, own, render_each(rows, own), rows)
        (finding,) = [one for one in found if one.name == "system message"]
        return finding.status, "'You are tiny.'" in finding.evidence

    assert about_the_system(GOOD) == ("WARN", True)
    stated = [one.model_copy(update={"messages": [Message(role="system", content="S"), *one.messages]}) for one in GOOD]
    assert about_the_system(stated) == ("PASS", False)


def test_a_token_without_an_embedding_fails(good):
    highest = max(max(c.input_ids) for c in good)
    assert checks.unknown_tokens(highest + 1)(good) == []
    assert checks.unknown_tokens(highest)(good) == [c.row.id for c in good if max(c.input_ids) == highest]


def test_a_template_that_rewrites_the_answer_fails_for_every_row(tiny_base):
    renderer = tampered(tiny_base, lambda text: text.replace("message['content']", "message['content'] | upper"))
    assert failed(findings(renderer, GOOD)) == {"loss is completion": ["a", "b", "c"]}


def test_a_template_that_changes_the_prompt_is_told_with_its_reason(tiny_base):
    renderer = tampered(tiny_base, lambda text: text.replace("assistant\n", "assistant\n[think]"))
    found = findings(renderer, GOOD)
    assert failed(found) == {"template": ["a", "b", "c"]}
    assert found[0].says == (
        "row 'a': the chat template writes the prompt otherwise when an answer follows it; training and serving "
        "would see different prompts; pick another base or template"
    )


def test_five_rows_at_most_are_told():
    rows = [f"r{n}" for n in range(7)]
    assert about_rows("length", 5, "", rows, 9, "").evidence == "7 rows of 9: r0, r1, r2, r3, r4 and 2 more"
    assert about_rows("length", 5, "", ["r1"], 9, "").evidence == "1 row of 9: r1"
    assert about_rows("length", 5, "", [], 9, "").evidence == "all 9 rows"


def test_failures_are_told_with_what_is_wanted_and_what_to_do(tmp_path):
    def finding(name, status, rows):
        return Finding(name, status, f"{name} is right", rows, evidence=f"{len(rows)} rows", remedy="mend it").as_dict()

    result = {
        "rows": 9,
        "checks": [
            finding("length", "FAIL", [f"r{n}" for n in range(7)]),
            finding("schema", "FAIL", ["r1", "r8"]),
            finding("splits", "PASS", []),
        ],
    }
    with pytest.raises(UserError) as refused:
        refuse_failed(result, tmp_path / "check.json", Dataset(tmp_path))
    assert refused.value.text == (
        f"{tmp_path}: check `length` fails: 7 rows; wanted: length is right; mend it\n"
        f"{tmp_path}: check `schema` fails: 2 rows; wanted: schema is right; mend it\n"
        f"hint: all row ids are in {tmp_path}/check.json"
    )
    refuse_failed({"rows": 9, "checks": [finding("length", "PASS", [])]}, tmp_path / "check.json", Dataset(tmp_path))


def test_the_tokens_with_loss_are_made_visible(renderer):
    assert visible(row("a", user="hi"), renderer).plain == (
        '<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n⟦{"n":1}<|im_end|>⟧'
    )


def length_in_bytes(one):
    """Tokens of a row on the tiny base, which has a token a byte and two for the marks of a turn."""
    turns = [f"{m.role}\n{m.content}\n" for m in one.messages]
    return sum(len(turn) + 2 for turn in turns) + len("assistant\n") + 1 + len(one.reference) + 1


def test_the_command_shows_that_good_rows_pass(project, tunesmith):
    Line("smoke").curate()
    done = tunesmith("check", "smoke")
    assert done.code == 0, done.err
    path = done.out.splitlines()[-1]
    assert re.fullmatch(r"runs/smoke-[0-9a-f]{12}/check\.json", path)
    result = read_json(project / path)
    held_out = ["held-out template", "held-out schema", "held-out length", "gate rows"]
    assert [finding["name"] for finding in result["checks"]] == [*NAMES, *held_out, *ABOUT_THE_MODEL]
    assert {finding["status"] for finding in result["checks"]} == {"PASS"}
    train = Dataset(project / "data" / "smoke").rows("train")
    assert result["rows"] == len(train)
    lengths = [length_in_bytes(one) for one in train]
    assert result["tokens"] == {"longest": max(lengths), "mean": round(mean(lengths), 1)}
    shown = done.out
    assert shown.count("⟦") == shown.count("⟧") == 4
    assert f"row {train[0].id}; the tokens between ⟦ and ⟧ carry loss:" in shown
    assert f"⟦{train[0].reference}<|im_end|>⟧" in shown


def test_the_command_refuses_rows_that_do_not_fit(project, tunesmith):
    Line("smoke").curate()
    done = tunesmith("check", "smoke", "--set", "data.max_tokens=40")
    run = next((project / "runs").glob("smoke-*"))
    ids = [r.id for r in Dataset(project / "data" / "smoke").rows("train")]
    assert done.code == 2
    assert "length              FAIL" in done.out
    longest = read_json(run / "check.json")["tokens"]["longest"]
    assert done.err == (
        "check\n"
        f"data/smoke: check `length` fails: {len(ids)} rows of {len(ids)}: {', '.join(ids[:5])} "
        f"and {len(ids) - 5} more; wanted: each row fits into data.max_tokens = 40; "
        f"raise data.max_tokens (the longest row has {longest}), or shorten these rows\n"
        f"hint: all row ids are in runs/{run.name}/check.json\n"
    )
    listed = {finding["name"]: finding["rows"] for finding in read_json(run / "check.json")["checks"]}
    assert listed.pop("length") == ids
    assert not any(listed.values())


def test_rows_that_were_tampered_with_stop_the_line(project):
    line = Line("smoke")
    line.curate()
    directory = project / "data" / "smoke"
    rows = [json.loads(text) for text in (directory / "train.jsonl").read_text().splitlines()]
    held_out = line.dataset.rows("gate")[0]
    rows[3]["completion"]["content"] = '{"colour":"purple"}'
    rows[7]["messages"][1]["content"] += "<|im_end|>"
    rows[9]["messages"][1]["content"] = held_out.source
    write_jsonl(directory / "train.jsonl", rows)
    manifest = read_json(directory / "manifest.json")
    manifest["files"]["train.jsonl"]["sha256"] = sha256_file(directory / "train.jsonl")
    write_json(directory / "manifest.json", manifest)
    with pytest.raises(UserError) as refused:
        line.check()
    fix = "; mend or drop these rows where they are curated\n"
    one_row = f"data/smoke: check `%s` fails: 1 row of {len(rows)}: %s; wanted: %s{fix}"
    assert refused.value.text.startswith(
        one_row % ("control tokens", rows[7]["id"], "no text spells a control token")
        + one_row % ("schema", rows[3]["id"], "each completion is valid under the schema")
    )
    result = read_json(line.run.path("check.json"))
    assert {f["name"]: f["rows"] for f in result["checks"] if f["status"] == "FAIL"} == {
        "control tokens": [rows[7]["id"]],
        "schema": [rows[3]["id"]],
        "splits": [held_out.id],
    }


def test_held_out_rows_that_could_not_be_scored_stop_the_line(project):
    """Else an arm would be answered first, and the fault be told after training."""
    line = Line("smoke")
    line.curate()
    directory = project / "data" / "smoke"
    rows = [json.loads(text) for text in (directory / "gate.jsonl").read_text().splitlines()]
    rows[2]["completion"]["content"] = "red"
    rows[5]["completion"]["content"] = '{"colour":"white"}' + " " * 30
    write_jsonl(directory / "gate.jsonl", rows)
    manifest = read_json(directory / "manifest.json")
    manifest["files"]["gate.jsonl"]["sha256"] = sha256_file(directory / "gate.jsonl")
    write_json(directory / "manifest.json", manifest)
    with pytest.raises(UserError) as refused:
        line.check()
    assert refused.value.problems == [
        f"data/smoke: check `held-out schema` fails: 1 row of 240: {rows[2]['id']}; "
        "wanted: each held-out reference is valid under the schema; mend or drop these rows where they are curated",
        f"data/smoke: check `held-out length` fails: 1 row of 240: {rows[5]['id']}; "
        "wanted: each held-out reference fits into arms.max_new_tokens = 24; raise arms.max_new_tokens",
    ]


def test_too_few_gate_rows_are_told_before_training(project):
    line = Line("smoke", sets=["gate.min_rows=169"])
    line.curate()
    with pytest.raises(UserError, match=r"check `gate rows` fails: 168 rows; .*at least gate.min_rows = 169 rows"):
        line.check()


# ---------------------------------------------------------------------- whole conversations and tools


def conversation(trained):
    messages = [
        Message(role="user", content="first question"),
        Message(role="assistant", content='{"n":1}'),
        Message(role="user", content="second question"),
        Message(role="assistant", content='{"n":2}'),
        Message(role="user", content="third question"),
    ]
    answer = Message(role="assistant", content='{"n":3}')
    return Row(id="c", group="c", messages=messages, completion=answer, trained=trained)


def test_a_whole_conversation_is_rendered_once_for_each_turn_that_is_learned(renderer):
    whole = conversation([1, 3])
    checked = render_each([whole], renderer).checked
    assert [one.row.id for one in checked] == ["c#1", "c#3", "c"]
    said = [renderer.decode(one.rendered.completion_ids) for one in checked]
    assert said == ['{"n":1}', '{"n":2}', '{"n":3}']
    # Each turn's prompt is the one that serving will see.
    for one, end in zip(checked, (1, 3, 5), strict=True):
        assert one.rendered.prompt_ids == renderer.prompt_ids(whole.messages[:end])


def test_turns_that_are_not_trained_carry_no_loss(renderer):
    assert [one.row.id for one in render_each([conversation([3])], renderer).checked] == ["c#3", "c"]
    assert [one.row.id for one in render_each([conversation(None)], renderer).checked] == ["c"]


@pytest.mark.parametrize("trained", [[0], [2], [5], [-1]])
def test_only_earlier_turns_of_the_assistant_can_be_trained(trained):
    with pytest.raises(ValueError, match="is no earlier turn of the assistant"):
        conversation(trained)


def test_tools_that_the_template_does_not_write_fail(renderer):
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    call = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    silent = Row(
        id="t",
        group="t",
        messages=[Message(role="user", content="where is it")],
        completion=Message(role="assistant", content="here", tool_calls=[call]),
        tools=[tool],
    )
    spoken = silent.model_copy(
        update={"id": "s", "tools": None, "completion": Message(role="assistant", content="here")}
    )
    check = checks.unseen_tools(renderer)
    assert check(render_each([silent, spoken], renderer).checked) == ["t"]
