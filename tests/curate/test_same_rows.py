"""Which rows are one row: what may be dropped as a copy, what contradicts, and what stands near what."""

import json
import random
from collections import Counter

import numpy as np
import pytest

from tests.curate.conftest import pair
from tests.curate.test_stage import by_prompt, digests, placed, sentences
from tunesmith.leaks import find_leaks, row_texts
from tunesmith.rows import SPLITS

ALL = {"shares": {"train": 1, "dev": 0, "gate": 0, "confirm": 0}}
SOME = [pair(text) for text in sentences(40)]


def call(arguments, number="c1", name="f"):
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": number, "type": "function", "function": function}],
    }


def user(text):
    return {"role": "user", "content": text}


def answer(text):
    return {"role": "assistant", "content": text}


def result(text, number="c1"):
    return {"role": "tool", "content": text, "tool_call_id": number}


def curated(project, talks, turns="last"):
    """What is left of some conversations, beside rows of no interest, and what was dropped."""
    project.section |= {"split": ALL, "turns": turns}
    project.section["sources"].append({"name": "talks", "licence": "CC0-1.0", "path": "talks.jsonl"})
    project.write(SOME)
    project.write([{"messages": talk} for talk in talks], "talks.jsonl")
    rows = [row for row in project.curate()["train"] if row.meta["source"] == "talks"]
    return rows, project.manifest()["dropped"].get("duplicates", {})


APART = {
    "signs of a formula": [("what is 3+2", "5"), ("what is 3-2", "1")],
    "names of languages": [("what is C?", "a language"), ("what is C++?", "another"), ("what is C#?", "a third")],
    "a point inside a number": [("1.5 km in m", "1500"), ("15 km in m", "15000")],
    "vowel signs": [("दिन का अर्थ", "day"), ("दान का अर्थ", "gift")],
}


@pytest.mark.parametrize("rows", APART.values(), ids=APART.keys())
def test_what_means_another_thing_is_no_copy_and_no_contradiction(project, rows):
    project.section["split"] = ALL
    project.write([*SOME, *(pair(*row) for row in rows)])
    assert {prompt for prompt, _ in rows} <= set(by_prompt(project.curate()))


def test_a_call_of_another_id_or_spacing_is_the_same_call(project):
    talks = [[user("call f"), call('{"a":1}', "x")], [user("call f"), call('{"a": 1}', "y")]]
    rows, dropped = curated(project, talks)
    assert len(rows) == 1
    assert dropped == {"a copy but for case, spaces or punctuation": 1}


def test_a_call_with_other_arguments_contradicts(project):
    rows, dropped = curated(project, [[user("call f"), call('{"a":1}')], [user("call f"), call('{"a":2}')]])
    assert rows == []
    assert dropped == {"the same prompt with another completion": 2}


def test_what_was_called_before_is_part_of_what_is_asked(project):
    talks = [
        [user("book it"), call('{"at":7}'), result("ok"), answer("Booked for seven.")],
        [user("book it"), call('{"at":8}'), result("ok"), answer("Booked for eight.")],
    ]
    rows, dropped = curated(project, talks)
    assert (len(rows), dropped) == (2, {})


def test_a_conversation_does_not_contradict_itself(project):
    talk = [user("delete it"), call("{}"), result(""), answer("Deleted.")]
    rows, dropped = curated(project, [talk], turns="each")
    assert (len(rows), dropped) == (2, {})


def test_another_system_message_asks_another_thing(project):
    talks = [[{"role": "system", "content": say}, user("so"), answer(say)] for say in ("Say yes.", "Say no.")]
    rows, dropped = curated(project, talks)
    assert (len(rows), dropped) == (2, {})


def test_of_exact_copies_the_order_does_not_decide_which_one_stays(project):
    copies = [pair(text, note=note, group=f"{note} {i}") for note in ("a", "b") for i, text in enumerate(sentences(60))]
    project.write(copies)
    project.curate()
    before = digests(project)
    project.write(copies[::-1])
    project.curate(recut=True)
    assert digests(project) == before


def test_prompts_of_the_same_letters_and_digits_are_one_group_where_nothing_near_is_looked_for(project):
    project.section |= {"duplicates": {"near": None}, "steps": ["normalise"]}
    project.write([pair(f"{text} 3{sign}2", sign) for text in sentences(80) for sign in "+-"])
    where = by_prompt(project.curate())
    assert len(where) == 160
    assert all(where[f"{text} 3+2"] == where[f"{text} 3-2"] for text in sentences(80))


# ---------------------------------------------------------------------- near


def templated(count, seed=0):
    """Texts of one long template, each with a twin that has one letter more."""
    rng = random.Random(seed)
    template = "please read this note of a customer and say in one word what it is about"
    letters = "abcdefghijklmnopqrstuvwxyz"
    for _ in range(count):
        note = " ".join("".join(rng.choices(letters, k=rng.randint(3, 8))) for _ in range(10))
        yield f"{template} {note}"
        yield f"{template} {note}s"


@pytest.mark.parametrize("threshold", [0.6, 0.9])
def test_twins_in_one_template_never_cross_a_split_in_any_order(project, threshold):
    texts = list(templated(250))
    project.section["duplicates"] = {"near": threshold}
    if threshold < 0.9:
        # All share the template, so that at a low threshold it would make one group of them.
        texts = [text.partition(" about ")[2] for text in texts]
    random.Random(1).shuffle(texts)
    project.write([pair(text) for text in texts])
    splits = project.curate()
    where = by_prompt(splits)
    assert [text for text in texts if f"{text}s" in where and where[text] != where[f"{text}s"]] == []
    for left, right in (("train", "gate"), ("train", "dev"), ("gate", "confirm")):
        assert find_leaks(row_texts(splits[left]), list(row_texts(splits[right])), threshold) == [] or threshold == 0.9
    before = digests(project)
    project.write([pair(text) for text in sorted(texts)])
    project.curate(recut=True)
    assert digests(project) == before


def test_leaks_between_texts_of_one_template_are_all_told(project):
    texts = list(templated(200))
    project.section |= {"split": ALL, "duplicates": {"near": None}}
    project.write([pair(text) for text in texts])
    rows = {row.source: row for row in project.curate()["train"]}
    left, right = [rows[text] for text in texts[::2]], [rows[text] for text in texts[1::2]]
    leaks = find_leaks(row_texts(left), list(row_texts(right)), 0.9)
    near = {leak.left for leak in leaks if leak.kind == "near"}
    assert near == {row.id for row in left}


def test_of_rows_near_each_other_one_is_kept_where_the_recipe_says_so(project):
    project.section["duplicates"] = {"near": 0.8, "drop_near": True}
    texts = sentences(100)
    project.write([*(pair(text, str(i)) for i, text in enumerate(texts)), *(pair(f"{t} x") for t in texts[:30])])
    before = placed(project.curate())
    assert len(before) == 100
    assert project.manifest()["dropped"]["duplicates"] == {"a near-duplicate": 30}
    # Rows that come later, near those that are there, change nothing.
    kept = [text for rows in project.splits().values() for text in (row.source for row in rows)]
    project.write(
        [pair(f"{text} y") for text in kept]
        + [pair(t, str(i)) for i, t in enumerate(texts)]
        + [pair(f"{t} x") for t in texts[:30]]
    )
    assert placed(project.curate()) == before


def test_of_rows_near_each_other_the_order_does_not_decide_which_one_is_kept(project):
    project.section |= {"split": ALL, "duplicates": {"near": 0.8, "drop_near": True}}
    lines = [pair(text) for text in sentences(40)] + [pair(f"{text} x") for text in sentences(40)]
    project.write(lines)
    before = set(placed(project.curate()))
    project.write(lines[::-1])
    assert len(before) == 40
    assert set(placed(project.curate(recut=True))) == before


def test_what_the_embeddings_say_is_near_is_so_in_every_block(project, monkeypatch):
    """The likest stand far apart, so that they meet in a later block than the first."""
    monkeypatch.setattr("tunesmith.curate.duplicates.BLOCK", 8)
    vectors = np.eye(40, dtype=np.float32)
    monkeypatch.setattr("tunesmith.embedder.embed", lambda forms: np.concatenate([vectors, vectors[::-1]]))
    project.section |= {"split": ALL, "duplicates": {"near": None, "semantic": 0.9}}
    project.write([pair(text) for text in sentences(80)])
    groups = Counter(row.group for row in project.curate()["train"])
    assert sorted(groups.values()) == [2] * 40
    places = {text: i for i, text in enumerate(sentences(80))}
    members: dict[str, list[int]] = {}
    for row in project.splits()["train"]:
        members.setdefault(row.group, []).append(places[row.source])
    assert {sum(numbers) for numbers in members.values()} == {79}


# ---------------------------------------------------------------------- a second curation


def test_of_copies_the_one_that_is_there_already_stays(project):
    project.section["split"] = ALL
    project.write([pair(text, id=f"old-{i}") for i, text in enumerate(sentences(40))])
    before = placed(project.curate())
    # Half of the copies come before the rows that they are copies of, and hash lower as often as not.
    copies = [pair(text.upper() if i % 2 else text, id=f"new-{i}") for i, text in enumerate(sentences(40))]
    project.write([*copies, *(pair(text, id=f"old-{i}") for i, text in enumerate(sentences(40)))])
    assert placed(project.curate()) == before


def dated(text, day, group):
    return pair(text, date=day, group=group)


def test_by_date_a_later_row_of_a_training_group_is_left_out(project):
    time = {"field": "meta.date", "dev": "2024-03-01", "gate": "2024-05-01", "confirm": "2024-07-01"}
    project.section["split"] = {"time": time}
    days = ["2024-02-01", "2024-03-01", "2024-05-01", "2024-07-01"]
    lines = [dated(text, days[i % 4], f"g{i}") for i, text in enumerate(sentences(80))]
    project.write(lines)
    before = placed(project.curate())
    project.write([*lines, dated("a later word of the first group", "2024-09-01", "g0")])
    assert placed(project.curate()) == before
    assert project.manifest()["dropped"]["split"] == {"is later than the split that its group lies in": 1}


def test_by_date_the_first_day_of_a_split_is_in_it(project):
    time = {"field": "meta.date", "dev": "2024-03-01", "gate": "2024-05-01", "confirm": "2024-07-01"}
    project.section["split"] = {"time": time}
    days = {"train": "2024-02-29", "dev": "2024-03-01", "gate": "2024-05-01", "confirm": "2024-07-01"}
    project.write([dated(text, days[SPLITS[i % 4]], f"g{i}") for i, text in enumerate(sentences(40))])
    for split, rows in project.curate().items():
        assert {row.meta["date"] for row in rows} == {days[split]}


def test_a_row_that_bridges_two_splits_takes_no_other_new_row_with_it(project):
    project.section["split"] = {"by": "meta.customer"}
    lines = [pair(text, customer=f"c{i}") for i, text in enumerate(sentences(100))]
    project.write(lines)
    before = by_prompt(project.curate())
    train, gate = (next(line for line in lines if before[line["prompt"]] == split) for split in ("train", "gate"))
    more = [pair(text, customer=train["customer"]) for text in sentences(50, seed=3)]
    bridge = pair(gate["prompt"] + " x", customer=train["customer"])
    project.write([*lines, *more, bridge])
    after = by_prompt(project.curate())
    assert {after[line["prompt"]] for line in more} == {"train"}
    assert bridge["prompt"] not in after
    assert project.manifest()["dropped"]["split"] == {"would tie rows of two splits into one group": 1}


def test_a_new_group_keeps_together_where_its_middle_row_was_left_out(project):
    """New rows of one name: one of them is near a gate row, another near a training row."""
    lines = [pair(text, group=f"g{i}") for i, text in enumerate(sentences(100))]
    project.write(lines)
    before = by_prompt(project.curate())
    train, gate = (next(line for line in lines if before[line["prompt"]] == split) for split in ("train", "gate"))
    fresh = [pair(text, group="new") for text in sentences(20, seed=4)]
    near_both = [pair(train["prompt"] + " x", group="new"), pair(gate["prompt"] + " x", group="new")]
    project.write([*lines, *fresh[:10], *near_both, *fresh[10:]])
    after = by_prompt(project.curate())
    assert before.items() <= after.items()
    assert len({after[line["prompt"]] for line in [*fresh, *near_both] if line["prompt"] in after}) == 1
    splits = project.splits()
    for other in ("dev", "gate", "confirm"):
        assert find_leaks(row_texts(splits["train"]), list(row_texts(splits[other])), 0.8) == []


def test_another_seed_is_another_cut(project):
    project.write([pair(text) for text in sentences(100)])
    before = placed(project.curate())
    project.section["split"] = {"seed": 1}
    assert placed(project.curate(recut=True)) != before


def test_a_dataset_without_its_manifest_is_not_cut_in_silence(project):
    project.write([pair(text) for text in sentences(100)])
    before = placed(project.curate())
    path = project.data / "manifest.json"
    whole = path.read_bytes()
    for damaged in (b"", whole[:40]):
        path.write_bytes(damaged)
        with pytest.raises(Exception, match="where their rows belong is not known"):
            project.curate()
        assert placed(project.splits()) == before
    project.curate(recut=True)


def test_what_is_selected_does_not_depend_on_the_order_of_rows(project, monkeypatch):
    # All rows are as good as each other: only their order could decide.
    monkeypatch.setattr("tunesmith.embedder.embed", lambda forms: np.ones((len(forms), 1), dtype=np.float32))
    project.section |= {"split": ALL, "select": {"rows": 10}}
    lines = [pair(text) for text in sentences(40)]
    project.write(lines)
    project.curate(curve=True)
    before = digests(project)
    project.write(lines[::-1])
    project.curate(recut=True, curve=True)
    assert digests(project) == before
    assert {"curve/train-1-8.jsonl", "train.jsonl"} <= before.keys()


def test_subsets_of_an_earlier_cut_do_not_outlive_it(project):
    project.write([pair(text) for text in sentences(100)])
    project.curate(curve=True)
    assert (project.data / "curve" / "train-1-8.jsonl").is_file()
    project.section["split"] = {"seed": 1}
    project.curate(recut=True)
    assert not (project.data / "curve").exists()


# ---------------------------------------------------------------------- what a row may not hold


def test_text_of_a_probe_set_is_taken_out_wherever_in_a_row_it_stands(project):
    document = sentences(1, seed=9)[0]
    (project.root / "probe.txt").write_text(f"{document}\n\nfew words\n")
    question = {"id": "p", "group": "p", "messages": [user("what is it")], "completion": answer("It is this.")}
    (project.root / "probe.jsonl").write_text(json.dumps(question) + "\n")
    project.section |= {"split": ALL, "probes": ["probe.txt", "probe.jsonl"]}
    held = [pair(document, "a"), pair("recite", document), pair("what is it", "It is this."), pair("say", "few words")]
    project.write([*SOME, *held])
    assert set(by_prompt(project.curate())) == {line["prompt"] for line in SOME}
    assert project.manifest()["dropped"]["probes"] == {"holds text of a probe set": 4}


def test_a_training_split_that_is_all_probe_text_is_refused(project):
    (project.root / "probe.txt").write_text("\n\n".join(line["prompt"] for line in SOME))
    project.section |= {"split": ALL, "probes": ["probe.txt"]}
    project.write(SOME)
    with pytest.raises(Exception, match="every training row holds text of a probe set"):
        project.curate()


def test_personal_data_is_found_in_calls_and_in_meta(project):
    mail = "maria.keller@posteo.de"
    project.section |= {"split": ALL, "steps": ["privacy"], "privacy": {"email": "redact"}}
    call_to = {"id": "c", "type": "function", "function": {"name": "send", "arguments": json.dumps({"to": mail})}}
    said = {"role": "assistant", "content": None, "tool_calls": [call_to]}
    project.write([{"messages": [user(text), said], "from": {"address": [mail]}} for text in sentences(10)])
    rows = project.curate()["train"]
    assert len(rows) == 10
    assert {json.loads(row.completion.tool_calls[0]["function"]["arguments"])["to"] for row in rows} == {"[EMAIL_1]"}
    assert [row.meta["from"] for row in rows] == [{"address": ["[EMAIL_1]"]}] * 10
    assert not any(mail in path.read_text() for path in project.data.iterdir())


def test_personal_data_of_a_row_that_an_earlier_step_leaves_out_stands_nowhere(project):
    mail = "maria.keller@posteo.de"
    project.section |= {"split": ALL, "labels": ["yes"], "privacy": {"email": "redact"}}
    project.section["steps"] = ["normalise", "completion", "privacy"]
    project.write([*SOME, pair(f"write\u00a0to {mail} now", f"mail {mail}")])
    project.curate()
    assert project.manifest()["dropped"]["completion"] == {"the completion is none of curate.labels": 1}
    assert not any(mail in path.read_text() for path in project.data.iterdir())


IN_VAIN = {
    "privacy without its step": ({"privacy": {"email": "redact"}}, "privacy: does nothing without the step"),
    "labels without their step": ({"labels": ["yes"], "steps": ["empty"]}, "labels: does nothing without the step"),
    "drop_near and nothing near": ({"duplicates": {"near": None, "drop_near": True}}, "drop_near: does nothing"),
    "quotas of no field": ({"select": {"rows": 5, "quotas": {"a": 1}}}, "quotas: does nothing without split.strat"),
    "shares beside dates": (
        {"split": {"shares": ALL["shares"], "time": {"field": "meta.d", "dev": "2024-01-01", "gate": "2024-01-01",
                                                     "confirm": "2024-01-01"}}},
        "split.shares: does nothing beside split.time",
    ),
    "two sources of one name": (
        {"sources": [{"name": "a", "licence": "MIT", "path": "a"}, {"name": "a", "licence": "x", "path": "b"}]},
        "sources: a stands twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("section", "says"), IN_VAIN.values(), ids=IN_VAIN.keys())
def test_what_a_recipe_would_say_in_vain_is_refused(project, section, says):
    project.section |= section
    with pytest.raises(Exception, match=r"^recipes/task\.yaml:") as refused:
        project.loaded()
    assert says in str(refused.value)


STRANGE = {
    "no parameters": {"name": "f", "parameters": None},
    "a function that is text": "f",
    "a pattern that Python does not read": {
        "name": "f",
        "parameters": {"type": "object", "properties": {"a": {"type": "string", "pattern": "^\\p{L}+$"}}},
    },
    "a reference to nothing": {"name": "f", "parameters": {"$ref": "#/nowhere"}},
    "a reference to another machine": {"name": "f", "parameters": {"$ref": "http://127.0.0.1:9/schema"}},
    "properties that are a list": {"name": "f", "parameters": {"type": "object", "properties": ["a"]}},
    "required that is null": {"name": "f", "parameters": {"type": "object", "required": None}},
}


@pytest.mark.parametrize("function", STRANGE.values(), ids=STRANGE.keys())
def test_a_tool_of_a_strange_schema_is_no_traceback_and_fetches_nothing(project, function):
    project.section |= {"split": ALL, "steps": ["completion"]}
    project.section["sources"].append({"name": "talks", "licence": "CC0-1.0", "path": "talks.jsonl"})
    project.write([pair(text, "{}") for text in sentences(5)])
    tool = {"type": "function", "function": function}
    project.write([{"messages": [user("go on"), call('{"a": "x"}')], "tools": [tool]}], "talks.jsonl")
    assert len(project.curate()["train"]) == (6 if isinstance(function, dict) else 5)


@pytest.mark.parametrize("text", ["3" * 5000, "[" * 20_000], ids=["5000 digits", "20,000 brackets"])
def test_a_completion_that_python_cannot_read_as_json_is_text(project, text):
    project.section |= {"split": ALL | {"stratify": "completion.a"}, "steps": ["normalise"]}
    project.write([*SOME, pair("say it", text)])
    assert len(project.curate()["train"]) == len(SOME) + 1
    project.section["steps"] = ["completion"]
    project.write([*(pair(text, "{}") for text in sentences(5)), pair("say it", text)])
    assert len(project.curate(recut=True)["train"]) == 5
