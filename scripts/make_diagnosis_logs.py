"""Write logs whose causes are known, to see that `tunesmith diagnose` finds them.

    tunesmith curate bank-answers && tunesmith curate json-extract
    python scripts/make_diagnosis_logs.py --out build/diagnosis

Rows are those of the fictional bank, which no base can know, and of the addresses; answers and their faults are made
here, with a seed. Each log has a ruling cause and some of the others, so that a rule that names whatever is there would
be seen. `<log>.truth.json` lies beside each log and holds what was planted; `tunesmith diagnose` never reads it.

    missing-facts   bank: the passage with the answer was not retrieved; an older value or another passage's is answered
    wrong-shape     addresses: right values, written otherwise than the references are; few that a grammar forbids
    wrong-form      addresses: right values in a fence, in prose or beside keys that the schema does not know
    both            bank: not retrieved, and said in prose, in the same rows
    wrong-labels    addresses: references that hold what the text does not
    closed-book     bank: questions alone, not answered yet; for `tunesmith diagnose <log> --recipe bank-answers`
"""

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.ending import guarded
from tunesmith.files import read_json, write_json, write_jsonl
from tunesmith.rows import Row, read_rows

ROOT = Path(__file__).parent.parent

# Which part of a log's failing rows has which cause; the first rules.
PLANTED: dict[str, dict[str, float]] = {
    "missing-facts": {"retrieval": 0.66, "shape": 0.14, "both": 0.08, "reading": 0.12},
    "wrong-shape": {"shape": 0.78, "reading": 0.12, "label": 0.10},
    "wrong-form": {"form": 0.80, "reading": 0.20},
    "both": {"both": 0.64, "retrieval": 0.14, "shape": 0.12, "reading": 0.10},
    "wrong-labels": {"label": 0.62, "shape": 0.20, "reading": 0.18},
}
BANK = ("missing-facts", "both")
CLOSED_BOOK = 48
FAILING = 0.6
"""Part of a log's rows that fail."""

Line = dict[str, Any]


def main() -> None:
    """Write the logs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="where the curated rows lie")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=400, help="rows of each log")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make(options.data, options.out, rows=options.rows, seed=options.seed)


def make(data: Path, out: Path, *, rows: int, seed: int) -> dict[str, dict[str, float]]:
    """Write every log and its truth; returns the planted shares that were written."""
    facts = {"bank": bank(data / "bank-answers"), "addresses": addresses(data / "json-extract")}
    out.mkdir(parents=True, exist_ok=True)
    planted = {}
    for name, shares in PLANTED.items():
        drawn = random.Random(f"{seed} {name}")
        lines, truth = written(facts["bank" if name in BANK else "addresses"], shares, rows, drawn)
        counts = Counter(CALLED.get(cause, cause) for cause in truth.values() if cause)
        planted[name] = {cause: count / counts.total() for cause, count in counts.items()}
        write_jsonl(out / f"{name}.jsonl", lines)
        write_json(out / f"{name}.truth.json", {"shares": planted[name], "rows": truth})
    write_jsonl(out / "closed-book.jsonl", [unasked(row) for row in facts["bank"][: min(CLOSED_BOOK, rows)]])
    return planted


def unasked(row: Line) -> Line:
    """A question without its passages, which a base is to be asked."""
    return {key: value for key, value in row.items() if key not in ("retrieved", "schema")} | {"output": ""}


def written(
    rows: Sequence[Line], shares: Mapping[str, float], size: int, drawn: random.Random
) -> tuple[list[Line], dict[str, str | None]]:
    """So many rows with answers, and the cause that was planted in each."""
    pile = drawn.sample(rows, min(size, len(rows)))
    lines: list[Line] = []
    truth: dict[str, str | None] = {}
    for number, row in enumerate(pile):
        cause = drawn.choices([*shares], [*shares.values()])[0] if drawn.random() < FAILING else None
        line = FAULTS[cause](row, pile, drawn) if cause else answered(row)
        line |= {"id": f"{number:04d}", "latency_s": round(drawn.lognormvariate(0, 0.4), 3)}
        truth[line["id"]] = cause
        lines.append(line)
    return lines, truth


# ---------------------------------------------------------------------- rows


def bank(directory: Path) -> list[Line]:
    """Questions with their passages, each with the passage that answers it and another value of the same kind."""
    found = []
    for row in every(directory):
        reference = json.loads(row.reference)
        if reference["answer"] is None:
            continue
        question, _, rest = row.source.partition("\n\nPassages:\n\n")
        passages = rest.split("\n\n[")
        passages = [passages[0], *(f"[{passage}" for passage in passages[1:])]
        gold = next(passage for passage in passages if passage.startswith(f"[{reference['document']}]"))
        found.append(
            {
                "messages": [
                    {"role": "system", "content": row.messages[0].content},
                    {"role": "user", "content": question},
                ],
                "reference": row.reference,
                "retrieved": passages,
                "gold_passage": gold,
                "schema": read_json(directory / "schema.json"),
            }
        )
    return found


def addresses(directory: Path) -> list[Line]:
    """One line of text each, of which every value is a part."""
    schema = read_json(directory / "schema.json")
    return [
        {"messages": [message.as_dict() for message in row.messages], "reference": row.reference, "schema": schema}
        for row in every(directory)
        if len(json.loads(row.reference)) > 2
    ]


def every(directory: Path) -> Iterator[Row]:
    """Training and dev rows; gate rows are for judging alone."""
    for split in ("train", "dev"):
        yield from read_rows(directory / f"{split}.jsonl")


# ---------------------------------------------------------------------- answers


def answered(row: Line) -> Line:
    """The right answer."""
    return with_tokens(row | {"output": row["reference"]})


def with_tokens(line: Line) -> Line:
    """Tokens as a tokenizer of four characters a token would count them."""
    read = sum(len(m["content"]) for m in line["messages"]) + sum(map(len, line.get("retrieved", [])))
    return line | {"prompt_tokens": read // 4, "completion_tokens": 1 + len(line["output"]) // 4}


def not_retrieved(row: Line, pile: Sequence[Line], drawn: random.Random) -> Line:
    """The gold passage is not among those retrieved; another row's takes its place, and is answered from."""
    other = drawn.choice([each for each in pile if each["reference"] != row["reference"]])
    passages = [passage for passage in row["retrieved"] if passage != row["gold_passage"]]
    told = json.loads(row["reference"]) | {"answer": json.loads(other["reference"])["answer"]}
    line = row | {"retrieved": [*passages, other["gold_passage"]], "output": dumps(told)}
    if drawn.random() < 0.3:
        # The base knows an older state of the fact.
        line |= {
            "versions": [f"{told['answer']} (2024)"],
            "output": dumps(told | {"answer": f"{told['answer']} (2024)"}),
        }
    return with_tokens(line)


def misshaped(row: Line, pile: Sequence[Line], drawn: random.Random) -> Line:
    """All values right, and mostly written otherwise than they should be."""
    ways = WRITTEN if drawn.random() < 0.8 else UNPARSED
    return with_tokens(row | {"output": drawn.choice(ways)(row["reference"], drawn)})


def unparsed(row: Line, pile: Sequence[Line], drawn: random.Random) -> Line:
    """All values right, and in a form that decoding by the schema could not write."""
    return with_tokens(row | {"output": drawn.choice(UNPARSED)(row["reference"], drawn)})


def both(row: Line, pile: Sequence[Line], drawn: random.Random) -> Line:
    """Not retrieved, and in a wrong shape."""
    wrong = not_retrieved(row, pile, drawn)
    return with_tokens(wrong | {"output": drawn.choice(WRAPPED)(wrong["output"], drawn)})


def misread(row: Line, pile: Sequence[Line], drawn: random.Random) -> Line:
    """The facts are there, and another part of the text is answered."""
    reference = json.loads(row["reference"])
    if "retrieved" in row:
        others = [passage for passage in row["retrieved"] if passage != row["gold_passage"]]
        said = drawn.choice([line for passage in others for line in passage.splitlines() if line.strip()])
        return with_tokens(row | {"output": dumps(reference | {"answer": said.strip()})})
    one, another = drawn.sample([*reference], 2)
    return with_tokens(row | {"output": dumps(reference | {one: reference[another], another: reference[one]})})


def mislabelled(row: Line, pile: Sequence[Line], drawn: random.Random) -> Line:
    """The answer is right, and the reference holds a value that stands nowhere in the text."""
    reference = json.loads(row["reference"])
    text = row["messages"][-1]["content"]
    keys = [*reference]
    drawn.shuffle(keys)
    for key in keys:
        for other in drawn.sample(list(pile), min(40, len(pile))):
            value = json.loads(other["reference"]).get(key)
            if value is not None and value.casefold() not in text.casefold():
                return answered(row) | {"reference": dumps(reference | {key: value})}
    raise SystemExit("make_diagnosis_logs: the rows are too much alike for wrong labels")


FAULTS: dict[str, Callable[[Line, Sequence[Line], random.Random], Line]] = {
    "retrieval": not_retrieved,
    "shape": misshaped,
    "form": unparsed,
    "both": both,
    "reading": misread,
    "label": mislabelled,
}


CALLED = {"form": "shape"}
"""What a diagnosis calls a cause that is made in a way of its own."""


def fenced(text: str, drawn: random.Random) -> str:
    """In a fence."""
    return f"```json\n{text}\n```"


def in_prose(text: str, drawn: random.Random) -> str:
    """As sentences."""
    told = ", ".join(f"the {key.replace('_', ' ')} is {value}" for key, value in json.loads(text).items())
    return f"{drawn.choice(['Sure!', 'Of course.', 'Here you are:'])} From what you sent, {told}."


def wrapped(text: str, drawn: random.Random) -> str:
    """Before a sentence."""
    return f"{text}\n\nI hope that this helps."


def more_keys(text: str, drawn: random.Random) -> str:
    """With a key that the schema does not know."""
    return dumps(json.loads(text) | {"confidence": "high"})


def another_case(text: str, drawn: random.Random) -> str:
    """Every value in capitals or none, which no grammar forbids."""
    for change in drawn.sample([str.upper, str.lower], 2):
        shown = {key: change(value) if isinstance(value, str) else value for key, value in json.loads(text).items()}
        if shown != json.loads(text):
            return dumps(shown)
    return punctuated(text, drawn)


def punctuated(text: str, drawn: random.Random) -> str:
    """Every value with a full stop behind it."""
    return dumps({key: f"{value}." if isinstance(value, str) else value for key, value in json.loads(text).items()})


WRAPPED = (fenced, in_prose, wrapped)
UNPARSED = (*WRAPPED, more_keys)
WRITTEN = (another_case, punctuated)


def dumps(value: Any) -> str:
    """Compact JSON, as curation writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


if __name__ == "__main__":
    sys.exit(guarded(main))
