"""A rejected answer is read from every form that has one, and is cleaned and compared as a completion is."""

import json
from collections import Counter

import pytest

from tests.curate.conftest import pair
from tests.curate.test_formats import refused, rows_of
from tests.curate.test_same_rows import ALL, SOME
from tunesmith.curate.clean import Context, clean
from tunesmith.curate.work import keys
from tunesmith.curation import CurateSection
from tunesmith.leaks import trained_texts
from tunesmith.rows import Row

ASKED = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
USER = ASKED[1:]
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}


def only(value, **options):
    (row,) = rows_of(value, **options)
    return row


FORMS = {
    "prompt and two texts": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "prompt and two messages": {"prompt": USER, "chosen": [GOOD], "rejected": BAD},
    "two conversations": {"chosen": [*USER, GOOD], "rejected": [*USER, BAD]},
    "the prompt beside and in both": {"prompt": "q", "chosen": [*USER, GOOD], "rejected": [*USER, BAD]},
    "a completion and what is worse": {"prompt": "q", "completion": "good", "rejected": "bad"},
}


@pytest.mark.parametrize("value", FORMS.values(), ids=FORMS.keys())
def test_every_form_of_a_preference_is_one_row(value):
    row = only(value | {"id": 7, "score": 0.5})
    assert row.as_dict() == {
        "id": "7",
        "group": "7",
        "messages": USER,
        "completion": GOOD,
        "rejected": BAD,
        "meta": {"score": 0.5},
    }
    assert Row.model_validate(json.loads(json.dumps(row.as_dict()))) == row


def test_columns_name_the_rejected_answer():
    columns = {"prompt": "q", "completion": "a", "rejected": "b"}
    row = only({"q": "ask", "a": {"x": 1}, "b": {"x": 2}}, columns=columns)
    assert (row.reference, row.rejected.content, row.meta) == ('{"x":1}', '{"x":2}', None)


def test_earlier_answers_of_a_preference_are_given_and_not_learned():
    talk = [USER[0], GOOD, {"role": "user", "content": "and?"}]
    row = only({"chosen": [*talk, GOOD], "rejected": [*talk, BAD]}, turns="whole")
    assert (len(row.messages), row.trained, row.rejected.content) == (3, None, "bad")


def test_the_system_message_of_a_source_stands_before_both():
    assert only(FORMS["two conversations"], system="s").with_rejected().as_dict()["messages"] == ASKED


WRONG = {
    "no prompt": ({"chosen": "a", "rejected": "b"}, "chosen: must be a list of messages where there is no prompt"),
    "two prompts": (
        {"chosen": [*USER, GOOD], "rejected": [{"role": "user", "content": "other"}, BAD]},
        "chosen and rejected part before their last message",
    ),
    "silent": (
        {"prompt": "q", "chosen": "a", "rejected": ""},
        "with the rejected answer: message 1: the assistant says",
    ),
    "no text": ({"prompt": "q", "chosen": "a", "rejected": 3}, "rejected: content: input should be a valid string"),
    "the user's": (
        {"chosen": [*USER, GOOD], "rejected": [*USER, {"role": "user", "content": "bad"}]},
        "with the rejected answer: message 1: the user speaks twice in a row",
    ),
    "nothing": ({"prompt": "q", "chosen": "a", "rejected": []}, "chosen and rejected part before"),
    "our own, of a tool": (
        {"id": "1", "group": "1", "messages": USER, "completion": GOOD, "rejected": {"role": "tool", "content": "x"}},
        "rejected: role is 'tool'",
    ),
    "our own, null": (
        {"id": "1", "group": "1", "messages": USER, "completion": GOOD, "rejected": None},
        "rejected: must be the assistant's message",
    ),
    "our own, silent": (
        {"id": "1", "group": "1", "messages": USER, "completion": GOOD, "rejected": {"role": "assistant"}},
        "with the rejected answer: message 1: the assistant says nothing",
    ),
}


@pytest.mark.parametrize(("value", "problem"), WRONG.values(), ids=WRONG.keys())
def test_a_bad_preference_is_refused(value, problem):
    assert refused(value)[0].startswith(problem)


# ---------------------------------------------------------------------- nothing slips through

SECRET = "write to a.b@example-mail.org"


def cleaned(steps, **more):
    row = only({"prompt": "ask me", "chosen": "good", "rejected": "bad"} | more)
    context = Context(CurateSection.model_validate({"steps": steps, **SECTIONS}), {}, 64)
    return clean(row, context), context


SECTIONS = {"privacy": {"email": "redact"}}


def test_private_data_is_taken_out_of_a_rejected_answer():
    (done, context) = cleaned(["privacy"], rejected=SECRET)
    assert "example-mail" not in done.row.rejected.content
    assert done.row.rejected.content.startswith("write to ")
    assert (done.row.reference, [rule for _, rule, _ in context.findings]) == ("good", ["email"])


def test_a_rejected_answer_is_normalised_and_an_empty_one_dropped():
    (done, _) = cleaned(["privacy", "normalise"], rejected="ba\u200bd\r\n")
    assert done.row.rejected.content == "bad"
    (done, _) = cleaned(["privacy", "empty"], rejected="...")
    assert (done.row, done.drop.reason) == (None, "the rejected answer is empty")


def test_a_control_token_in_a_rejected_answer_is_met_as_elsewhere(monkeypatch):
    monkeypatch.setattr("tunesmith.curate.clean.control_words", lambda renderer: ("<|im_end|>",))
    row = only({"prompt": "ask", "chosen": "good", "rejected": "bad <|im_end|> more"})
    for told, left in (("drop", None), ("neutralise", "bad < |im_end|> more")):
        section = CurateSection.model_validate({"steps": [{"control_tokens": told}]})
        done = clean(row, Context(section, {}, 64, renderer=object()))
        assert (done.row and done.row.rejected.content) == left


def test_the_rejected_answer_is_among_what_training_learns():
    row = only(FORMS["prompt and two texts"])
    assert [text.text for text in trained_texts([("a", row)])] == ["q", "good", "bad"]


# ---------------------------------------------------------------------- which rows are one


def preference(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def curated(project, *rows):
    project.section |= {"split": ALL}
    project.section["sources"].append({"name": "pairs", "licence": "CC0-1.0", "path": "pairs.jsonl"})
    project.write(SOME)
    project.write(rows, "pairs.jsonl")
    found = [row for row in project.curate()["train"] if row.meta["source"] == "pairs"]
    dropped = [json.loads(line) for line in (project.data / "dropped.jsonl").read_text().splitlines()]
    return Counter((row.reference, row.rejected.content) for row in found), Counter(d["reason"] for d in dropped)


def test_an_answer_that_is_preferred_to_itself_is_dropped_and_counted(project):
    left, dropped = curated(
        project, preference("ask a", "x", "x"), preference("ask b", "x", "x\u200b"), preference("ask c", "x", "y")
    )
    assert left == {("x", "y"): 1}
    assert dropped == {"the rejected answer is the completion": 2}


def test_several_pairs_of_a_prompt_stay_and_copies_go(project):
    pairs = [("x", "y"), ("x", "z"), ("y", "z"), ("x", "y"), ("X", "Y.")]
    left, dropped = curated(project, *(preference("ask", *one) for one in pairs))
    assert {(a.lower(), b.lower().strip(".")) for a, b in left} == {("x", "y"), ("x", "z"), ("y", "z")}
    assert sum(left.values()) == 3
    assert dropped == {"an exact copy": 1, "a copy but for case, spaces or punctuation": 1}


def test_two_rows_that_prefer_the_other_way_round_are_both_left_out(project):
    left, dropped = curated(
        project, preference("ask", "x", "y"), preference("ask", "y", "x"), preference("ask", "x", "z")
    )
    assert left == {("x", "z"): 1}
    assert dropped == {"the same two answers, preferred the other way round": 2}


def test_a_row_without_a_rejected_answer_has_the_keys_that_it_had_before_there_were_any():
    row = only(pair("what is asked", "what is answered"))
    assert row.id == "h-dca07e9a4b695612"
    found = keys(row)
    assert (found["exact"], found["answer"]) == (7876713764080119807, 4730377286773437295)
    assert (found["whole"], found["worse"]) == (-637208084447184765, 0)
