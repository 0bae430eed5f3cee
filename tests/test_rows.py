import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import UserError
from tunesmith.files import sha256_file, write_json
from tunesmith.rows import Dataset, Message, Row, read_rows, system_messages

GOOD = (
    '{"id":"a","group":"g","messages":[{"role":"user","content":"x"}],"completion":{"role":"assistant","content":"y"}}'
)
HINT = "\nhint: a row is {id, group, messages, completion, rejected?, tools?, meta?}; fix the lines named"


def refusal(path):
    with pytest.raises(UserError) as refused:
        read_rows(path)
    return refused.value.text


BROKEN = {
    "bad UTF-8": (GOOD.encode()[:8] + b"\xff" + GOOD.encode()[8:], "not UTF-8 (byte 8); save the file as UTF-8"),
    "half a line": (
        GOOD.encode()[:-1],
        "not JSON (Expecting ',' delimiter at column 113); each line is one JSON object",
    ),
    "byte order mark": (
        b"\xef\xbb\xbf" + GOOD.encode(),
        "not JSON (Unexpected UTF-8 BOM (decode using utf-8-sig) at column 1); each line is one JSON object",
    ),
    "list": (b"[1]", "input should be a valid dictionary or instance of Row"),
    "missing key": (GOOD.replace('"group":"g",', "").encode(), "group: field required"),
    "unknown key": (GOOD.replace('"id"', '"source":"s","id"').encode(), "source: extra inputs are not permitted"),
    "unknown key in a message": (
        GOOD.replace('"content":"x"', '"content":"x","weight":1').encode(),
        "messages.0.weight: extra inputs are not permitted",
    ),
    "key twice": (
        GOOD.replace('"group":"g"', '"group":"g","group":"h"').encode(),
        "key 'group' stands twice in one object; keep one",
    ),
    "key twice inside": (
        GOOD.replace('"content":"x"', '"content":"x","content":"z"').encode(),
        "key 'content' stands twice in one object; keep one",
    ),
    "unknown role": (
        GOOD.replace('"role":"user"', '"role":"human"').encode(),
        "messages.0.role: input should be 'system', 'user', 'assistant' or 'tool'",
    ),
    "completion of another role": (
        GOOD.replace('"role":"assistant"', '"role":"user"').encode(),
        "completion: role is 'user'; the completion is the assistant's message",
    ),
    "no messages": (
        GOOD.replace('[{"role":"user","content":"x"}]', "[]").encode(),
        "messages: list should have at least 1 item after validation, not 0",
    ),
    "empty id": (GOOD.replace('"a"', '""').encode(), "id: string should have at least 1 character"),
    "id that is a number": (GOOD.replace('"a"', "7").encode(), "id: input should be a valid string"),
    "content in parts": (
        GOOD.replace('"y"', '["y"]').encode(),
        "completion.content: input should be a valid string",
    ),
    "not a number": (
        GOOD.replace('"id"', '"meta":{"x":NaN},"id"').encode(),
        "NaN is not JSON; leave the key out or write null",
    ),
    "half a surrogate pair": (
        GOOD.replace('"x"', '"\\ud83d"').encode(),
        "holds half a surrogate pair, which is no character; write the whole one",
    ),
}


@pytest.mark.parametrize(("line", "problem"), BROKEN.values(), ids=BROKEN.keys())
def test_a_bad_line_is_named_with_what_is_wrong(tmp_path, line, problem):
    path = tmp_path / "train.jsonl"
    path.write_bytes(GOOD.replace('"a"', '"first"').encode() + b"\n\n" + line + b"\n")
    assert refusal(path) == f"{path}:3: {problem}{HINT}"


def test_an_id_stands_once(tmp_path):
    path = tmp_path / "train.jsonl"
    other = GOOD.replace('"a"', '"b"')
    path.write_text("\n".join([GOOD, other, GOOD, GOOD, other]))
    assert refusal(path) == (
        f"{path}:3: id 'a' stands on line 1 already; ids are unique\n"
        f"{path}:4: id 'a' stands on line 1 already; ids are unique\n"
        f"{path}:5: id 'b' stands on line 2 already; ids are unique{HINT}"
    )


def test_all_bad_lines_are_told_at_once(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n".join([b"\xff", GOOD.encode(), b"{", b'{"id":"b"}', GOOD.encode()]))
    assert refusal(path) == (
        f"{path}:1: not UTF-8 (byte 0); save the file as UTF-8\n"
        f"{path}:3: not JSON (Expecting property name enclosed in double quotes at column 2); "
        "each line is one JSON object\n"
        f"{path}:4: group: field required\n"
        f"{path}:4: messages: field required\n"
        f"{path}:4: completion: field required\n"
        f"{path}:5: id 'a' stands on line 2 already; ids are unique{HINT}"
    )


@pytest.mark.parametrize(("bad", "tail"), [(20, ""), (21, "\nand 1 more"), (50, "\nand 30 more")])
def test_more_than_twenty_problems_are_counted(tmp_path, bad, tail):
    path = tmp_path / "train.jsonl"
    path.write_text("[]\n" * bad)
    listed = "\n".join(f"{path}:{n}: input should be a valid dictionary or instance of Row" for n in range(1, 21))
    assert refusal(path) == listed + tail + HINT


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_an_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "train.jsonl"
    path.write_text(content)
    assert refusal(path) == f"{path}: holds no rows"


def test_a_missing_file_is_named_with_the_stage_that_makes_it(tmp_path):
    assert refusal(tmp_path / "train.jsonl") == f"{tmp_path}/train.jsonl: no such file; `tunesmith curate` makes it"


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=3)


def messages(roles):
    return st.fixed_dictionaries(
        {"role": st.sampled_from(roles)},
        optional={
            "content": st.none() | TEXT,
            "name": TEXT,
            "tool_calls": st.lists(OBJECTS, max_size=2),
            "tool_call_id": TEXT,
        },
    )


LINES = st.fixed_dictionaries(
    {
        "id": TEXT.filter(bool),
        "group": TEXT.filter(bool),
        "messages": st.lists(messages(["system", "user", "assistant", "tool"]), min_size=1, max_size=3),
        "completion": messages(["assistant"]),
    },
    optional={"tools": st.lists(OBJECTS, max_size=2), "meta": OBJECTS},
)


def canonical(value):
    return json.dumps(value, sort_keys=True)


@settings(deadline=None)
@given(lines=st.lists(LINES, min_size=1, max_size=3, unique_by=lambda line: line["id"]))
def test_a_row_is_written_as_it_was_read(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    path.write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8", newline=""
    )
    rows = read_rows(path)
    # As text, because True == 1 == 1.0 in Python and not in JSON.
    assert [canonical(row.as_dict()) for row in rows] == [canonical(line) for line in lines]
    assert [json.dumps(row.tools) for row in rows] == [json.dumps(line.get("tools")) for line in lines]
    path.write_text("".join(json.dumps(row.as_dict(), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert read_rows(path) == rows


def test_tools_keep_their_exact_json(tmp_path):
    first = {"type": "function", "function": {"name": "f", "parameters": {"a": {"type": "string", "enum": None}}}}
    second = {"type": "function", "function": {"name": "g", "parameters": {"b": {"type": "integer"}}}}
    call = {"id": "1", "function": {"name": "f", "arguments": {"a": None}}}
    line = json.loads(GOOD) | {"tools": [first, second]}
    line["completion"] = {"role": "assistant", "tool_calls": [call]}
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(line))
    row = read_rows(path)[0]
    # A table of rows would give each tool the other's keys, filled with null.
    assert row.as_dict() == line
    assert row.tools == [first, second]
    assert row.completion.as_dict() == {"role": "assistant", "tool_calls": [call]}


def test_a_rows_source_is_its_last_user_message():
    row = Row(
        id="a",
        group="g",
        messages=[
            Message(role="user", content="first"),
            Message(role="assistant", content="answer"),
            Message(role="user", content="last"),
        ],
        completion=Message(role="assistant", content="y"),
    )
    assert (row.source, row.reference) == ("last", "y")


def test_the_system_messages_of_rows_are_distinct_and_sorted():
    def row(*contents):
        system = [Message(role="system", content=content) for content in contents]
        user = Message(role="user", content="x")
        return Row(id="a", group="g", messages=[*system, user], completion=Message(role="assistant", content="y"))

    assert system_messages([row("b"), row("a"), row(), row("b")]) == ["a", "b"]


@pytest.fixture
def dataset(tmp_path):
    files = {}
    for split in ("train", "dev", "gate", "confirm"):
        path = tmp_path / f"{split}.jsonl"
        path.write_text(GOOD.replace('"a"', f'"{split}"') + "\n")
        files[path.name] = {"rows": 1, "groups": 1, "sha256": sha256_file(path)}
    write_json(tmp_path / "manifest.json", {"schema": 1, "files": files})
    return Dataset(tmp_path)


def test_a_dataset_gives_the_rows_and_digest_of_a_split(dataset):
    assert [row.id for row in dataset.rows("dev")] == ["dev"]
    assert dataset.digest("dev") == sha256_file(dataset.directory / "dev.jsonl")


def test_a_split_that_was_changed_or_lost_is_refused(dataset):
    directory = dataset.directory
    with (directory / "gate.jsonl").open("a") as stream:
        stream.write("\n")
    (directory / "dev.jsonl").unlink()
    for ask in (dataset.manifest, lambda: dataset.digest("train")):
        with pytest.raises(UserError) as refused:
            ask()
        assert refused.value.text == (
            f"{directory}/dev.jsonl: differs from its manifest; splits are written once\n"
            f"{directory}/gate.jsonl: differs from its manifest; splits are written once\n"
            "hint: curate again; a changed split makes every earlier score another's"
        )


def test_a_directory_without_manifest_is_no_dataset(dataset):
    assert dataset.exists()
    dataset.manifest_path.unlink()
    assert not dataset.exists()
    with pytest.raises(UserError) as refused:
        dataset.manifest()
    assert refused.value.text == f"{dataset.directory}: holds no manifest.json; `tunesmith curate` makes it"


def test_a_manifest_that_names_no_maker_was_made_by_nobody_we_know(tmp_path):
    write_json(tmp_path / "manifest.json", {"files": {}})
    assert not Dataset(tmp_path).is_made_by("0" * 64)
    write_json(tmp_path / "manifest.json", {"files": {}, "made_by": "0" * 64})
    assert Dataset(tmp_path).is_made_by("0" * 64)
    assert not Dataset(tmp_path / "nowhere").is_made_by("0" * 64)
