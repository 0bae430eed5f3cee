"""What a log may look like, and how a bad line is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.errors import UserError
from tunesmith.logs import NAMES, LogRow, read_log


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def one(tmp_path: Path, line: Any) -> LogRow:
    (row,) = read_log(written(tmp_path / "log.jsonl", line)).rows
    return row


def problems(tmp_path: Path, *lines: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        read_log(written(tmp_path / "log.jsonl", *lines))
    return [text.removeprefix(f"{tmp_path / 'log.jsonl'}:") for text in caught.value.problems]


# ---------------------------------------------------------------------- forms


def test_the_plain_form(tmp_path: Path) -> None:
    row = one(tmp_path, {"prompt": "How much?", "output": "5", "reference": "6"})
    assert (row.id, row.asked, row.output, row.reference, row.weight) == ("line-1", "How much?", "5", "6", 1.0)


def test_every_name_of_a_thing_is_known(tmp_path: Path) -> None:
    values = {"messages": "q", "schema": {"type": "object"}, "correct": True, "weight": 2, "tokens_in": 3}
    values |= {"tokens_cached": 1, "tokens_out": 4, "seconds": 5}
    plain = {"prompt": "q", "output": "a"}
    for thing, names in NAMES.items():
        for name in names:
            rest = {key: text for key, text in plain.items() if key not in NAMES[thing]}
            row = one(tmp_path, rest | {name: values.get(thing, "text")})
            found = getattr(row, thing)
            assert found not in (None, (), []), name


def test_a_stored_chat_completion(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 90, "completion_tokens": 7, "total_tokens": 97}
    line = {
        "request": {
            "model": "m",
            "messages": [{"role": "developer", "content": "Be brief."}, user([part("How "), part("much?")])],
        },
        "response": {
            "id": "chatcmpl-1",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "5"}, "finish_reason": "length"}],
            "usage": usage | {"prompt_tokens_details": {"cached_tokens": 64}},
        },
        "reference": "6",
    }
    row = one(tmp_path, line)
    assert [m.role for m in row.messages] == ["system", "user"]
    assert (row.asked, row.output, row.finish) == ("How much?", "5", "length")
    assert (row.tokens_in, row.tokens_cached, row.tokens_out) == (90, 64, 7)


def test_a_line_of_a_batch(tmp_path: Path) -> None:
    response = {"status_code": 200, "body": {"choices": [{"message": {"role": "assistant", "content": "5"}}]}}
    row = one(tmp_path, {"custom_id": "a-7", "body": {"messages": [user("How much?")]}, "response": response})
    assert (row.id, row.output, row.reference) == ("a-7", "5", None)


def test_an_answer_in_items(tmp_path: Path) -> None:
    item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "5"}]}
    row = one(tmp_path, {"input": "How much?", "response": {"output": [item], "usage": {"input_tokens": 4}}})
    assert (row.output, row.tokens_in) == ("5", 4)


def test_a_conversation_ends_with_its_answer(tmp_path: Path) -> None:
    row = one(tmp_path, {"messages": [user("How much?"), {"role": "assistant", "content": "5"}], "ideal": "6"})
    assert (len(row.messages), row.output, row.reference) == (1, "5", "6")


def test_a_call_is_told_as_json(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    row = one(tmp_path, {"prompt": "q", "response": {"choices": [{"message": message}]}})
    assert json.loads(row.output) == {"name": "f", "arguments": '{"a":1}'}


def test_objects_become_json_and_passages_become_texts(tmp_path: Path) -> None:
    passages = ["one", {"text": "two"}, {"page_content": "three"}]
    row = one(
        tmp_path, {"prompt": "q", "output": {"a": 1}, "reference": {"a": 2}, "context": passages, "versions": [7]}
    )
    assert (row.output, row.reference) == ('{"a":1}', '{"a":2}')
    assert (row.context, row.versions) == (("one", "two", "three"), ("7",))


def test_milliseconds_are_told_from_seconds(tmp_path: Path) -> None:
    assert one(tmp_path, {"prompt": "q", "output": "a", "latency_ms": 250}).seconds == 0.25


def test_rows_that_ask_the_same_are_one_group(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl", *({"prompt": p, "output": "a"} for p in ("How much?", "how much", "Who?")))
    first, same, other = read_log(path).rows
    assert first.group == same.group != other.group


def test_what_is_not_read_is_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl", *({"prompt": "q", "output": "a", "tenant": 1} for _ in range(3)))
    assert read_log(path).unread == {"tenant": 3}


# ---------------------------------------------------------------------- bad lines


def test_every_bad_line_is_told_with_its_number(tmp_path: Path) -> None:
    told = problems(
        tmp_path,
        {"prompt": "q", "output": "a"},
        "{",
        [],
        {"output": "a"},
        {"prompt": "q"},
        {"prompt": "q", "output": "a", "weight": 0, "prompt_tokens": 1.5},
        {"prompt": "q", "output": "a", "response": "b"},
        {"prompt": "q", "output": "a", "schema": {"type": "nothing"}},
        {"messages": [{"role": "robot", "content": "q"}], "output": "a"},
        {"messages": [user([{"type": "image_url"}])], "output": "a"},
        '{"prompt": "q", "output": NaN}',
    )
    assert [text.partition(":")[0] for text in told] == ["2", "3", "4", "5", "6", "6", "7", "8", "9", "10", "11"]
    by_line = dict(text.split(": ", 1) for text in told)
    assert by_line["3"] == "holds a list; each line is one JSON object"
    assert by_line["4"] == "holds neither messages nor prompt; say what was asked"
    assert by_line["7"] == "output, response: two names of one thing; keep one"
    assert by_line["10"] == "messages: a part of a message is no text; only text is diagnosed"
    assert "6: weight: 0 is out of range; must be above 0" in told


def test_one_id_stands_once(tmp_path: Path) -> None:
    line = {"id": "a", "prompt": "q", "output": "a"}
    assert problems(tmp_path, line, line) == ["2: id 'a' stands on line 1 already; ids are unique"]


def test_two_answers_in_one_row_are_refused(tmp_path: Path) -> None:
    choice = {"message": {"role": "assistant", "content": "a"}}
    told = problems(tmp_path, {"prompt": "q", "response": {"choices": [choice, choice]}})
    assert told[0] == "1: response.choices: holds 2; a row is one answer, so write one a row"


def test_a_row_that_says_two_things_is_refused(tmp_path: Path) -> None:
    line = {"messages": [user("one")], "request": {"messages": [user("two")]}, "output": "a"}
    assert problems(tmp_path, line) == ["1: messages: stands in the row and in its request, and differs; keep one"]


@pytest.mark.parametrize(("content", "said"), [(None, "no such file"), ("\n\n", "holds no rows")])
def test_a_log_without_rows_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "log.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=said):
        read_log(path)


# ---------------------------------------------------------------------- anything at all

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(sorted({name for several in NAMES.values() for name in several} | {"request", "body", "usage"}))
OURS = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@OURS
@given(lines=st.lists(st.dictionaries(names, json_values, max_size=5) | json_values, min_size=1, max_size=4))
def test_any_json_is_read_or_refused_in_words(tmp_path: Path, lines: list[Any]) -> None:
    path = written(tmp_path / "any.jsonl", *(json.dumps(line) for line in lines))
    told: list[str] = []
    rows: list[LogRow] = []
    try:
        rows = read_log(path).rows
    except UserError as error:
        told = error.problems
    assert bool(rows) != bool(told)
    assert all(row.messages and row.weight > 0 for row in rows)
    assert all(text.startswith(str(path)) for text in told)


@OURS
@given(raw=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_words(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "any.jsonl"
    path.write_bytes(raw)
    with pytest.raises(UserError):
        read_log(path)


texts = st.text(min_size=1, max_size=12).filter(lambda text: text.strip())


@OURS
@given(asked=texts, output=st.text(max_size=12), reference=st.text(max_size=12), weight=st.floats(1e-3, 1e6))
def test_what_is_written_is_what_is_read(
    tmp_path: Path, asked: str, output: str, reference: str, weight: float
) -> None:
    line = {"question": asked, "response": output, "expected": reference, "traffic": weight}
    row = one(tmp_path, json.dumps(line))
    assert (row.asked, row.output, row.reference, row.weight) == (asked, output, reference, weight)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
