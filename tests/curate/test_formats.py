"""Every form becomes the one row form: nothing is lost, nothing is filled in, and what is no row says why."""

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tests.curate.conftest import pair
from tunesmith.curate.formats import DEEPEST, LONGEST_PROBLEM, Malformed, detect, read
from tunesmith.errors import UserError
from tunesmith.rows import parse

ALL_IN_TRAIN = {"train": 1, "dev": 0, "gate": 0, "confirm": 0}


def rows_of(value, form=None, *, columns=None, system=None, turns="each"):
    columns = columns or {}
    return read(value, form or detect(value, columns), columns=columns, system=system, turns=turns)


def only(value, form=None, **options):
    (row,) = rows_of(value, form, **options)
    return row.as_dict()


def refused(value, form=None, **options):
    with pytest.raises(Malformed) as error:
        rows_of(value, form, **options)
    return list(error.value.problems)


def user(text="how warm is it"):
    return {"role": "user", "content": text}


def assistant(text="12 degrees", **more):
    return {"role": "assistant", "content": text, **more}


def call(number=0, arguments='{"city": "Bern"}', name="weather"):
    return {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def result(number=0, text="12"):
    return {"role": "tool", "content": text, "tool_call_id": f"c{number}"}


def said(row):
    return [(m["role"], m["content"]) for m in (*row["messages"], row["completion"])]


TALK = [user("a"), assistant("b"), user("c"), assistant("d"), user("e"), assistant("f")]


# ---------------------------------------------------------------------- our own rows


OWN = {"id": "r1", "group": "g1", "messages": [user()], "completion": assistant()}


def test_a_row_of_our_own_stays_as_it_is():
    row = OWN | {"tools": [{"type": "function"}], "meta": {"a": None, "b": {"c": [1, 1.0]}}}
    assert detect(row, {}) == "rows"
    assert only(row) == row


def test_a_row_of_our_own_with_an_unknown_key_is_refused():
    assert refused(OWN | {"colour": "red"}) == ["colour: extra inputs are not permitted"]


def test_all_that_is_wrong_with_a_row_is_told_at_once():
    told = refused(OWN | {"id": "", "group": 3, "messages": []})
    assert [problem.partition(":")[0] for problem in told] == ["id", "group", "messages"]


def test_the_system_option_moves_the_trained_turns_of_a_row_along():
    row = OWN | {"messages": TALK[:3], "completion": TALK[3], "trained": [1]}
    got = only(row, system="be brief")
    assert got["messages"][0] == {"role": "system", "content": "be brief"}
    assert got["trained"] == [2]
    assert got["messages"][2] == TALK[1]


@pytest.mark.parametrize("messages", ["text", {"role": "user"}, [], ["text"], [None], 5, None])
def test_messages_of_another_kind_are_refused_with_the_system_option_too(messages):
    assert refused(OWN | {"messages": messages}, system="be brief")


# ---------------------------------------------------------------------- messages


def test_messages_end_with_the_completion():
    got = only({"messages": [{"role": "system", "content": "s"}, user("a"), assistant("b")]})
    assert said(got) == [("system", "s"), ("user", "a"), ("assistant", "b")]
    assert got["completion"] == assistant("b")


def test_the_developer_is_the_system():
    got = only({"messages": [{"role": "developer", "content": "s"}, user(), assistant()]}, system="other")
    assert [m["role"] for m in got["messages"]] == ["system", "user"]
    assert got["messages"][0]["content"] == "s"


def test_content_of_text_parts_is_their_text():
    parts = [{"type": "text", "text": "how "}, {"type": "text", "text": "warm"}]
    assert only({"messages": [user(parts), assistant()]})["messages"] == [user("how warm")]


def test_content_with_a_part_that_is_no_text_is_refused():
    parts = [{"type": "text", "text": "what is this"}, {"type": "image_url", "image_url": {"url": "x"}}]
    assert refused({"messages": [user(parts), assistant()]}) == ["messages.0.content: holds parts that are not text"]


def test_tool_calls_tools_and_results_stay_as_they_are():
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    messages = [user(), assistant(None, tool_calls=[call()]), result(), assistant()]
    first, last = (row.as_dict() for row in rows_of({"messages": messages, "tools": tools}))
    assert first["completion"] == messages[1]
    assert [*last["messages"], last["completion"]] == messages
    assert first["tools"] == last["tools"] == tools


def test_parallel_calls_may_be_answered_in_any_order():
    calls = assistant(None, tool_calls=[call(0), call(1)])
    value = {"messages": [user(), calls, result(1), result(0), assistant()], "parallel_tool_calls": True}
    assert only(value, turns="last")["meta"] == {"parallel_tool_calls": True}


def test_a_call_that_a_conversation_ends_with_needs_no_answer():
    assert only({"messages": [user(), assistant(None, tool_calls=[call()])]})["completion"]["tool_calls"] == [call()]


def test_a_call_with_the_key_content_left_out_keeps_it_left_out():
    got = only({"messages": [user(), {"role": "assistant", "tool_calls": [call()]}]})
    assert "content" not in got["completion"]


def test_keys_that_are_null_and_say_nothing_are_left_out():
    nothing = dict.fromkeys(("name", "tool_calls", "tool_call_id", "refusal", "audio", "function_call", "weight"))
    assert only({"messages": [user() | nothing, assistant() | nothing]})["completion"] == assistant()


def test_a_turn_of_weight_0_is_context_and_no_completion():
    talk = [TALK[0], TALK[1] | {"weight": 0}, TALK[2], TALK[3] | {"weight": 1}]
    assert said(only({"messages": talk})) == [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]


def test_a_turn_of_weight_0_stays_context_behind_the_system_option():
    talk = [TALK[0], TALK[1] | {"weight": 0}, TALK[2], TALK[3]]
    got = only({"messages": talk}, system="s", turns="whole")
    assert got["completion"] == TALK[3]
    assert "trained" not in got


def test_a_conversation_with_nothing_but_weight_0_is_refused():
    assert refused({"messages": [user(), assistant(weight=0)]}) == [
        "every turn of the assistant has weight 0: there is nothing to learn"
    ]


@pytest.mark.parametrize("weight", [0.5, 2, "1", []])
def test_another_weight_is_refused(weight):
    assert refused({"messages": [user(), assistant(weight=weight)]}) == [
        f"messages.1.weight: must be 0 or 1, not {weight!r}"
    ]


def test_functions_of_the_old_form_are_refused_with_what_to_write():
    old = assistant(None, function_call={"name": "f", "arguments": "{}"})
    assert refused({"messages": [user(), old]}) == [
        "messages.1: functions of the old form; write them as `tool_calls` and role `tool`"
    ]


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "holds no messages"),
        ([user()], "ends with the user: there is no completion to learn"),
        ([assistant()], "begins with the assistant; a conversation begins with the user"),
        ([user(), user(), assistant()], "message 1: the user speaks twice in a row; join the two"),
        ([user(), assistant(), assistant()], "message 2: the assistant speaks twice in a row; join the two"),
        ([user(" "), assistant()], "message 0: the user's content is empty"),
        ([user(), assistant("")], "message 1: the assistant says nothing and calls no tool"),
        ([user(), result(), assistant()], "message 1: a tool's result without a call"),
        (
            [user(), assistant(None, tool_calls=[call(0), call(1)]), result(0), user(), assistant()],
            "message 3: comes before 1 tool calls are answered",
        ),
        (
            [user(), assistant(None, tool_calls=[call(0)]), result(7), assistant()],
            "message 2: tool_call_id 'c7' answers no call before it",
        ),
        ([user() | {"tool_calls": [call()]}, assistant()], "message 0: only the assistant calls tools"),
        (
            [user(), {"role": "system", "content": "s"}, assistant()],
            "a system message stands after the first message; it stands first or not at all",
        ),
        ([user(), assistant(None, tool_calls=[{"id": "c0"}])], "message 1: tool call 0 names no function"),
        (
            [user(), assistant(None, tool_calls=[call(arguments="[1]")])],
            "message 1: tool call 0: arguments must be an object, not a list",
        ),
        (
            [user(), assistant(None, tool_calls=[call(arguments=None)])],
            "message 1: tool call 0: arguments must be an object, not null",
        ),
    ],
)
def test_a_conversation_out_of_turn_is_refused(messages, problem):
    assert problem in refused({"messages": messages})


def test_arguments_that_are_cut_off_are_refused():
    (problem,) = refused({"messages": [user(), assistant(None, tool_calls=[call(arguments='{"city": "Be')])]})
    assert problem.startswith("message 1: tool call 0: arguments are not JSON (")


# ---------------------------------------------------------------------- prompt and completion


def test_prompt_and_completion_as_text_are_two_messages():
    got = only(pair("a", "b"))
    assert said(got) == [("user", "a"), ("assistant", "b")]
    assert got.keys() == {"id", "group", "messages", "completion"}


def test_assistant_turns_of_a_prompt_are_given_and_not_learned():
    got = only({"prompt": TALK[:3], "completion": [TALK[3]]}, turns="whole")
    assert said(got) == [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    assert "trained" not in got


def test_every_turn_of_a_completion_of_messages_is_learned():
    calls = assistant(None, tool_calls=[call()])
    got = only({"prompt": [user()], "completion": [calls, result(), assistant()]}, turns="whole")
    assert got["trained"] == [1]


def test_weight_0_counts_in_a_completion_of_messages():
    calls = assistant(None, tool_calls=[call()], weight=0)
    assert len(rows_of({"prompt": [user()], "completion": [calls, result(), assistant()]})) == 1


def test_a_prompt_of_messages_may_have_a_completion_of_text():
    assert said(only({"prompt": [user("a")], "completion": "b"})) == [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize("wrong", [3, 1.5, True, None, {"a": 1}])
def test_a_completion_that_is_no_text_is_refused(wrong):
    assert refused({"prompt": "a", "completion": wrong})


# ---------------------------------------------------------------------- alpaca


def test_alpaca_puts_the_input_under_the_instruction():
    got = only({"instruction": "add", "input": "1 2", "output": "3"})
    assert said(got) == [("user", "add\n\n1 2"), ("assistant", "3")]


@pytest.mark.parametrize("more", [{}, {"input": ""}, {"input": None}])
def test_alpaca_without_input_is_the_instruction_alone(more):
    assert said(only({"instruction": "add", "output": "3"} | more))[0] == ("user", "add")


def test_alpaca_takes_system_and_history_which_is_not_learned():
    got = only(
        {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]], "colour": "red"}, turns="whole"
    )
    assert said(got) == [("system", "s"), *((m["role"], m["content"]) for m in TALK[:4])]
    assert "trained" not in got
    assert got["meta"] == {"colour": "red"}


def test_the_meta_of_a_line_is_the_rows_meta():
    value = pair("a", "b") | {"meta": {"customer": "c1", "score": None}, "colour": "red"}
    assert only(value)["meta"] == {"customer": "c1", "score": None, "colour": "red"}
    assert only(pair("a", "b") | {"meta": "text"})["meta"] == {"meta": "text"}


def test_a_key_that_stands_in_meta_and_beside_it_is_refused():
    value = pair("a", "b") | {"meta": {"colour": "blue"}, "colour": "red"}
    assert refused(value) == ["meta: colour stands in it and beside it; keep one"]


def test_alpaca_tools_are_tools_and_not_meta():
    got = only({"instruction": "a", "output": "b", "tools": '[{"name": "f"}]'})
    assert got["tools"] == [{"name": "f"}]
    assert "meta" not in got


@pytest.mark.parametrize(
    "more",
    [
        {"input": 3},
        {"input": ["a"]},
        {"system": 0},
        {"system": []},
        {"system": ["s"]},
        {"history": "a"},
        {"history": [["a"]]},
        {"history": [["a", 3]]},
        {"instruction": None},
        {"output": 3},
    ],
)
def test_alpaca_of_other_kinds_is_refused(more):
    assert refused({"instruction": "add", "output": "3"} | more)


# ---------------------------------------------------------------------- sharegpt


def turn(who, value, **more):
    return {"from": who, "value": value, **more}


def test_sharegpt_names_of_roles_are_ours():
    value = {"conversations": [turn("system", "s"), turn("human", "a"), turn("gpt", "b")], "source": "x"}
    got = only(value)
    assert said(got) == [("system", "s"), ("user", "a"), ("assistant", "b")]
    assert got["meta"] == {"source": "x"}


def test_sharegpt_takes_a_system_beside_the_conversation():
    value = {"system": "s", "conversations": [turn("human", "a"), turn("gpt", "b")]}
    assert said(only(value, system="other"))[0] == ("system", "s")


def test_sharegpt_calls_a_tool_and_reads_what_it_observes():
    arguments = {"city": "Bern", "unit": None, "days": 1.0}
    value = {
        "conversations": [
            turn("human", "how warm"),
            turn("function_call", json.dumps({"name": "weather", "arguments": arguments})),
            turn("observation", "12"),
            turn("gpt", "12 degrees"),
        ],
        "tools": '[{"name": "weather", "parameters": {"unit": null, "days": 1.0}}]',
    }
    got = only(value, turns="last")
    (called,) = got["messages"][1]["tool_calls"]
    assert json.dumps(called["function"]["arguments"]) == json.dumps(arguments)
    assert got["messages"][2] == {"role": "tool", "content": "12"}
    assert json.dumps(got["tools"]) == value["tools"]


def test_sharegpt_calls_several_tools_at_once():
    calls = json.dumps([{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}])
    turns = [turn("human", "a"), turn("function_call", calls), turn("observation", "1"), turn("observation", "2")]
    got = only({"conversations": [*turns, turn("gpt", "b")]}, turns="last")
    assert [c["function"]["name"] for c in got["messages"][1]["tool_calls"]] == ["f", "g"]


@pytest.mark.parametrize("value", ["no json", "[]", "3", '["f"]', '{"arguments": {}}', None, 3])
def test_a_sharegpt_call_that_names_no_function_is_refused(value):
    assert refused({"conversations": [turn("human", "a"), turn("function_call", value)]})


def test_an_observation_without_a_call_is_refused():
    turns = [turn("human", "a"), turn("observation", "12"), turn("gpt", "b")]
    assert refused({"conversations": turns}) == ["message 1: a tool's result without a call"]


def test_a_weight_of_a_sharegpt_turn_counts():
    turns = [turn("human", "a"), turn("gpt", "b", weight=0), turn("human", "c"), turn("gpt", "d", weight=None)]
    assert len(rows_of({"conversations": turns})) == 1


def test_a_key_of_a_sharegpt_turn_that_is_not_known_is_refused_and_not_dropped():
    turns = [turn("human", "a"), turn("gpt", "b", mood="glad", note=None)]
    assert refused({"conversations": turns}) == ["messages.1: mood: extra inputs are not permitted"]


@pytest.mark.parametrize("who", ["bard", None, 3, ["gpt"]])
def test_a_role_that_is_not_known_is_refused(who):
    (problem,) = refused({"conversations": [turn("human", "a"), turn(who, "b")]})
    assert problem.startswith(f"conversations.1.from: {who!r} is none of ")


# ---------------------------------------------------------------------- columns


COLUMNS = {"prompt": "question", "completion": "answer", "group": "customer", "id": "number", "system": "told"}


def test_named_columns_are_taken_and_the_others_go_to_meta():
    value = {"question": "a", "answer": "b", "customer": 7, "number": 1, "told": "s", "colour": "red", "size": None}
    assert detect(value, COLUMNS) == "columns"
    got = only(value, columns=COLUMNS)
    assert (got["id"], got["group"]) == ("1", "7")
    assert said(got) == [("system", "s"), ("user", "a"), ("assistant", "b")]
    assert got["meta"] == {"colour": "red", "size": None}


def test_a_column_that_is_not_there_is_named_with_those_that_are():
    assert refused({"question": "a", "text": "b"}, columns={"prompt": "question", "completion": "answer"}) == [
        "has no column 'answer'; there are: question, text"
    ]


def test_columns_without_a_completion_are_refused():
    assert refused({"question": "a"}, columns={"prompt": "question"}) == [
        "has no column 'completion'; there are: question"
    ]


def test_a_completion_column_that_holds_an_object_becomes_its_json():
    got = only({"q": "a", "a": {"b": 1.0, "ä": None}}, columns={"prompt": "q", "completion": "a"})
    assert got["completion"]["content"] == '{"b":1.0,"ä":null}'


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "parquet", "jsonl"])
def test_columns_are_read_from_every_kind_of_table(project, suffix):
    table = [{"question": f"what is {i}", "answer": str(i), "customer": f"k{i}", "colour": "red"} for i in range(3)]
    place = project.root / f"table.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pa.Table.from_pylist(table), place)
    elif suffix == "json":
        place.write_text(json.dumps(table))
    elif suffix == "jsonl":
        project.write(table, place.name)
    else:
        comma = {"csv": ",", "tsv": "\t"}[suffix]
        place.write_text("\n".join(comma.join(line) for line in (table[0].keys(), *(t.values() for t in table))))
    columns = {"prompt": "question", "completion": "answer", "group": "customer"}
    project.section["sources"][0] |= {"path": place.name, "columns": columns}
    project.section |= {"duplicates": {"near": None}, "split": {"shares": ALL_IN_TRAIN}}
    got = {row.group: row for row in project.curate()["train"]}
    assert {group: row.source for group, row in got.items()} == {f"k{i}": f"what is {i}" for i in range(3)}
    assert all(row.meta["colour"] == "red" for row in got.values())


def test_documents_have_their_completions_beside_them(project):
    place = project.root / "letters"
    (place / "deep").mkdir(parents=True)
    (place / "a.txt").write_text("dear sir\n")
    (place / "a.json").write_text('{"tone": "stiff"}\n')
    (place / "deep" / "b.md").write_text("hi there")
    (place / "deep" / "b.completion.txt").write_text("loose")
    project.section["sources"][0] |= {"path": "letters"}
    project.section |= {"duplicates": {"near": None}, "split": {"shares": ALL_IN_TRAIN}}
    got = {row.id: (row.source, row.reference) for row in project.curate()["train"]}
    assert got == {"a.txt": ("dear sir", '{"tone": "stiff"}'), "deep/b.md": ("hi there", "loose")}


# ---------------------------------------------------------------------- detection


def test_keys_of_two_forms_are_ambiguous():
    value = pair("a", "b") | {"instruction": "a", "output": "b"}
    assert refused(value) == ["fits prompt_completion and alpaca; state the source's `format`"]


def test_a_stated_form_takes_what_would_be_ambiguous():
    got = only(pair("a", "b") | {"instruction": "x"}, "prompt_completion")
    assert got["meta"] == {"instruction": "x"}


def test_a_stated_form_says_which_keys_are_missing():
    assert refused({"prompt": "a"}, "alpaca") == ["is no alpaca: has no instruction, output"]


def test_keys_of_no_form_are_told_with_the_forms_there_are():
    assert refused({"text": "a", "label": "b"}) == [
        "no known form has the keys label, text; name the source's `columns`, or bring one of "
        "rows, messages, prompt_completion, preference, alpaca, sharegpt"
    ]


@pytest.mark.parametrize(
    ("value", "kind"), [([], "a list"), ("x", "text"), (3, "a number"), (True, "a boolean"), (None, "null")]
)
def test_what_is_no_object_is_named_by_its_kind(value, kind):
    assert refused(value) == refused(value, "messages") == [f"must be an object, not {kind}"]


def test_a_problem_is_one_line_of_bounded_length_whatever_it_quotes():
    (problem,) = refused({"conversations": [turn("b\na\nr" * 1000, "x")]})
    assert "\n" not in problem
    assert len(problem) == LONGEST_PROBLEM


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def test_what_is_nested_too_deeply_is_refused_and_what_is_not_is_kept():
    assert only(pair("a", "b") | {"deep": nested(DEEPEST - 1)})["meta"] == {"deep": nested(DEEPEST - 1)}
    assert refused(pair("a", "b") | {"deep": nested(DEEPEST)}) == [
        "nested too deeply to be read; a row is a few levels deep"
    ]


@pytest.mark.parametrize("value", [{"a\0": 1}, {"a": "\0"}, {"a": [{"b": "x\0y"}]}])
def test_a_nul_is_refused_wherever_it_stands(value):
    assert refused(pair("a", "b") | value) == ["holds a NUL character; take it out"]


@pytest.mark.parametrize("text", ['[{"name": "\\u0000"}]', '[{"a": ' + "[" * 200 + "]" * 200 + "}]"])
def test_tools_as_text_hold_nothing_that_tools_may_not(text):
    assert refused({"messages": [user(), assistant()], "tools": text})


@pytest.mark.parametrize("tools", ["{}", "[1]", "no json", 3, {"name": "f"}, [[]], '[{"a": NaN}]', '[{"a":1,"a":2}]'])
def test_tools_that_are_no_list_of_objects_are_refused(tools):
    (problem,) = refused({"messages": [user(), assistant()], "tools": tools})
    assert problem.startswith("tools: ")


@pytest.mark.parametrize("tools", ["", " ", "[]", "null", None, []])
def test_tools_that_are_none_are_left_out(tools):
    assert "tools" not in only({"messages": [user(), assistant()], "tools": tools})


# ---------------------------------------------------------------------- what is in a row


FORMS = {
    "messages": {"messages": [user(), assistant()]},
    "prompt_completion": pair("a", "b"),
    "alpaca": {"instruction": "a", "output": "b"},
    "sharegpt": {"conversations": [turn("human", "a"), turn("gpt", "b")]},
}


@pytest.mark.parametrize("form", FORMS)
def test_what_a_form_does_not_know_goes_to_meta_in_its_order(form):
    more = {"z": [1, None], "a": {"b": 1.0}, "finish_reason": "stop"}
    got = only(FORMS[form] | more | {"id": 7, "group": "g"})
    assert json.dumps(got["meta"]) == json.dumps(more)
    assert (got["id"], got["group"]) == ("7", "g")


@pytest.mark.parametrize("form", FORMS)
def test_without_an_id_a_row_is_named_by_what_it_says(form):
    plain, elsewhere = only(FORMS[form]), only(FORMS[form] | {"colour": "red"})
    assert plain["id"] == plain["group"] == elsewhere["id"]
    assert plain["id"].startswith("h-")


def test_the_same_conversation_has_the_same_id_in_every_form():
    forms = [FORMS["prompt_completion"], FORMS["alpaca"], FORMS["sharegpt"], {"messages": [user("a"), assistant("b")]}]
    assert len({only(value)["id"] for value in forms}) == 1


def test_other_tools_make_another_id():
    plain = FORMS["messages"]
    assert only(plain)["id"] != only(plain | {"tools": [{"name": "f"}]})["id"]


def test_ids_do_not_depend_on_place(project):
    lines = [pair(f"what is {i}", str(i)) for i in range(5)]
    project.section |= {"duplicates": {"near": None}, "split": {"shares": ALL_IN_TRAIN}}
    project.write(lines)
    there = {row.source: row.id for row in project.curate()["train"]}
    project.write(lines[::-1])
    assert {row.source: row.id for row in project.curate(recut=True)["train"]} == there


@pytest.mark.parametrize("value", [1.5, True, ["a"], {"a": 1}])
@pytest.mark.parametrize("key", ["id", "group"])
def test_an_id_or_group_is_text_or_a_whole_number(key, value):
    (problem,) = refused(pair("a", "b") | {key: value})
    assert problem.startswith(f"{key}: must be text or a whole number, not ")


@pytest.mark.parametrize("key", ["id", "group"])
def test_an_empty_id_or_group_is_none(key):
    assert only(pair("a", "b") | {key: ""}) == only(pair("a", "b") | {key: None}) == only(pair("a", "b"))


# ---------------------------------------------------------------------- turns


def test_turns_each_is_a_row_for_every_turn_of_the_assistant():
    rows = rows_of({"messages": TALK, "id": "t"}, turns="each")
    assert [(row.id, len(row.messages), row.reference) for row in rows] == [
        ("t#1", 1, "b"),
        ("t#3", 3, "d"),
        ("t#5", 5, "f"),
    ]
    assert {row.group for row in rows} == {"t"}


def test_turns_last_is_one_row_for_the_last():
    (row,) = rows_of({"messages": TALK, "id": "t"}, turns="last")
    assert (row.id, len(row.messages), row.reference, row.trained) == ("t", 5, "f", None)


def test_turns_whole_is_one_row_that_trains_every_turn():
    (row,) = rows_of({"messages": TALK, "id": "t"}, turns="whole")
    assert (row.id, row.reference, row.trained) == ("t", "f", [1, 3])


def test_turns_whole_leaves_turns_of_weight_0_untrained():
    talk = [*TALK[:3], TALK[3] | {"weight": 0}, *TALK[4:]]
    assert rows_of({"messages": talk}, turns="whole")[0].trained == [1]


def test_turns_whole_ends_where_the_last_trained_turn_ends():
    (row,) = rows_of({"messages": [*TALK[:5], TALK[5] | {"weight": 0}]}, turns="whole")
    assert (row.reference, row.trained) == ("d", [1])


def test_turns_whole_and_the_system_option_name_the_same_turns():
    (row,) = rows_of({"messages": TALK}, turns="whole", system="s")
    assert [row.messages[i].content for i in row.trained] == ["b", "d"]


def test_turns_whole_and_turns_each_learn_the_same():
    (whole,) = rows_of({"messages": TALK}, turns="whole")
    each = rows_of({"messages": TALK}, turns="each")
    assert [(r.messages, r.completion) for r in whole.turns()] == [(r.messages, r.completion) for r in each]


# ---------------------------------------------------------------------- the system option


@pytest.mark.parametrize("form", FORMS)
def test_the_system_option_stands_before_what_has_none(form):
    assert only(FORMS[form], system="be brief")["messages"][0] == {"role": "system", "content": "be brief"}


def test_the_system_option_leaves_a_system_message_alone():
    value = {"messages": [{"role": "system", "content": "s"}, user(), assistant()]}
    assert only(value, system="be brief") == only(value)


# ---------------------------------------------------------------------- byte for byte


SCHEMA = (
    '[{"type": "function", "function": {"name": "find", "strict": null, "parameters": {"type": "object", '
    '"properties": {"z": {"type": "number", "default": 1.0}, "a": {"type": "integer", "default": 1, "enum": '
    '[1, 2.0, -0.5, 1e+16, 12345678901234567890, null, true, "naïve 🙂 \\u2028 \\\\"]}, "nested": {"properties": '
    '{"deep": {"default": null}, "empty": {}, "none": []}}}, "required": []}}}]'
)
ARGUMENTS = '{"z": 1.0, "a": 1, "nested": {"deep": null, "empty": {}}, "wörter": ["🙂", null, 0.1]}'


def curated_text(project, line):
    """The one line of train.jsonl, as it stands in the file."""
    (project.root / "pile.jsonl").write_text(line + "\n", encoding="utf-8")
    project.section |= {"duplicates": {"near": None}, "split": {"shares": ALL_IN_TRAIN}, "turns": "last"}
    project.curate(recut=True)
    (text,) = (project.data / "train.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    return text


def test_tools_and_arguments_reach_train_as_they_were_written(project):
    called = f'{{"role": "assistant", "tool_calls": [{{"function": {{"name": "find", "arguments": {ARGUMENTS}}}}}]}}'
    last = '{"role": "tool", "content": "3"}, {"role": "assistant", "content": "yes"}'
    schema = SCHEMA.replace("\\u2028", "\u2028")
    asked = '{"role": "user", "content": "find it"}'
    text = curated_text(project, f'{{"tools": {schema}, "messages": [{asked}, {called}, {last}]}}')
    assert f'"tools": {schema}' in text
    assert f'"arguments": {ARGUMENTS}' in text


def test_arguments_as_text_reach_train_letter_for_letter(project):
    odd = '{ "z":1.0,  "a" : 1e2, "b": "\\u00e4" }'
    called = {"role": "assistant", "content": None, "tool_calls": [call(arguments=odd)]}
    got = json.loads(curated_text(project, json.dumps({"messages": [user(), called]})))
    assert got["completion"]["tool_calls"][0]["function"]["arguments"] == odd


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=8)
)
NAMES = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=4)
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(NAMES, v, max_size=3), max_leaves=10)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4)


@settings(deadline=None)
@given(tools=st.lists(OBJECTS, min_size=1, max_size=3), arguments=OBJECTS, as_text=st.booleans())
def test_any_tools_and_arguments_come_out_as_they_went_in(tools, arguments, as_text):
    messages = [user(), assistant(None, tool_calls=[call(arguments=arguments)])]
    line = json.dumps({"messages": messages, "tools": json.dumps(tools) if as_text else tools}, ensure_ascii=False)
    (row,) = rows_of(parse(line.encode()))
    written = parse(json.dumps(row.as_dict(), ensure_ascii=False, allow_nan=False).encode())
    assert json.dumps(written["tools"]) == json.dumps(tools)
    assert json.dumps(written["completion"]["tool_calls"][0]["function"]["arguments"]) == json.dumps(arguments)


def refused_file(project):
    with pytest.raises(UserError) as error:
        project.curate()
    return error.value.problems


def write_parquet(project, table):
    parquet.write_table(pa.Table.from_pylist(table), project.root / "pile.parquet")
    project.section["sources"][0] |= {"path": "pile.parquet"}
    project.section |= {"duplicates": {"near": None}, "split": {"shares": ALL_IN_TRAIN}}


def test_parquet_with_tools_as_objects_is_refused_because_it_fills_them(project):
    tools = [{"name": "f", "parameters": {"a": 1}}, {"name": "g", "parameters": {"b": 2}}]
    write_parquet(project, [{"messages": [user(), assistant()], "tools": tools}])
    assert refused_file(project) == [
        "pile.parquet:1: tools: Parquet fills nested objects with nulls; hold them as JSON text"
    ]


def test_parquet_with_arguments_as_objects_is_refused_because_it_fills_them(project):
    talk = [user(), assistant(None, tool_calls=[call(arguments={"a": 1})])]
    write_parquet(project, [{"messages": talk}])
    assert refused_file(project) == [
        "pile.parquet:1: messages: Parquet fills arguments with nulls; hold them as JSON text"
    ]


def test_parquet_with_a_completion_column_of_objects_is_refused_because_it_fills_them(project):
    write_parquet(project, [{"q": "one", "a": {"x": 1}}, {"q": "two", "a": {"y": 2}}])
    project.section["sources"][0]["columns"] = {"prompt": "q", "completion": "a"}
    assert refused_file(project) == [
        f"pile.parquet:{line}: a: Parquet fills nested objects with nulls; hold them as JSON text" for line in (1, 2)
    ]


def test_parquet_with_tools_and_arguments_as_text_keeps_them(project):
    talk = [user(), assistant(None, tool_calls=[call(arguments=ARGUMENTS)]), result(), assistant()]
    write_parquet(project, [{"messages": talk, "tools": SCHEMA}, {"messages": [user("b"), assistant("c")]}])
    rows = project.curate()["train"]
    (called,) = [row for row in rows if row.completion.tool_calls]
    assert json.dumps(called.tools) == json.dumps(json.loads(SCHEMA))
    assert called.completion.tool_calls[0]["function"]["arguments"] == ARGUMENTS
    (plain,) = [row for row in rows if row.source == "b"]
    assert plain.tools is None
    assert plain.completion.as_dict() == assistant("c")


def test_a_parquet_column_that_is_null_in_one_row_is_still_there(project):
    write_parquet(project, [{"q": "one", "a": "x", "s": "be brief"}, {"q": "two", "a": "y", "s": None}])
    project.section["sources"][0]["columns"] = {"prompt": "q", "completion": "a", "system": "s"}
    assert {row.source: row.messages[0].role for row in project.curate()["train"]} == {"one": "system", "two": "user"}


@pytest.mark.parametrize("calls", ['[{"function": {"name": "f"}}]', 3, ["f"], [{"function": "f"}]])
def test_parquet_with_calls_of_another_kind_is_refused_with_its_line(project, calls):
    write_parquet(project, [{"messages": [{"role": "user", "content": "a", "tool_calls": calls}]}])
    assert all(problem.startswith("pile.parquet:1: ") for problem in refused_file(project))


def test_parquet_with_tools_of_another_kind_is_refused_with_its_line(project):
    write_parquet(project, [{"messages": [user(), assistant()], "tools": 3}])
    assert refused_file(project) == ["pile.parquet:1: tools: must be a list of objects"]


def test_parquet_puts_no_nulls_into_messages_of_our_own_rows(project):
    rows = [OWN, OWN | {"id": "r2", "messages": [user("b") | {"name": "ann"}], "completion": assistant("c")}]
    write_parquet(project, rows)
    assert {row.id: row.messages[0].as_dict() for row in project.curate()["train"]} == {
        "r1": user(),
        "r2": user("b") | {"name": "ann"},
    }
