"""Make the rows of tool-call: functions on offer and a request in, the calls that fulfil it out, as JSON.

Source: the bfcl-eval wheel (data/tool-call/sources.lock), `BFCL_v4_<set>.json`, one question a line, and
`possible_answer/` beside it, which lists the acceptable values of each argument.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tunesmith.curate.sources import Sieve, Source
from tunesmith.packages import read_member
from tunesmith.rows import Message, Row

ABOUT = """# tool-call: a request to function calls, or to none

The functions on offer and a request after them are the user's message; out comes
`{"calls":[{"name":...,"arguments":{...}}]}`, with `{"calls":[]}` where no function fits. The output schema is
[schema.json](schema.json).

Functions and requests are the single-turn sets for Python of the Berkeley Function Calling Leaderboard, version 4, made
by its authors or by users (`live`), and its requests that no function on offer can fulfil. Functions are written as the
compact JSON of what the source holds: nothing is filled in, renamed or put in another order. The source lists
acceptable values for each argument. The reference takes the first; an argument that may be left out is left out, unless
the function requires it. All acceptable values stand in `meta.acceptable`.

A group is all rows that function names connect: rows that offer functions of one name, and rows that share one with
either. So a function of a gate row stands in no training row. Left out: conversations, and requests with a system
message of their own; what does not fit a short prompt (mostly live requests with many functions; with them one group
would swallow a third of all rows); the sets for Java and JavaScript, whose arguments are written in these languages;
the sets without acceptable answers.

An answer is compared with one reference: another acceptable value, or parallel calls in another order, counts as wrong,
so scores are lower than the leaderboard's and not comparable. An argument that may be left out is never written, not
even where the request names its value. Some live requests are no requests at all ("sdfsdf"); a few are not in English.
BFCL is public and much used: a base may have met its functions."""

PYTHON = ("simple_python", "multiple", "parallel", "parallel_multiple")
LIVE = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
SETS = (*PYTHON, *LIVE, "irrelevance", "live_irrelevance")
MOST_CHARACTERS = 1700
MOST_CHARACTERS_OF_CALLS = 500
INSTRUCTION = (
    "Functions are given, then a request. Answer with the calls that fulfil it, as one JSON object "
    '{"calls":[{"name":...,"arguments":{...}}]}, or {"calls":[]} if no function fits. Leave out optional '
    "arguments whose default will do."
)


def rows(sources: Mapping[str, Source], sieve: Sieve) -> Iterator[Row]:
    """Every single-turn request that is short enough, with the calls that answer it."""
    source = sources["bfcl"]
    kept = []
    for name in SETS:
        solved = [] if "irrelevance" in name else lines(source, f"possible_answer/BFCL_v4_{name}.json")
        answers = {line["id"]: line["ground_truth"] for line in solved}
        for question in lines(source, f"BFCL_v4_{name}.json"):
            acceptable = answers.get(question["id"], [])
            if reason := unfit(question, acceptable):
                sieve.drop(reason)
            else:
                kept.append((name, question, acceptable))
    groups = connected([[function["name"] for function in question["function"]] for _, question, _ in kept])
    for (name, question, acceptable), group in zip(kept, groups, strict=True):
        # Beside the request, not in the system message: shots bring their own functions along.
        asked = f"{compact(question['function'])}\n\n{request(question)}"
        calls = [call(answer, question["function"]) for answer in acceptable]
        how_many = ("none", "one", "several")[min(len(calls), 2)]
        yield Row(
            id=question["id"],
            group=f"functions-{group}",
            messages=[Message(role="system", content=INSTRUCTION), Message(role="user", content=asked)],
            completion=Message(role="assistant", content=compact({"calls": calls})),
            meta={"source": "bfcl", "set": name, "calls": how_many, "acceptable": acceptable},
        )


def unfit(question: Mapping[str, Any], acceptable: list[dict[str, Any]]) -> str | None:
    """Why a question is left out, if it is."""
    if [message["role"] for turn in question["question"] for message in turn] != ["user"]:
        return "several turns, or a system message of its own"
    if not question["function"]:
        return "offers no function"
    if len(compact(question["function"]) + request(question)) > MOST_CHARACTERS:
        return f"functions and request take more than {MOST_CHARACTERS} characters"
    takes = {function["name"]: function["parameters"]["properties"].keys() for function in question["function"]}
    if any(arguments.keys() - takes[name] for answer in acceptable for name, arguments in answer.items()):
        return "the acceptable answer names an argument that the function does not have"
    if not all(values for answer in acceptable for arguments in answer.values() for values in arguments.values()):
        return "an argument has no acceptable value"
    if len(compact([call(answer, question["function"]) for answer in acceptable])) > MOST_CHARACTERS_OF_CALLS:
        return f"the calls take more than {MOST_CHARACTERS_OF_CALLS} characters"
    return None


def request(question: Mapping[str, Any]) -> str:
    """What the user asks."""
    return str(question["question"][0][0]["content"])


def call(answer: Mapping[str, Any], functions: list[dict[str, Any]]) -> dict[str, Any]:
    """One call: of each argument that must stand there, the first acceptable value."""
    ((name, arguments),) = answer.items()
    takes = next(function["parameters"] for function in functions if function["name"] == name)
    return {"name": name, "arguments": chosen(arguments, takes.get("required", []))}


def chosen(arguments: Mapping[str, list[Any]], required: list[str]) -> dict[str, Any]:
    """The first acceptable value that is not empty; `""` among several says that an argument may be left out."""
    stated = {key: values for key, values in arguments.items() if "" not in values or key in required}
    return {key: plain(next((value for value in values if value != ""), "")) for key, values in stated.items()}


def plain(value: Any) -> Any:
    """An acceptable value; inside an object each key has a list of acceptable values again."""
    if isinstance(value, dict):
        return chosen(value, [])
    return [plain(part) for part in value] if isinstance(value, list) else value


def connected(offers: list[list[str]]) -> list[str]:
    """For each list of names the smallest name that it is connected with."""
    smallest: dict[str, str] = {}

    def root(name: str) -> str:
        while (above := smallest.setdefault(name, name)) != name:
            name = above
        return name

    for offer in offers:
        first, *others = sorted({root(name) for name in offer})
        smallest.update(dict.fromkeys(others, first))
    return [root(offer[0]) for offer in offers]


def lines(source: Source, member: str) -> list[dict[str, Any]]:
    """The lines of one file beside the source's."""
    raw = read_member(source.path(), f"{source.member}/{member}")
    return [json.loads(line) for line in raw.decode().splitlines() if line.strip()]


def compact(value: Any) -> str:
    """JSON without spaces, with every character as it is."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


if __name__ == "__main__":
    from tunesmith.line import Line

    Line("tool-call").curate()
