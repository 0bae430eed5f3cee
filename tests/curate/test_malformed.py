"""Whatever a file holds: either it becomes a whole dataset, or it is refused by file and line and nothing is left."""

import gzip
import io
import json
import re
import shutil
from contextlib import redirect_stderr
from dataclasses import dataclass

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tests.curate.conftest import Project, pair
from tunesmith.cli import app, guarded
from tunesmith.curate.stage import Options, curate
from tunesmith.errors import ExitCode
from tunesmith.rows import SPLITS, Row, parse

PLACE = re.compile(r"[\w.-]+:[1-9]\d*: \S")


@dataclass
class Outcome:
    code: int
    problems: list[str]
    rows: list[Row]
    dropped: dict[str, dict[str, int]]
    lines: int


class Curator:
    """One project whose only file is written anew for each input."""

    def __init__(self, root):
        self.project = Project(root)
        self.project.section |= {
            "duplicates": {"near": None},
            "split": {"shares": {"train": 1, "dev": 0, "gate": 0, "confirm": 0}},
            "turns": "last",
        }
        self.recipes = {}

    def recipe(self, name, options):
        key = (name, *options.items())
        if key not in self.recipes:
            self.project.section["sources"] = [{"name": "pile", "licence": "CC0-1.0", "path": name, **options}]
            self.recipes[key] = self.project.loaded()
        return self.recipes[key]

    def judge(self, name, content, **options):
        """Curate a file of these bytes, and hold the outcome against all that must be so, whatever they are."""
        shutil.rmtree(self.project.data, ignore_errors=True)
        (self.project.root / name).write_bytes(content)
        recipe, said = self.recipe(name, options), io.StringIO()
        with redirect_stderr(said):
            code = guarded(lambda: curate(recipe, None, Options(workers=1)))
        left = sorted(path.name for path in self.project.data.iterdir())
        if code == ExitCode.DONE:
            outcome = self._whole(left)
        else:
            assert code == ExitCode.USER
            assert left == []
            outcome = Outcome(code, self._told(said.getvalue(), name), [], {}, 0)
        if name.endswith(".jsonl") and outcome.lines:
            assert outcome.lines == sum(bool(line.strip()) for line in content.split(b"\n"))
        return outcome

    def _whole(self, left):
        assert not any(name.startswith(".") for name in left)
        assert {"manifest.json", *(f"{split}.jsonl" for split in SPLITS)} <= set(left)
        manifest, data = self.project.manifest(), self.project.data
        written = [line for split in SPLITS for line in (data / f"{split}.jsonl").read_bytes().split(b"\n") if line]
        rows = [Row.model_validate(parse(line)) for line in written]
        assert len(rows) == sum(entry["rows"] for entry in manifest["files"].values()) > 0
        dropped = manifest["dropped"]
        lines = manifest["sources"]["pile"]["lines"]
        left_out = sum(count for reasons in dropped.values() for count in reasons.values())
        assert len(rows) + left_out == lines
        assert len((data / "dropped.jsonl").read_text().splitlines()) == left_out
        return Outcome(ExitCode.DONE, [], rows, dropped, lines)

    def _told(self, said, name):
        assert "Traceback" not in said
        said = said.replace(f"{self.project.data}: no rows", "no rows")
        lines = [line for line in said.split("\n") if line and not line.startswith((f"  {name} is read as", "hint: "))]
        problems = [line for line in lines if not re.fullmatch(r"and \d+ more", line)]
        assert problems
        for problem in problems:
            named = PLACE.match(problem) and problem.startswith(f"{name}:")
            assert named or (len(problems) == 1 and "no rows are left" in problem), problem
            assert len(problem) < 600
        return lines


@pytest.fixture(scope="module")
def curator(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # Templates take longer than all else, and are not what these tests are about.
        patch.setattr("tunesmith.curate.stage._renderer", lambda loaded: None)
        patch.setattr("tunesmith.curate.stage.report.page", lambda found: "")
        patch.setattr("tunesmith.curate.stage.dataset.write_card", lambda *arguments: None)
        yield Curator(tmp_path_factory.mktemp("malformed"))


def line(value):
    return json.dumps(value, ensure_ascii=False).encode()


def user(text="how warm"):
    return {"role": "user", "content": text}


def assistant(text="12 degrees", **more):
    return {"role": "assistant", "content": text, **more}


def call(number=0, **function):
    return {"id": f"c{number}", "type": "function", "function": {"name": "f", "arguments": "{}"} | function}


def result(number=0):
    return {"role": "tool", "content": "12", "tool_call_id": f"c{number}"}


def talk(*messages, **more):
    return line({"messages": list(messages), **more})


def calling(*calls):
    return assistant(None, tool_calls=list(calls))


def deep(depth, opening="[", closing="]"):
    return b'{"prompt": "a", "completion": "b", "more": %s1%s}' % (opening.encode() * depth, closing.encode() * depth)


# ---------------------------------------------------------------------- lines, by hand


GOOD = [line(pair("one", "1")), line(pair("two", "2"))]
GOOD_TALK = [talk(user("one"), assistant("1")), talk(user("two"), assistant("2"))]

# A bad line between two good ones, and how its problem begins.
BAD_PAIRS = {
    "cut in a key": (b'{"prompt', "not JSON ("),
    "cut in a text": (b'{"prompt": "a', "not JSON ("),
    "cut after a colon": (b'{"prompt":', "not JSON ("),
    "cut before the bracket": (b'{"prompt": "a", "completion": "b"', "not JSON ("),
    "cut in an escape": (b'{"prompt": "a\\', "not JSON ("),
    "cut in a code point": (b'{"prompt": "a\\u00', "not JSON ("),
    "cut in the middle of a letter": ('{"prompt": "ä'.encode()[:-1], "not UTF-8 (byte 12)"),
    "beginning cut off": (b'pt": "a", "completion": "b"}', "not JSON ("),
    "two objects": (GOOD[0] + GOOD[1], "not JSON (Extra data"),
    "two objects and a comma": (GOOD[0] + b"," + GOOD[1], "not JSON (Extra data"),
    "a comma after it": (GOOD[0] + b",", "not JSON (Extra data"),
    "a comma inside": (b'{"prompt": "a", "completion": "b",}', "not JSON ("),
    "no commas": (b'{"prompt": "a" "completion": "b"}', "not JSON ("),
    "single quotes": (b"{'prompt': 'a', 'completion': 'b'}", "not JSON ("),
    "keys without quotes": (b'{prompt: "a", completion: "b"}', "not JSON ("),
    "a comment": (b'{"prompt": "a", "completion": "b"} // so', "not JSON (Extra data"),
    "Python's words": (b'{"prompt": "a", "completion": None}', "not JSON ("),
    "yaml": (b"prompt: a", "not JSON ("),
    "a csv line": (b"a,b", "not JSON ("),
    "html": (b"<html><body>404</body></html>", "not JSON ("),
    "a merge conflict": (b"<<<<<<< HEAD", "not JSON ("),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1", "not JSON ("),
    "a wrong escape": (b'{"prompt": "\\x41", "completion": "b"}', "not JSON (Invalid \\escape"),
    "a raw tab in a text": (b'{"prompt": "a\tb", "completion": "b"}', "not JSON (Invalid control character"),
    "a raw form feed in a text": (b'{"prompt": "a\x0cb", "completion": "b"}', "not JSON (Invalid control character"),
    "a carriage return in a text": (b'{"prompt": "a\rb", "completion": "b"}', "not JSON (Invalid control character"),
    "a raw NUL in a text": (b'{"prompt": "a\0b", "completion": "b"}', "not JSON (Invalid control character"),
    "a raw NUL before it": (b"\0" + GOOD[0], "not JSON ("),
    "NULs where a disk was full": (b"\0" * 512, "not JSON ("),
    "an escaped NUL in a text": (b'{"prompt": "a\\u0000b", "completion": "b"}', "holds a NUL"),
    "an escaped NUL in a key": (b'{"prompt": "a", "completion": "b", "\\u0000": 1}', "holds a NUL"),
    "an escaped NUL in the id": (b'{"prompt": "a", "completion": "b", "id": "\\u0000"}', "holds a NUL"),
    "an escaped NUL deep in meta": (
        b'{"prompt": "a", "completion": "b", "m": [{"n": ["\\u0000"]}]}',
        "holds a NUL",
    ),
    "a byte order mark in the middle of the file": (b"\xef\xbb\xbf" + GOOD[0], "not JSON (Unexpected UTF-8 BOM"),
    "half a byte order mark": (b"\xef\xbb" + GOOD[0], "not UTF-8 (byte 0)"),
    "UTF-16": ('{"prompt": "a"}'.encode("utf-16-le"), "not JSON ("),
    "UTF-16 with a mark": ('{"prompt": "a"}'.encode("utf-16"), "not UTF-8 (byte 0)"),
    "Latin-1 in the prompt": ('{"prompt": "ä", "completion": "b"}'.encode("latin-1"), "not UTF-8 (byte 12)"),
    "Latin-1 in the completion": ('{"prompt": "a", "completion": "ä"}'.encode("latin-1"), "not UTF-8 (byte 31)"),
    "Latin-1 in a key": ('{"ä": "a", "completion": "b"}'.encode("latin-1"), "not UTF-8 (byte 2)"),
    "Latin-1 in meta": ('{"prompt": "a", "completion": "b", "c": "ß"}'.encode("latin-1"), "not UTF-8 (byte 41)"),
    "a bad byte first": (b"\xff" + GOOD[0], "not UTF-8 (byte 0)"),
    "a bad byte last": (GOOD[0] + b"\xff", "not UTF-8 (byte 36)"),
    "a bad byte alone": (b"\x80", "not UTF-8 (byte 0)"),
    "an overlong slash": (b'{"prompt": "\xc0\xaf", "completion": "b"}', "not UTF-8 (byte 12)"),
    "a surrogate in UTF-8": (b'{"prompt": "\xed\xa0\x80", "completion": "b"}', "not UTF-8 (byte 12)"),
    "beyond Unicode": (b'{"prompt": "\xf5\x80\x80\x80", "completion": "b"}', "not UTF-8 (byte 12)"),
    "half a pair, the first": (b'{"prompt": "\\ud83d", "completion": "b"}', "holds half a surrogate pair"),
    "half a pair, the second": (b'{"prompt": "a", "completion": "\\ude00"}', "holds half a surrogate pair"),
    "half a pair in a key": (b'{"prompt": "a", "completion": "b", "\\ud83d": 1}', "holds half a surrogate pair"),
    "a pair the wrong way round": (b'{"prompt": "\\ude00\\ud83d", "completion": "b"}', "holds half a surrogate pair"),
    "a key twice": (b'{"prompt": "a", "prompt": "b", "completion": "c"}', "key 'prompt' stands twice"),
    "a key twice, once escaped": (b'{"prompt": "a", "\\u0070rompt": "b", "completion": "c"}', "key 'prompt' stands"),
    "a key twice deep in meta": (b'{"prompt": "a", "completion": "b", "m": [{"k": 1, "k": 1}]}', "key 'k' stands"),
    "NaN": (b'{"prompt": "a", "completion": "b", "score": NaN}', "NaN is not JSON"),
    "Infinity": (b'{"prompt": "a", "completion": "b", "score": Infinity}', "Infinity is not JSON"),
    "-Infinity": (b'{"prompt": "a", "completion": "b", "score": -Infinity}', "-Infinity is not JSON"),
    "a number beyond all": (b'{"prompt": "a", "completion": "b", "score": 1e999}', "the number 1e999 is too large"),
    "a negative number beyond all": (
        b'{"prompt": "a", "completion": "b", "score": -1e999}',
        "the number -1e999",
    ),
    "5000 digits": (b'{"prompt": "a", "completion": "b", "n": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
    "5000 digits as id": (
        b'{"prompt": "a", "completion": "b", "id": ' + b"9" * 5000 + b"}",
        "a number of 5000 digits",
    ),
    "hexadecimal": (b'{"prompt": "a", "completion": "b", "n": 0x10}', "not JSON ("),
    "a leading zero": (b'{"prompt": "a", "completion": "b", "n": 01}', "not JSON ("),
    "a leading plus": (b'{"prompt": "a", "completion": "b", "n": +1}', "not JSON ("),
    "a list": (b'["a", "b"]', "must be an object, not a list"),
    "a list of rows": (b"[" + GOOD[0] + b"]", "must be an object, not a list"),
    "an empty list": (b"[]", "must be an object, not a list"),
    "a text": (b'"a"', "must be an object, not text"),
    "a number": (b"3", "must be an object, not a number"),
    "a fraction": (b"-3.5e-1", "must be an object, not a number"),
    "true": (b"true", "must be an object, not a boolean"),
    "null": (b"null", "must be an object, not null"),
    "an empty object": (b"{}", "no known form has the keys none"),
    "a wrong key": (line({"prompt": "a", "complation": "b"}), "no known form has the keys complation, prompt"),
    "keys in capitals": (line({"Prompt": "a", "Completion": "b"}), "no known form has the keys Completion, Prompt"),
    "a space in a key": (line({"prompt ": "a", "completion": "b"}), "no known form has the keys completion, prompt"),
    "a line end in a key": (line({"pro\nmpt": "a"}), "no known form has the keys pro mpt"),
    "no completion": (line({"prompt": "a"}), "no known form has the keys prompt"),
    "one level too many": (line({"data": pair("a", "b")}), "no known form has the keys data"),
    "a preference": (line({"prompt": "a", "chosen": "b", "rejected": "c"}), "is preference; the file began with"),
    "two forms": (line(pair("a", "b") | {"conversations": []}), "fits prompt_completion and sharegpt"),
    "alpaca among pairs": (line({"instruction": "a", "output": "b"}), "is alpaca; the file began with"),
    "messages among pairs": (GOOD_TALK[0], "is messages; the file began with prompt_completion"),
    "our own row among pairs": (
        line({"id": "a", "group": "b", "messages": [user()], "completion": assistant()}),
        "is rows; the file began with prompt_completion",
    ),
    "a number for a prompt": (line(pair(3, "b")), "messages.0: content: input should be a valid string"),
    "a number for a completion": (line(pair("a", 3)), "messages.1: content: input should be a valid string"),
    "a boolean for a completion": (line(pair("a", True)), "messages.1: content: input should be a valid string"),
    "an object for a completion": (line(pair("a", {"b": 1})), "messages.1: content: input should be a valid string"),
    "a list of text for a completion": (line(pair("a", ["b"])), "completion.0: must be an object, not text"),
    "a null prompt": (line(pair(None, "b")), "message 0: the user's content is empty"),
    "a null completion": (line(pair("a", None)), "message 1: the assistant says nothing"),
    "an empty prompt": (line(pair("", "b")), "message 0: the user's content is empty"),
    "an empty completion": (line(pair("a", "")), "message 1: the assistant says nothing"),
    "a blank completion": (line(pair("a", " \n\u00a0")), "message 1: the assistant says nothing"),
    "an empty list for a prompt": (line(pair([], "b")), "begins with the assistant"),
    "an empty list for a completion": (line(pair("a", [])), "ends with the user"),
    "a completion of the user": (line(pair("a", [user()])), "message 1: the user speaks twice"),
    "a fraction as id": (line(pair("a", "b", id=1.5)), "id: must be text or a whole number, not a number"),
    "a boolean as group": (line(pair("a", "b", group=True)), "group: must be text or a whole number, not a boolean"),
    "a list as group": (line(pair("a", "b", group=["g"])), "group: must be text or a whole number, not a list"),
    "tools that are no list": (line(pair("a", "b", tools={"name": "f"})), "tools: must be a list of objects"),
    "tools as text that is cut off": (line(pair("a", "b", tools='[{"name": "f"')), "tools: not JSON ("),
    "tools as text with NaN": (line(pair("a", "b", tools='[{"n": NaN}]')), "tools: NaN is not JSON"),
    "101 levels": (deep(101), "nested too deeply"),
    "300 levels": (deep(300), "nested too deeply"),
    "900 levels": (deep(900), "nested too deeply"),
    "900 levels of objects": (deep(900, '{"a":', "}"), "nested too deeply"),
    "10,000 levels": (deep(10_000), "nested too deeply"),
    "10,000 levels of objects": (deep(10_000, '{"a":', "}"), "nested too deeply"),
    "10,000 levels that stay open": (b"[" * 10_000, "nested too deeply"),
    "10,000 levels in tools as text": (
        line(pair("a", "b", tools="[" * 10_000 + "]" * 10_000)),
        "tools: nested too deeply",
    ),
    "300 levels in tools as text": (line(pair("a", "b", tools="[" * 300 + "]" * 300)), "nested too deeply"),
    "10 MB that stay open": (b'{"prompt": "' + b"a" * 10_000_000, "not JSON ("),
    "10 MB in a key": (line({"k" * 10_000_000: 1}), "no known form has the keys kkkkkkkk"),
}

BAD_TALKS = {
    "messages as text": (line({"messages": "hello"}), "messages: must be a list of messages, not text"),
    "messages as an object": (line({"messages": user()}), "messages: must be a list of messages, not an object"),
    "messages null": (line({"messages": None}), "messages: must be a list of messages, not null"),
    "no messages": (talk(), "holds no messages"),
    "a message as text": (talk("hello", assistant()), "messages.0: must be an object, not text"),
    "a message null": (talk(None, assistant()), "messages.0: must be an object, not null"),
    "a message as a list": (talk(["user", "a"], assistant()), "messages.0: must be an object, not a list"),
    "an empty message": (talk({}, assistant()), "messages.0: role: field required"),
    "no role": (talk({"content": "a"}, assistant()), "messages.0: role: field required"),
    "an unknown role": (talk({"role": "human", "content": "a"}, assistant()), "messages.0: role: input should be"),
    "a role in capitals": (talk({"role": "User", "content": "a"}, assistant()), "messages.0: role: input should be"),
    "a role null": (talk({"role": None, "content": "a"}, assistant()), "messages.0: role: input should be"),
    "a role of a list": (talk({"role": ["user"], "content": "a"}, assistant()), "messages.0: role: input should be"),
    "the role function": (talk(user(), {"role": "function", "content": "a"}), "messages.1: functions of the old"),
    "an unknown key": (talk(user() | {"mood": "glad"}, assistant()), "messages.0: mood: extra inputs"),
    "a number for content": (talk(user(3), assistant()), "messages.0: content: input should be a valid string"),
    "an object for content": (talk(user({"text": "a"}), assistant()), "messages.0: content: input should be"),
    "an image": (talk(user([{"type": "image_url"}]), assistant()), "messages.0.content: holds parts"),
    "a part of text without text": (talk(user([{"type": "text"}]), assistant()), "messages.0.content: holds parts"),
    "parts of text": (talk(user(["a"]), assistant()), "messages.0.content: holds parts"),
    "no parts": (talk(user([]), assistant()), "message 0: the user's content is empty"),
    "no content": (talk({"role": "user"}, assistant()), "message 0: the user's content is empty"),
    "the assistant first": (talk(assistant(), user(), assistant()), "begins with the assistant"),
    "the assistant alone": (talk(assistant()), "begins with the assistant"),
    "the user alone": (talk(user()), "ends with the user"),
    "the system alone": (talk({"role": "system", "content": "s"}), "ends with the system"),
    "a tool first": (talk(result(), assistant()), "begins with the tool"),
    "the user last": (talk(user(), assistant(), user()), "ends with the user"),
    "two users in a row": (talk(user(), user(), assistant()), "message 1: the user speaks twice"),
    "two assistants in a row": (talk(user(), assistant(), assistant()), "message 2: the assistant speaks twice"),
    "two systems": (
        talk({"role": "system", "content": "s"}, {"role": "system", "content": "t"}, user(), assistant()),
        "a system message stands after the first message",
    ),
    "an empty system": (talk({"role": "system", "content": ""}, user(), assistant()), "message 0: the system's"),
    "an empty answer": (talk(user(), assistant("")), "message 1: the assistant says nothing"),
    "a null answer": (talk(user(), assistant(None)), "message 1: the assistant says nothing"),
    "no calls and no content": (talk(user(), calling()), "message 1: the assistant says nothing"),
    "a refusal": (talk(user(), assistant(None, refusal="no")), "messages.1: refusal: extra inputs"),
    "an old function call": (talk(user(), assistant(None, function_call={})), "messages.1: functions of the old"),
    "a result without a call": (talk(user(), result(), assistant()), "message 1: a tool's result without a call"),
    "two results for a call": (
        talk(user(), calling(call()), result(), result(), assistant()),
        "message 3: a tool's result without a call",
    ),
    "a result of another call": (
        talk(user(), calling(call(0)), result(1), assistant()),
        "message 2: tool_call_id 'c1' answers no call",
    ),
    "a call that is not answered": (
        talk(user(), calling(call()), user(), assistant()),
        "message 2: comes before 1 tool calls are answered",
    ),
    "one of two calls not answered": (
        talk(user(), calling(call(0), call(1)), result(1), assistant()),
        "message 3: comes before 1 tool calls are answered",
    ),
    "a result last": (talk(user(), calling(call()), result()), "ends with the tool"),
    "a number as tool_call_id": (
        talk(user(), calling(call()), result() | {"tool_call_id": 3}, assistant()),
        "messages.2: tool_call_id: input should be a valid string",
    ),
    "calls as text": (talk(user(), assistant(None, tool_calls="[]")), "messages.1: tool_calls: input should be"),
    "a call as text": (talk(user(), calling("f")), "messages.1: tool_calls.0: input should be"),
    "a call of nothing": (talk(user(), calling({})), "message 1: tool call 0 names no function"),
    "a call with no name": (talk(user(), calling(call(name=""))), "message 1: tool call 0 names no function"),
    "a call with a number for a name": (talk(user(), calling(call(name=3))), "message 1: tool call 0 names no"),
    "arguments cut off": (talk(user(), calling(call(arguments='{"a'))), "message 1: tool call 0: arguments are not"),
    "arguments empty": (talk(user(), calling(call(arguments=""))), "message 1: tool call 0: arguments are not JSON"),
    "arguments of a list": (talk(user(), calling(call(arguments=[]))), "message 1: tool call 0: arguments must be"),
    "arguments of a number": (talk(user(), calling(call(arguments="3"))), "message 1: tool call 0: arguments must be"),
    "arguments with a key twice": (
        talk(user(), calling(call(arguments='{"a":1,"a":2}'))),
        "message 1: tool call 0: arguments are key 'a' stands twice",
    ),
    "arguments with NaN": (talk(user(), calling(call(arguments='{"a":NaN}'))), "message 1: tool call 0: arguments"),
    "arguments of 10,000 levels": (
        talk(user(), calling(call(arguments="[" * 10_000))),
        "message 1: tool call 0: arguments are nested too deeply",
    ),
    "a call of the user": (talk(user() | {"tool_calls": [call()]}, assistant()), "message 0: only the assistant"),
    "a weight of a half": (talk(user(), assistant(weight=0.5)), "messages.1.weight: must be 0 or 1, not 0.5"),
    "a weight of 10,000 letters": (talk(user(), assistant(weight="w" * 10_000)), "messages.1.weight: must be 0 or 1"),
    "nothing but weight 0": (talk(user(), assistant(weight=0)), "every turn of the assistant has weight 0"),
    "tools of text": (talk(user(), assistant(), tools=["f"]), "tools: must be a list of objects"),
    "pairs among messages": (GOOD[0], "is prompt_completion; the file began with messages"),
}

OWN = {"id": "a", "group": "g", "messages": [user("three")], "completion": assistant("3")}
GOOD_OWN = [
    line({"id": str(n), "group": str(n), "messages": [user(str(n))], "completion": assistant()}) for n in (1, 2)
]
BAD_OWN = {
    "an own row without id": (line({k: v for k, v in OWN.items() if k != "id"}), "id: field required"),
    "an own row with an empty id": (line(OWN | {"id": ""}), "id: string should have at least 1 character"),
    "an own row with a number as id": (line(OWN | {"id": 3}), "id: input should be a valid string"),
    "an own row without group": (line({k: v for k, v in OWN.items() if k != "group"}), "group: field required"),
    "an own row with no messages": (line(OWN | {"messages": []}), "messages: list should have at least 1"),
    "an own row with text for messages": (line(OWN | {"messages": "a"}), "messages: input should be a valid list"),
    "an own row with text for its completion": (line(OWN | {"completion": "a"}), "completion: input should be"),
    "an own row completed by the user": (line(OWN | {"completion": user()}), "completion: role is 'user'"),
    "an own row with an empty completion": (line(OWN | {"completion": assistant("")}), "message 1: the assistant"),
    "an own row with another key": (line(OWN | {"label": 1}), "label: extra inputs are not permitted"),
    "an own row with text for meta": (line(OWN | {"meta": "a"}), "meta: input should be a valid dictionary"),
    "an own row with text for tools": (line(OWN | {"tools": "[]"}), "tools: input should be a valid list"),
    "an own row that trains the user": (line(OWN | {"trained": [0]}), "trained: message 0 is no earlier turn"),
    "an own row that trains what is not there": (line(OWN | {"trained": [9]}), "trained: message 9 is no earlier"),
    "an own row that trains a boolean": (line(OWN | {"trained": [True]}), "trained.0: input should be a valid int"),
    "an own row with deep meta": (
        line(OWN | {"meta": {"m": json.loads("[" * 300 + "]" * 300)}}),
        "nested too deeply",
    ),
}


def turns(*said, **more):
    return line({"conversations": [dict(zip(("from", "value"), one, strict=False)) for one in said], **more})


GOOD_TURNS = [turns(("human", "one"), ("gpt", "1")), turns(("human", "two"), ("gpt", "2"))]
BAD_TURNS = {
    "conversations as text": (line({"conversations": "a"}), "conversations: must be a list, not text"),
    "no turns": (turns(), "holds no messages"),
    "a turn as text": (line({"conversations": ["a", "b"]}), "conversations.0: must hold `from` and `value`"),
    "a turn without value": (turns(("human",), ("gpt", "b")), "conversations.0: must hold `from` and `value`"),
    "an unknown speaker": (turns(("bard", "a"), ("gpt", "b")), "conversations.0.from: 'bard' is none of"),
    "a speaker of 1 MB": (turns(("b" * 1_000_000, "a"), ("gpt", "b")), "conversations.0.from: 'bbbb"),
    "a speaker with a line end": (turns(("hu\n\rman", "a"), ("gpt", "b")), "conversations.0.from: 'hu"),
    "gpt first": (turns(("gpt", "a"), ("human", "b")), "begins with the assistant"),
    "a number for a value": (turns(("human", 3), ("gpt", "b")), "messages.0: content: input should be"),
    "an observation without a call": (
        turns(("human", "a"), ("observation", "1"), ("gpt", "b")),
        "message 1: a tool's result without a call",
    ),
    "a function call that is no JSON": (turns(("human", "a"), ("function_call", "f()")), "conversations.1.value: not"),
    "a function call of no name": (turns(("human", "a"), ("function_call", "{}")), "message 1: tool call 0 names no"),
    "a function call of a number": (turns(("human", "a"), ("function_call", "3")), "message 1: tool call 0 names no"),
    "sharegpt tools cut off": (turns(("human", "a"), ("gpt", "b"), tools='[{"'), "tools: not JSON ("),
    "a number for the system": (turns(("human", "a"), ("gpt", "b"), system=0), "messages.0: content: input should"),
}

BAD_LINES = {
    **{name: (GOOD, *bad) for name, bad in BAD_PAIRS.items()},
    **{name: (GOOD_TALK, *bad) for name, bad in BAD_TALKS.items()},
    **{name: (GOOD_OWN, *bad) for name, bad in BAD_OWN.items()},
    **{name: (GOOD_TURNS, *bad) for name, bad in BAD_TURNS.items()},
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_refused_with_its_place(curator, name):
    (first, last), bad, problem = BAD_LINES[name]
    told = curator.judge("pile.jsonl", b"\n".join([first, bad, last, b""])).problems
    assert told[0].startswith(f"pile.jsonl:2: {problem}")
    assert all(line.startswith("pile.jsonl:2: ") for line in told)


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_counted_and_the_others_are_kept_where_the_recipe_says_so(curator, name):
    (first, last), bad, _ = BAD_LINES[name]
    outcome = curator.judge("pile.jsonl", b"\n".join([first, bad, last, b""]), malformed="drop")
    assert outcome.dropped == {"read": {"not a row": 1}}
    assert len(outcome.rows) == 2


# ---------------------------------------------------------------------- lines that are odd and good


ODD_LINES = {
    "10 MB": line(pair("three", "a " * 5_000_000 + "b")),
    "100 levels": deep(99),
    "an escaped pair": b'{"prompt": "\\ud83d\\ude00 three", "completion": "3"}',
    "a line end of Windows": line(pair("three", "3")) + b"\r",
    "spaces around": b"  \t" + line(pair("three", "3")) + b"  ",
    "a huge whole number": line(pair("three", "3", n=10**4000)),
    "a huge whole number as id": line(pair("three", "3", id=10**400)),
    "a tiny number": b'{"prompt": "three", "completion": "3", "n": 1e-999}',
    "separators of lines in Unicode": line(pair("three\u2028\u2029\x85 four", "3")),
    "a byte order mark in a text": line(pair("\ufeffthree", "3")),
    "letters that no font has": line(pair("three \U0010ffff \ue000", "3")),
    "an answer that looks like JSON": line(pair("three", '{"a": NaN}')),
    "a key that is empty": line(pair("three", "3") | {"": 1}),
    "a key of ours in meta": line(pair("three", "3", meta={"id": 1}, completion_id=2)),
    "a proto": line(pair("three", "3", __proto__={"a": 1}, constructor=None)),
}


@pytest.mark.parametrize("name", ODD_LINES)
def test_an_odd_line_is_taken(curator, name):
    outcome = curator.judge("pile.jsonl", b"\n".join([GOOD[0], ODD_LINES[name], GOOD[1]]))
    assert len(outcome.rows) == 3


# ---------------------------------------------------------------------- files, by hand


def columnar(values):
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(values), sink)
    return sink.getvalue()


PAIRS = [pair(f"what is {i}", f"it is {i}", id=f"r{i}", colour="réd") for i in range(6)]
JSONL = b"".join(line(value) + b"\n" for value in PAIRS)
JSON = json.dumps(PAIRS, ensure_ascii=False, indent=1).encode()
CSV = b"prompt,completion,id\n" + b"".join(f'what is {i},"it is, {i}",r{i}\n'.encode() for i in range(6))
PARQUET = columnar(PAIRS)
GZ = gzip.compress(JSONL, mtime=0)

# A file's name, its bytes, and how its first problem begins.
BAD_FILES = {
    "an empty file": ("pile.jsonl", b"", "no rows are left"),
    "nothing but line ends": ("pile.jsonl", b"\n\r\n\n", "no rows are left"),
    "nothing but a byte order mark": ("pile.jsonl", b"\xef\xbb\xbf", "no rows are left"),
    "two byte order marks": ("pile.jsonl", b"\xef\xbb\xbf" * 2 + JSONL, "pile.jsonl:1: not JSON ("),
    "UTF-16 as a whole": ("pile.jsonl", JSONL.decode().encode("utf-16"), "pile.jsonl:1: not UTF-8 (byte 0)"),
    "a picture": ("pile.jsonl", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "pile.jsonl:1: not UTF-8 (byte 0)"),
    "a gzip without its suffix": ("pile.jsonl", GZ, "pile.jsonl:1: not UTF-8 (byte 1)"),
    "a Parquet under another suffix": ("pile.jsonl", PARQUET, "pile.jsonl:1: not"),
    "a JSON list under another suffix": ("pile.jsonl", JSON, "pile.jsonl:1: not JSON ("),
    "line ends of old": ("pile.jsonl", JSONL.replace(b"\n", b"\r"), "pile.jsonl:1: not JSON (Extra data"),
    "cut off in the last line": ("pile.jsonl", JSONL[:-9], "pile.jsonl:6: not JSON ("),
    "ids that stand twice": (
        "pile.jsonl",
        line(pair("a", "b", id="x")) + b"\n" + line(pair("c", "d", id="x")),
        "pile.jsonl:",
    ),
    "a JSON file that is empty": ("pile.json", b"", "pile.json:1: must be a list of objects"),
    "a JSON file of JSON lines": ("pile.json", JSONL, "pile.json:1: must be a list of objects"),
    "a JSON file of one object": ("pile.json", line({"rows": PAIRS}), "pile.json:1: must be a list of objects"),
    "a JSON list without rows": ("pile.json", b"[]", "no rows are left"),
    "a JSON list that stays open": ("pile.json", b"[", "pile.json:1: not JSON ("),
    "a JSON list cut off in a row": ("pile.json", JSON[:-20], "pile.json:32: not JSON ("),
    "a JSON list cut off between rows": ("pile.json", JSON[: JSON.index(b"},") + 2], "pile.json:7: not JSON ("),
    "a JSON list without its bracket": ("pile.json", JSON.rstrip()[:-1], "pile.json:32: not JSON ("),
    "a JSON list without a comma": ("pile.json", JSON.replace(b"},", b"}", 1), "pile.json:2: not JSON ("),
    "a JSON list with two commas": ("pile.json", JSON.replace(b"},", b"},,", 1), "pile.json:"),
    "a JSON list with a comma last": ("pile.json", JSON.rstrip()[:-1] + b",]", "pile.json:32: not JSON ("),
    "two JSON lists": ("pile.json", JSON + JSON, "pile.json:"),
    "a JSON list of lists": ("pile.json", b'[["a", "b"]]', "pile.json:1: must be an object, not a list"),
    "a JSON list with null": ("pile.json", b'[\n{"prompt": "a", "completion": "b"},\nnull]', "pile.json:3: must be"),
    "a JSON list with NaN": ("pile.json", b'[{"a": NaN}]', "pile.json:1: not JSON (NaN is not JSON"),
    "a JSON list with 1e999": ("pile.json", b'[{"a": 1e999}]', "pile.json:1: not JSON (the number 1e999 is"),
    "a JSON list with half a pair": ("pile.json", b'[{"a": "\\ud800"}]', "pile.json:1: holds half a surrogate pair"),
    "a JSON list with a key twice": ("pile.json", b'[{"a": 1, "a": 2}]', "pile.json:1: not JSON (key 'a' stands"),
    "a JSON list with a NUL": ("pile.json", b'[{"prompt": "\\u0000"}]', "pile.json:1: no known form"),
    "a JSON list of 10,000 levels": ("pile.json", b"[" * 10_000, "pile.json:1: not JSON (nested too deeply"),
    "a JSON list with 300 levels": (
        "pile.json",
        b"[" + deep(300) + b"]",
        "pile.json:1: nested too deeply",
    ),
    "a JSON list with 900 levels": ("pile.json", b"[" + deep(900) + b"]", "pile.json:1: "),
    "a JSON list with 5000 digits": ("pile.json", b'[{"a": ' + b"9" * 5000 + b"}]", "pile.json:1: not JSON ("),
    "a JSON list in Latin-1": ("pile.json", JSON.decode().encode("latin-1"), "pile.json:1: not UTF-8 (byte "),
    "a table that is empty": ("pile.csv", b"", "no rows are left"),
    "a table with a header alone": ("pile.csv", b"prompt,completion\n", "no rows are left"),
    "a table without a header": ("pile.csv", CSV.split(b"\n", 1)[1], "pile.csv:2: no known form has the keys"),
    "a table with a column twice": ("pile.csv", b"prompt,prompt\na,b\n", "pile.csv:1: column names must be there"),
    "a table with a column of no name": ("pile.csv", b"prompt,,\na,b,c\n", "pile.csv:1: column names must be there"),
    "a table with a blank line first": ("pile.csv", b"\n" + CSV, "pile.csv:2: has 3 cells, the header has 0"),
    "a table with a cell too few": ("pile.csv", CSV + b"a,b\n", "pile.csv:8: has 2 cells, the header has 3"),
    "a table with a cell too many": ("pile.csv", CSV + b"a,b,c,d\n", "pile.csv:8: has 4 cells, the header has 3"),
    "a table with a cell of spaces": ("pile.csv", CSV + b"   \n", "pile.csv:8: has 1 cells, the header has 3"),
    "a table with an open quote": ("pile.csv", CSV + b'a,"b,c\nd,e,f\n', "pile.csv:8: not CSV (unexpected end"),
    "a table with an open quote early": ("pile.csv", CSV.replace(b', 1"', b", 1"), "pile.csv:3: not CSV ("),
    "a table with an open quote in its header": ("pile.csv", b'prompt,"completion\na,b\n', "pile.csv:1: not CSV ("),
    "a table with a letter after a quote": ("pile.csv", CSV + b'a,"b"c,d\n', "pile.csv:8: not CSV ("),
    "a table with semicolons": ("pile.csv", CSV.replace(b",", b";"), "pile.csv:2: "),
    "a table with tabs": ("pile.csv", b"prompt\tcompletion\na\tb\n", "pile.csv:2: no known form"),
    "a table with line ends of old": ("pile.csv", CSV.replace(b"\n", b"\r"), "pile.csv:1: not CSV (new-line"),
    "a table in UTF-16": ("pile.csv", CSV.decode().encode("utf-16"), "pile.csv:1: not UTF-8 (byte 0)"),
    "a table in Latin-1": ("pile.csv", CSV + b"caf\xe9,b,c\n", "pile.csv:8: not UTF-8 (byte 3)"),
    "a table with a header in Latin-1": ("pile.csv", b"caf\xe9,b\na,b\n", "pile.csv:1: not UTF-8 (byte 3)"),
    "a table with a NUL": ("pile.csv", CSV + b"a\0,b,c\n", "pile.csv:8: "),
    "a table with an empty completion": ("pile.csv", CSV + b"a,,c\n", "pile.csv:8: message 1: the assistant says"),
    "a table with a mark in the middle": ("pile.csv", CSV + b"\n\xef\xbb\xbf,,\n", "pile.csv:9: message 1: the"),
    "a table of tabs with a cell too few": ("pile.tsv", b"prompt\tcompletion\na\n", "pile.tsv:2: has 1 cells"),
    "a table of tabs with an open quote": ("pile.tsv", b'prompt\tcompletion\n"a\tb\n', "pile.tsv:2: not CSV ("),
    "a Parquet that is empty": ("pile.parquet", b"", "pile.parquet:1: not Parquet ("),
    "a Parquet that is text": ("pile.parquet", JSONL, "pile.parquet:1: not Parquet ("),
    "a Parquet of its mark alone": ("pile.parquet", b"PAR1", "pile.parquet:1: not Parquet ("),
    "a Parquet of its mark twice": ("pile.parquet", b"PAR1PAR1", "pile.parquet:1: not Parquet ("),
    "a Parquet cut off": ("pile.parquet", PARQUET[:-50], "pile.parquet:1: not Parquet ("),
    "a Parquet cut in half": ("pile.parquet", PARQUET[: len(PARQUET) // 2], "pile.parquet:1: not Parquet ("),
    "a Parquet without its beginning": ("pile.parquet", PARQUET[100:], "pile.parquet:1: "),
    "a Parquet with a footer of any length": (
        "pile.parquet",
        PARQUET[:-8] + b"\xff\xff\xff\x7fPAR1",
        "pile.parquet:1: not Parquet (",
    ),
    "a Parquet with pages of zeros": (
        "pile.parquet",
        PARQUET[:4] + bytes(200) + PARQUET[204:],
        "pile.parquet:1: not Parquet (",
    ),
    "a Parquet of bytes": ("pile.parquet", columnar([{"prompt": b"a"}]), "pile.parquet:1: holds what JSON does not"),
    "a Parquet with NaN": ("pile.parquet", columnar([pair("a", "b", n=float("nan"))]), "pile.parquet:1: holds what"),
    "a Parquet without rows": ("pile.parquet", columnar([pair("a", "b")] * 0), "no rows are left"),
    "a Parquet of numbers": ("pile.parquet", columnar([pair(1, 2)]), "pile.parquet:1: messages.0: content:"),
    "a Parquet with a null completion": (
        "pile.parquet",
        columnar([pair("a", "b"), pair("c", None)]),
        "pile.parquet:2: no known form has the keys prompt",
    ),
    "a gzip cut off": ("pile.jsonl.gz", GZ[:-20], "pile.jsonl.gz:1: not gzip, or cut off ("),
    "a gzip without its last 8 bytes": ("pile.jsonl.gz", GZ[:-8], "pile.jsonl.gz:1: not gzip, or cut off ("),
    "a gzip of its head alone": ("pile.jsonl.gz", GZ[:10], "pile.jsonl.gz:1: not gzip, or cut off ("),
    "a gzip with a wrong checksum": ("pile.jsonl.gz", GZ[:-8] + b"\0" * 8, "pile.jsonl.gz:1: not gzip, or"),
    "a gzip with a wrong stream": ("pile.jsonl.gz", GZ[:10] + b"\xff" * 20 + GZ[30:], "pile.jsonl.gz:1: not gzip"),
    "a gzip with something after it": ("pile.jsonl.gz", GZ + b"more", "pile.jsonl.gz:1: not gzip, or cut off ("),
    "a gzip that is none": ("pile.jsonl.gz", JSONL, "pile.jsonl.gz:1: not gzip, or cut off ("),
    "a gzip that is empty": ("pile.jsonl.gz", b"", "no rows are left"),
    "a gzip twice": ("pile.jsonl.gz", gzip.compress(GZ), "pile.jsonl.gz:1: not UTF-8"),
    "a gzip of a bad line": ("pile.jsonl.gz", gzip.compress(JSONL + b"{"), "pile.jsonl.gz:7: not JSON ("),
    "a gzip of a cut table": ("pile.csv.gz", gzip.compress(CSV)[:-20], "pile.csv.gz:1: not gzip, or cut off ("),
    "a gzip of a cut list": ("pile.json.gz", gzip.compress(JSON)[:-20], "pile.json.gz:1: not gzip, or cut off ("),
    "a gzip of a cut Parquet": ("pile.parquet.gz", gzip.compress(PARQUET)[:-9], "pile.parquet.gz:1: not gzip"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_with_its_place(curator, name):
    file, content, problem = BAD_FILES[name]
    assert curator.judge(file, content).problems[0].startswith(problem)


@pytest.mark.parametrize(
    "files",
    [
        {"a.txt": b"dear sir"},
        {"a.json": b"{}"},
        {"a.txt": b"dear sir", "a.json": b"{}", "a.completion.txt": b"x"},
        {"a.txt": b"\xff", "a.json": b"{}"},
        {"a.txt": b"dear sir", "a.json": b"\xff"},
        {"a.txt": b"", "a.json": b"{}"},
        {"a.txt": b"dear sir", "a.json": b" \n"},
        {"a.txt": b"dear \0 sir", "a.json": b"{}"},
        {},
    ],
    ids=str,
)
def test_bad_documents_are_refused_with_their_directory(curator, files):
    place = curator.project.root / "letters"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, content in files.items():
        (place / name).write_bytes(content)
    said, recipe = io.StringIO(), curator.recipe("letters", {})
    shutil.rmtree(curator.project.data, ignore_errors=True)
    with redirect_stderr(said):
        assert guarded(lambda: curate(recipe, None, Options(workers=1))) == ExitCode.USER
    problems = [text for text in said.getvalue().splitlines() if not text.startswith(("hint: ", "  letters is read"))]
    assert problems
    assert all(problem.startswith("letters:1: ") for problem in problems)
    assert list(curator.project.data.iterdir()) == []


# ---------------------------------------------------------------------- several at once


def test_all_faults_of_a_file_are_told_at_once(curator):
    content = b"\n".join([GOOD[0], b"{", b"3", b"\xff", GOOD[1], b"null", line(pair("", ""))])
    told = curator.judge("pile.jsonl", content).problems
    assert [problem.split(":")[1] for problem in told] == ["2", "3", "4", "6", "7", "7"]


@pytest.mark.parametrize("name", ["pile.jsonl", "pile.csv"])
def test_of_many_faults_20_are_shown_and_the_rest_counted(curator, name):
    good, bad = {"pile.jsonl": (GOOD[0], b"{"), "pile.csv": (b"prompt,completion", b"a")}[name]
    told = curator.judge(name, b"\n".join([good, *[bad] * 30])).problems
    assert [problem.split(":")[:2] for problem in told[:20]] == [[name, str(number)] for number in range(2, 22)]
    assert told[20:] == ["and 10 more"]


@pytest.mark.parametrize("name", ["pile.jsonl", "pile.json", "pile.csv"])
def test_dropped_lines_are_counted_and_written_with_their_place_and_reason(curator, name):
    content = {
        "pile.jsonl": b"\n".join([GOOD[0], b"{", b"3", GOOD[1]]),
        "pile.json": b"[" + b",\n".join([GOOD[0], b"{}", b"3", GOOD[1]]) + b"]",
        "pile.csv": b"prompt,completion\na,b\nc\nd,\ne,f\n",
    }[name]
    outcome = curator.judge(name, content, malformed="drop")
    assert outcome.dropped == {"read": {"not a row": 2}}
    assert outcome.lines == 4
    dropped = [json.loads(text) for text in (curator.project.data / "dropped.jsonl").read_text().splitlines()]
    first = 3 if name == "pile.csv" else 2
    assert [entry["place"] for entry in dropped] == [f"{name}:{first}", f"{name}:{first + 1}"]
    assert all(entry["step"] == "read" and entry["detail"] for entry in dropped)


def test_a_file_of_which_every_line_is_dropped_is_refused(curator):
    assert curator.judge("pile.jsonl", b"{\n3\n", malformed="drop").problems == ["no rows are left"]


def test_a_broken_gzip_is_refused_where_bad_lines_are_dropped_too(curator):
    assert curator.judge("pile.jsonl.gz", GZ[:-20], malformed="drop").code == ExitCode.USER


@pytest.mark.parametrize("bad", [b"{", b"\xff", deep(900), b'{"prompt": "\\ud800"}'])
def test_the_command_itself_exits_2_and_leaves_nothing(curator, monkeypatch, capsys, bad):
    monkeypatch.chdir(curator.project.root)
    shutil.rmtree(curator.project.data, ignore_errors=True)
    curator.project.section["sources"] = [{"name": "pile", "licence": "CC0-1.0", "path": "pile.jsonl"}]
    curator.project.loaded()
    (curator.project.root / "pile.jsonl").write_bytes(GOOD[0] + b"\n" + bad)
    assert guarded(lambda: app(["curate", "task"])) == ExitCode.USER
    said = capsys.readouterr().err
    assert "\npile.jsonl:2: " in said
    assert "Traceback" not in said
    assert list(curator.project.data.iterdir()) == []


def test_a_refused_curation_leaves_the_dataset_that_was_there(curator):
    curator.judge("pile.jsonl", JSONL)
    before = {path.name: path.read_bytes() for path in curator.project.data.iterdir()}
    (curator.project.root / "pile.jsonl").write_bytes(JSONL + b"{")
    with redirect_stderr(io.StringIO()):
        code = guarded(lambda: curate(curator.recipe("pile.jsonl", {}), None, Options(workers=1)))
    assert code == ExitCode.USER
    assert {path.name: path.read_bytes() for path in curator.project.data.iterdir()} == before


# ---------------------------------------------------------------------- valid files, harmed


TALKS = b"".join(
    talk(user(f"how warm {i}"), calling(call(i, arguments='{"a": [1, null]}')), result(i), assistant(f"{i}"), n=i)
    + b"\n"
    for i in range(4)
)
TURNS = b"".join(turns(("human", f"a {i}"), ("gpt", f"b {i}"), tools='[{"name": "f"}]') + b"\n" for i in range(4))
ALPACA = b"".join(line({"instruction": f"a {i}", "input": "b", "output": f"c {i}"}) + b"\n" for i in range(4))
OWN_ROWS = b"".join(line(OWN | {"id": f"r{i}", "messages": [user(f"a {i}")]}) + b"\n" for i in range(4))
VALID = {
    "pairs": ("pile.jsonl", JSONL),
    "messages": ("pile.jsonl", TALKS),
    "sharegpt": ("pile.jsonl", TURNS),
    "alpaca": ("pile.jsonl", ALPACA),
    "rows": ("pile.jsonl", OWN_ROWS),
    "json": ("pile.json", JSON),
    "csv": ("pile.csv", CSV),
    "tsv": ("pile.tsv", CSV.replace(b",", b"\t")),
    "parquet": ("pile.parquet", PARQUET),
    "parquet of messages": ("pile.parquet", columnar([json.loads(text) for text in TALKS.splitlines()])),
    "gzip": ("pile.jsonl.gz", GZ),
}
WORDS = [b"\0", b"\xff", b"\xef\xbb\xbf", b"\n", b"\r\n", b'"', b"\\", b"\\u0000", b"\\ud800", b"NaN", b"1e999"]
WORDS += [b"null", b"[", b"]", b"{", b"}", b",", b":", b"\t", b"[" * 3000, b"9" * 4400, b'"role": "system", ', b"{}"]
HARM = st.tuples(
    st.sampled_from(["flip", "delete", "insert", "cut", "splice", "again"]),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(1, 255),
    st.sampled_from(WORDS) | st.binary(min_size=1, max_size=6),
)


def harmed(content, harm):
    what, here, there, mask, word = harm
    at, size = int(here * len(content)), int(there**4 * len(content))
    if what == "flip" and at < len(content):
        return content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]
    if what == "delete":
        return content[:at] + content[at + 1 + size :]
    if what == "insert":
        return content[:at] + word + content[at:]
    if what == "cut":
        return content[:at]
    lines = content.split(b"\n")
    left, right = int(here * (len(lines) - 1)), int(there * (len(lines) - 1))
    if what == "splice":
        lines[left] = lines[left][: mask % (len(lines[left]) + 1)] + lines[right][mask % (len(lines[right]) + 1) :]
    else:
        lines.insert(left, lines[right])
    return b"\n".join(lines)


@pytest.mark.parametrize("name", VALID)
def test_a_valid_file_is_taken_as_it_is(curator, name):
    assert curator.judge(*VALID[name]).dropped == {}


@pytest.mark.parametrize("name", VALID)
def test_a_harmed_file_becomes_a_whole_dataset_or_is_refused(curator, name):
    file, content = VALID[name]

    @settings(deadline=None, max_examples=40)
    @given(harms=st.lists(HARM, min_size=1, max_size=3), malformed=st.sampled_from(["refuse", "drop"]))
    def judged(harms, malformed):
        changed = content
        for harm in harms:
            changed = harmed(changed, harm)
        curator.judge(file, changed, malformed=malformed)

    judged()
