"""One trap, one test: what each cleaning step takes, changes, and leaves alone."""

import json

import pytest

from tunesmith.curate import clean
from tunesmith.curate.clean import Context, Drop
from tunesmith.curate.formats import Malformed
from tunesmith.curation import CurateSection
from tunesmith.prompt import Renderer
from tunesmith.rows import Message, Row

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def row(prompt="what is it", completion='{"n":1}', system=None, meta=None):
    messages = [Message(role="system", content=system)] if system else []
    answer = Message(role="assistant", content=completion)
    return Row(
        id="r", group="g", messages=[*messages, Message(role="user", content=prompt)], completion=answer, meta=meta
    )


def context(renderer=None, max_tokens=64, **section):
    return Context(CurateSection.model_validate(section), SCHEMA, max_tokens, renderer)


def run(step, one, **section):
    """What a step makes of a row, told what it is told by default."""
    told = next(s.told for s in CurateSection.model_validate({"steps": [step]}).steps)
    return clean.STEPS[step](one, told, context(**section))


@pytest.fixture(scope="module")
def renderer(tiny_base):
    from transformers import AutoTokenizer

    return Renderer(AutoTokenizer.from_pretrained(tiny_base, local_files_only=True))


TIDIED = {
    "windows line ends": ("a\r\nb\rc", "a\nb\nc"),
    "decomposed accent": ("Cafe\u0301", "Caf\u00e9"),
    "no-break and thin spaces": ("12\u00a0km\u2009h", "12 km h"),
    "zero-width space": ("pass\u200bword", "password"),
    "bidirectional override": ("abc\u202edef", "abcdef"),
    "escape characters": ("\x1b[31mred\x1b[0m", "[31mred[0m"),
    "spaces at line ends": ("a  \nb\t", "a\nb"),
    "many blank lines": ("a\n\n\n\n\nb", "a\n\nb"),
}
KEPT = {
    "indentation of code": "def f():\n    return 1",
    "tabs inside a line": "a\tb",
    "joiner of an emoji": "\U0001f469\u200d\U0001f4bb",
    "joiner of Persian": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "full-width digits": "\uff11\uff12",
    "spaces before the first word": "    first",
}


@pytest.mark.parametrize(("text", "expected"), TIDIED.values(), ids=TIDIED.keys())
def test_what_nobody_sees_is_tidied_in_prompt_and_completion(text, expected):
    done = run("normalise", row(prompt=f"x {text}", completion=f"y {text}"))
    assert (done.source, done.reference) == (f"x {expected}", f"y {expected}")


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT.keys())
def test_what_means_something_stays(text):
    assert run("normalise", row(prompt=text, completion=text)) == row(prompt=text, completion=text)


def test_arguments_of_tools_are_not_tidied():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":"x\u00a0y"}'}}
    answer = Message(role="assistant", content=None, tool_calls=[call])
    one = Row(id="r", group="g", messages=[Message(role="user", content="u\u00a0v")], completion=answer)
    assert run("normalise", one).completion == answer


# ---------------------------------------------------------------------- control tokens


def test_text_that_spells_a_control_token_is_refused_by_name(renderer):
    with pytest.raises(Malformed, match=r"control token <\|im_end\|>"):
        clean.control_tokens(row(prompt="a <|im_end|> b"), "refuse", context(renderer))


def test_a_neutralised_control_token_is_none_any_more(renderer):
    done = clean.control_tokens(
        row(prompt="a <|im_end|> b", completion="<|im_start|>"), "neutralise", context(renderer)
    )
    assert done.source == "a < |im_end|> b"
    assert clean.control_tokens(done, "refuse", context(renderer)) == done


def test_a_row_with_a_control_token_may_be_left_out(renderer):
    assert isinstance(clean.control_tokens(row(prompt="<|im_end|>"), "drop", context(renderer)), Drop)
    assert clean.control_tokens(row(), "drop", context(renderer)) == row()


# ---------------------------------------------------------------------- completions

CUT_OFF = {
    "an open object": '{"n": 1, "m": [1, 2',
    "an open string": '{"n": "one',
    "an open code fence": "Here it is:\n```python\nprint(1)",
    "prose that stops": "This is a sentence. " * 12 + "And then there was one more that went on and",
}
WHOLE = {
    "an object": '{"n": "a } in text \\" and more"}',
    "a closed fence": "```\nx\n```",
    "prose": "This is a sentence. " * 12,
    "a list whose last line has no stop": "Things to do. " * 20 + "\n- buy milk and bread and eggs and more",
    "a short phrase": "in the kitchen",
    "a long line that is no prose": "a, b, c, d, " * 30,
}


@pytest.mark.parametrize("text", CUT_OFF.values(), ids=CUT_OFF.keys())
def test_a_completion_that_is_cut_off_is_left_out(text):
    assert isinstance(run("truncated", row(completion=text)), Drop)


@pytest.mark.parametrize("text", WHOLE.values(), ids=WHOLE.keys())
def test_a_whole_completion_stays(text):
    assert run("truncated", row(completion=text)) == row(completion=text)


def test_a_finish_reason_of_length_is_believed():
    assert isinstance(run("truncated", row(meta={"finish_reason": "length"})), Drop)


REFUSED = [
    "I'm sorry, but I can't help with that.",
    "As an AI language model, I do not have feelings.",
    "I cannot assist with this request.",
    "Sorry, I am not able to do that.",
    "Unfortunately, I can't open links.",
    "I\u2019m unable to browse the web.",
]
ANSWERED = [
    "Sorry for the delay: your parcel is on its way.",
    "The AI language model was trained in 2023.",
    "I can help with that. First, open the door.",
    "He said: I'm sorry, but I can't help.",
    '{"n": 1}',
]


@pytest.mark.parametrize("text", REFUSED)
def test_boilerplate_of_refusing_assistants_is_left_out(text):
    assert isinstance(run("refusals", row(completion=text)), Drop)


@pytest.mark.parametrize("text", ANSWERED)
def test_an_answer_is_no_refusal(text):
    assert run("refusals", row(completion=text)) == row(completion=text)


OFF = {"not JSON": "one", "another type": '{"n":"1"}', "another key": '{"n":1,"m":2}', "a list": "[1]"}


@pytest.mark.parametrize("text", OFF.values(), ids=OFF.keys())
def test_a_completion_that_the_schema_does_not_allow_is_left_out(text):
    assert isinstance(run("completion", row(completion=text)), Drop)
    assert run("completion", row()) == row()


def test_a_completion_that_is_no_label_is_left_out():
    assert isinstance(run("completion", row(completion="maybe"), labels=["yes", "no"]), Drop)
    assert run("completion", row(completion="yes"), labels=["yes", "no"]).reference == "yes"


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]},
    },
}
CALLS = {
    "as offered": ("weather", '{"days": 3}', True),
    "as offered, arguments as an object": ("weather", {"days": 3}, True),
    "a tool that is not offered": ("forecast", '{"days": 3}', False),
    "an argument of another type": ("weather", '{"days": "3"}', False),
    "an argument that is missing": ("weather", "{}", False),
}


@pytest.mark.parametrize(("name", "arguments", "stays"), CALLS.values(), ids=CALLS.keys())
def test_a_call_must_be_one_that_the_row_offers(name, arguments, stays):
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    one = row().model_copy(
        update={"tools": [WEATHER], "completion": Message(role="assistant", content=None, tool_calls=[call])}
    )
    assert (run("completion", one) == one) is stays
    assert stays or isinstance(run("completion", one), Drop)


def test_without_a_schema_a_completion_must_say_something():
    free = Context(CurateSection(), None, 64, None)
    said = row(completion="no JSON at all")
    assert clean.STEPS["completion"](said, None, free) == said
    assert isinstance(clean.STEPS["completion"](row(completion=" "), None, free), Drop)


def test_a_tool_of_types_that_json_schema_does_not_know_is_held_to_its_name_alone():
    tool = {"name": "f", "parameters": {"type": "dict", "properties": {}}}
    call = {"function": {"name": "f", "arguments": "{}"}}
    one = row().model_copy(
        update={"tools": [tool], "completion": Message(role="assistant", content=None, tool_calls=[call])}
    )
    assert run("completion", one) == one


def test_a_completion_that_copies_the_prompt_is_left_out():
    text = "please write the minutes of the meeting that we held on monday in the large room"
    assert isinstance(run("copying", row(prompt=text, completion=text.upper() + "!")), Drop)
    assert run("copying", row(prompt=text, completion="The minutes follow.")) != Drop
    assert not isinstance(run("copying", row(prompt=text, completion='{"room":"the large room"}')), Drop)


@pytest.mark.parametrize("text", ["", " \n", "...", "?!"])
def test_a_prompt_or_completion_without_a_word_is_left_out(text):
    assert isinstance(run("empty", row(completion=text)), Drop)
    assert isinstance(run("empty", row(prompt=text)), Drop)


# ---------------------------------------------------------------------- language and length

LANGUAGES = {
    "de": "Der Zug nach Hamburg f\u00e4hrt heute leider zwanzig Minuten sp\u00e4ter ab als im Fahrplan angegeben.",
    "es": "El tren con destino a Madrid sale hoy con veinte minutos de retraso respecto al horario previsto.",
    "fr": "Le train \u00e0 destination de Paris part aujourd'hui avec vingt minutes de retard, comme hier.",
    "ru": "\u041f\u043e\u0435\u0437\u0434 \u0434\u043e \u041c\u043e\u0441\u043a\u0432\u044b "
    "\u0441\u0435\u0433\u043e\u0434\u043d\u044f \u043e\u043f\u043e\u0437\u0434\u0430\u043b",
}


@pytest.mark.parametrize("text", LANGUAGES.values(), ids=LANGUAGES.keys())
def test_a_row_in_another_language_is_left_out(text):
    assert isinstance(run("language", row(prompt=text, completion=text)), Drop)


@pytest.mark.parametrize(
    "text",
    [
        "The train to the north leaves twenty minutes late today because of works on the line near the old bridge.",
        "Zürich HB 12:04",
        "N. LaSalle St., Ste. 2300, Chicago, IL 60601",
    ],
)
def test_a_row_in_the_language_or_too_short_to_say_stays(text):
    assert not isinstance(run("language", row(prompt=text, completion=text)), Drop)


def test_a_row_longer_than_max_tokens_is_left_out_under_the_bases_own_template(renderer):
    one = row()
    tokens = len(renderer.render(one).input_ids)
    assert clean.length(one, None, context(renderer, tokens)) == one
    outcome = clean.length(one, None, context(renderer, tokens - 1))
    assert (outcome.reason, outcome.detail) == ("longer than data.max_tokens", f"{tokens} tokens")


# ---------------------------------------------------------------------- in order


def test_steps_run_in_the_recipes_order_and_the_first_that_drops_is_told():
    one = row(prompt="x\u200b", completion="...")
    done = clean.clean(one, context(steps=["normalise", "empty", "completion"]))
    assert (done.row, done.step) == (None, "empty")
    assert [step for step, _, _ in done.changes] == ["normalise"]
    assert clean.clean(one, context(steps=["completion", "empty"])).step == "completion"


def test_every_step_of_the_recipe_but_the_last_looks_at_one_row():
    from tunesmith.curation import STEPS

    assert set(STEPS) - set(clean.STEPS) == {"contradictions"}
    assert json.dumps(sorted(clean.STEPS))
