"""The whole stage over real files: nothing leaks, nothing moves, nothing is half done."""

import json
import random

import pytest

from tests.curate.conftest import pair
from tunesmith.curate.split import Known
from tunesmith.curate.work import hash64
from tunesmith.errors import UserError
from tunesmith.files import publish
from tunesmith.leaks import find_leaks, row_texts
from tunesmith.rows import SPLITS, Dataset

WORDS = [
    f"{a}{b}"
    for a in ("ba", "co", "di", "fu", "ge", "ha", "ki", "lo", "mu", "ne")
    for b in ("ran", "sel", "tip", "vor")
]


def sentences(count, seed=0):
    """Sentences that are not near each other."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=14)) + f" {seed}-{i}" for i in range(count)]


def placed(splits):
    return {row.id: split for split, rows in splits.items() for row in rows}


def by_prompt(splits):
    return {row.source: split for split, rows in splits.items() for row in rows}


def digests(project):
    return {name: entry["sha256"] for name, entry in project.manifest()["files"].items()}


# ---------------------------------------------------------------------- planted copies


def lower_words_moved(text):
    words = text.split()
    return " ".join(words[7:] + words[:7])


PLANTED = {
    "exact": (lambda text: text, {}),
    "case": (str.upper, {}),
    "spaces and stops": (lambda text: text.replace(" ", "  ") + " !", {}),
    "halves in another order": (lower_words_moved, {}),
    "one word changed": (lambda text: text.replace(text.split()[3], "other", 1), {}),
    "another text of the same group": (lambda text: text[::-1], {"group": "shared"}),
}


@pytest.mark.parametrize(("copy", "more"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_copy_never_crosses_a_split(project, copy, more):
    originals = sentences(120)
    lines = [
        pair(text, f"answer {i}", **({k: f"{v} {i}" for k, v in more.items()})) for i, text in enumerate(originals)
    ]
    lines += [
        pair(copy(text), f"answer {i}", **({k: f"{v} {i}" for k, v in more.items()}))
        for i, text in enumerate(originals)
    ]
    project.write(lines)
    project.section["duplicates"] = {"near": 0.7}
    splits = project.curate()
    where = by_prompt(splits)
    both = [(where.get(text), where.get(copy(text).strip())) for text in originals]
    kept = [(a, b) for a, b in both if a and b]
    assert all(a == b for a, b in kept)
    assert all(a or b for a, b in both)
    for left, right in (("train", "dev"), ("train", "gate"), ("train", "confirm"), ("gate", "confirm")):
        assert find_leaks(row_texts(splits[left]), list(row_texts(splits[right])), 0.7) == []
    assert all(splits[split] for split in SPLITS)


def test_rows_of_one_prompt_with_different_answers_are_left_out_and_told(project):
    project.write([*(pair(text) for text in sentences(50)), pair("is it so", "yes"), pair("Is it so?", "no")])
    splits = project.curate()
    assert "is it so" not in by_prompt(splits)
    assert project.manifest()["dropped"] == {"duplicates": {"the same prompt with another completion": 2}}
    told = [json.loads(line) for line in (project.data / "dropped.jsonl").read_text().splitlines()]
    assert sorted(entry["place"] for entry in told) == ["pile.jsonl:51", "pile.jsonl:52"]


# ---------------------------------------------------------------------- the order of rows, and more of them


def test_a_permuted_file_gives_the_same_bytes(project):
    lines = [pair(text, f"answer {i % 7}", meta=i) for i, text in enumerate(sentences(200))]
    lines += [pair(text.upper(), f"answer {i % 7}") for i, text in enumerate(sentences(40))]
    project.write(lines)
    project.curate()
    first = digests(project)
    random.Random(1).shuffle(lines)
    project.write(lines)
    project.curate(recut=True)
    assert digests(project) == first


@pytest.mark.parametrize("stratify", [None, "completion"])
def test_ten_percent_more_rows_move_no_old_one(project, stratify):
    lines = [pair(text, f"answer {i % 3}") for i, text in enumerate(sentences(300))]
    project.section["split"] = {"stratify": stratify} if stratify else {}
    project.write(lines)
    before = by_prompt(project.curate())
    # Among the new ones are some near old rows, and some that are near two old rows at once.
    more = [pair(text, "answer 1") for text in sentences(20, seed=1)]
    more += [pair(text["prompt"].replace("1", "one"), text["completion"]) for text in lines[:10]]
    project.write(more + lines)
    after = by_prompt(project.curate())
    assert {prompt: after[prompt] for prompt in before} == before
    assert len(after) >= 320


def test_a_new_row_that_ties_two_splits_together_is_left_out(project):
    project.section["split"] = {"by": "meta.customer"}
    lines = [pair(text, customer=f"c{i}") for i, text in enumerate(sentences(100))]
    project.write(lines)
    before = by_prompt(project.curate())
    train, gate = (next(line for line in lines if before[line["prompt"]] == split) for split in ("train", "gate"))
    # Near the training row, and of the gate row's customer.
    bridge = pair(train["prompt"] + " x", customer=gate["customer"])
    project.write([*lines, bridge])
    after = by_prompt(project.curate())
    assert after == before
    assert project.manifest()["dropped"]["split"] == {"would tie rows of two splits into one group": 1}


def test_a_row_that_is_reworded_stays_where_its_id_lies(project):
    lines = [pair(text, id=f"r{i}") for i, text in enumerate(sentences(100))]
    project.write(lines)
    before = placed(project.curate())
    project.write([pair(f"please {line['prompt'][::-1]}", id=line["id"]) for line in lines])
    assert placed(project.curate()) == before


# ---------------------------------------------------------------------- written once


@pytest.mark.parametrize("split", [{"seed": 1}, {"stratify": "completion"}, {"by": "meta.x"}])
def test_another_cut_of_the_same_dataset_is_refused_and_changes_nothing(project, split):
    project.write([pair(text, f"answer {i % 3}", x=i // 2) for i, text in enumerate(sentences(100))])
    project.curate()
    before = {path.name: path.read_bytes() for path in project.data.iterdir()}
    project.section["split"] = split
    with pytest.raises(UserError, match="would move rows from gate to train"):
        project.curate()
    assert {path.name: path.read_bytes() for path in project.data.iterdir()} == before
    project.curate(recut=True)


def test_a_threshold_that_joins_rows_of_two_splits_is_refused(project):
    lines = [pair(f"{text} {tail}") for text in sentences(60) for tail in ("one way", "in some other way")]
    project.section["duplicates"] = {"near": None}
    project.write(lines)
    project.curate()
    project.section["duplicates"] = {"near": 0.6}
    with pytest.raises(UserError, match="a cut would move them"):
        project.curate()


def test_a_refused_curation_leaves_nothing(project):
    (project.root / "pile.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"\n{"prompt": 3}\n')
    with pytest.raises(UserError) as refused:
        project.curate()
    assert [problem.partition(": ")[0] for problem in refused.value.problems] == ["pile.jsonl:2", "pile.jsonl:3"]
    assert not project.data.exists() or list(project.data.iterdir()) == []


def test_ids_that_stand_twice_are_refused_with_their_lines(project):
    project.write([pair(text, id="same") for text in sentences(3)])
    with pytest.raises(UserError, match=r"pile.jsonl:\d: id 'same' stands on another row already"):
        project.curate()


def test_malformed_lines_may_be_left_out_and_are_counted(project):
    project.section["sources"][0]["malformed"] = "drop"
    good = [json.dumps(pair(text)) for text in sentences(50)]
    (project.root / "pile.jsonl").write_text("\n".join([*good[:20], "{cut", *good[20:], '{"prompt": 1}']))
    splits = project.curate()
    assert sum(map(len, splits.values())) == 50
    assert project.manifest()["dropped"] == {"read": {"not a row": 2}}


# ---------------------------------------------------------------------- engines, chunks, subsets


def test_several_processes_write_the_same_bytes(project, monkeypatch):
    lines = [pair(text, f"answer {i}") for i, text in enumerate(sentences(300))]
    project.write(lines)
    project.curate(workers=1)
    first = digests(project)
    monkeypatch.setattr("tunesmith.curate.chunks.CHUNK_BYTES", 4096)
    project.curate(workers=2, recut=True)
    assert digests(project) == first


def test_subsets_are_nested_and_hold_each_label_in_its_share(project):
    project.section["split"] = {"stratify": "completion"}
    project.write([pair(text, "rare" if i % 5 == 0 else "usual") for i, text in enumerate(sentences(400))])
    splits = project.curate(curve=True)
    sets = []
    for part in (8, 4, 2, 1):
        lines = (project.data / "curve" / f"train-1-{part}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == round(len(splits["train"]) / part)
        rare = sum(row["completion"]["content"] == "rare" for row in rows)
        assert abs(rare - len(rows) / 5) <= 1
        sets.append({row["id"] for row in rows})
    assert sets[0] < sets[1] < sets[2] < sets[3] == {row.id for row in splits["train"]}


def test_stratified_splits_hold_each_label_in_its_share(project):
    project.section["split"] = {"stratify": "completion"}
    project.write([pair(text, ["a", "b", "b", "b"][i % 4]) for i, text in enumerate(sentences(400))])
    splits = project.curate()
    for split, share in (("train", 0.6), ("dev", 0.1), ("gate", 0.2), ("confirm", 0.1)):
        for label, total in (("a", 100), ("b", 300)):
            assert abs(sum(row.reference == label for row in splits[split]) - share * total) <= 2


def test_a_cut_by_date_trains_on_nothing_that_came_later(project):
    project.section["split"] = {
        "time": {"field": "meta.day", "dev": "2024-03-01", "gate": "2024-04-01", "confirm": "2024-05-01"}
    }
    texts = sentences(120)
    lines = [pair(text, day=f"2024-{1 + i % 6:02}-15T10:00") for i, text in enumerate(texts)]
    # A near copy from later takes its elder along, not the other way round.
    lines.append(pair(texts[0] + " x", day="2024-06-01"))
    project.write(lines)
    splits = project.curate()
    assert {row.meta["day"][:7] for row in splits["train"]} == {"2024-01", "2024-02"}
    assert {row.meta["day"][:7] for row in splits["dev"]} == {"2024-03"}
    assert by_prompt(splits)[texts[0]] == "confirm"


def test_a_row_without_the_field_that_groups_is_named(project):
    project.section["split"] = {"by": "meta.customer"}
    project.write([pair("a b c", customer="x"), pair("d e f")])
    with pytest.raises(UserError, match=r"pile.jsonl:2: row .* has no meta.customer"):
        project.curate()


def test_rows_that_hold_a_probe_set_are_not_trained_on(project):
    probe = " ".join(sentences(1, seed=9)[0].split() * 2)
    (project.root / "probe.txt").write_text(f"{probe}\n\nanother paragraph\n")
    project.section["probes"] = ["probe.txt"]
    project.section["split"] = {"shares": {"train": 1.0, "dev": 0.0, "gate": 0.0, "confirm": 0.0}}
    project.write([*(pair(text) for text in sentences(20)), pair(f"it says {probe} here")])
    assert len(project.curate()["train"]) == 20
    assert project.manifest()["dropped"] == {"probes": {"holds text of a probe set": 1}}


def test_each_row_says_where_it_comes_from(project):
    project.write([pair(text, topic="t") for text in sentences(30)])
    row = next(iter(project.curate()["train"]))
    assert row.meta == {"topic": "t", "source": "pile", "licence": "CC0-1.0", "transform": 2}
    card = (project.data / "CARD.md").read_text()
    assert "`pile`: CC0-1.0. `pile.jsonl`. 30 rows made, 30 kept." in card


def test_no_rows_left_says_which_step_left_them_out(project):
    project.write([pair("...", "!!!")])
    with pytest.raises(UserError) as refused:
        project.curate()
    assert (
        refused.value.text
        == f"{project.data}: no rows are left\nhint: the steps leave out: empty: the completion is empty: 1 rows"
    )


def test_what_privacy_finds_stands_in_no_file_but_the_rows(project):
    secret, mail = "AKIA2J5Q7XZL3PWR8KTM", "maria.keller@posteo.de"
    texts = sentences(40)
    project.section["steps"] = ["normalise", "privacy", "empty"]
    project.section["privacy"] = {"email": "redact"}
    project.section["split"] = {"shares": {"train": 1.0, "dev": 0.0, "gate": 0.0, "confirm": 0.0}}
    project.write([*(pair(text) for text in texts), pair(f"write\u00a0to {mail} {texts[0]}", f"I wrote to {mail}.")])
    rows = {row.source: row for row in project.curate()["train"]}
    redacted = rows[f"write to [EMAIL_1] {texts[0]}"]
    assert redacted.reference == "I wrote to [EMAIL_1]."
    assert not [path.name for path in project.data.rglob("*") if path.is_file() and mail in path.read_text()]
    project.write([*(pair(text) for text in texts), pair(f"the key is {secret} {texts[0]}")])
    with pytest.raises(UserError, match="holds secret") as refused:
        project.curate()
    assert secret not in refused.value.text


def test_a_second_curation_of_the_same_dataset_is_refused(project):
    from filelock import FileLock

    project.write([pair(text) for text in sentences(40)])
    project.data.parent.mkdir()
    with (
        FileLock(project.data.with_name(".task.lock"), is_singleton=False),
        pytest.raises(UserError, match="another curation is at work here"),
    ):
        project.curate()
    project.curate()


def test_a_dataset_with_a_damaged_split_is_made_anew_and_the_others_stay(project):
    project.write([pair(text) for text in sentences(100)])
    before = placed(project.curate())
    gate = project.data / "gate.jsonl"
    gate.write_bytes(gate.read_bytes()[:100])
    assert placed(project.curate()) == before


def test_an_interrupted_publication_is_read_by_no_stage_and_forgets_no_place(project, monkeypatch):
    project.write([pair(text) for text in sentences(100)])
    before = placed(project.curate())
    moved = []

    def stop_half_way(source, target):
        if len(moved) == 4:
            raise KeyboardInterrupt
        moved.append(target.name)
        publish(source, target)

    # New rows, one of which stands near an old one: only who knows all old places can place it.
    project.write([pair(text) for text in (*sentences(100), *sentences(30, seed=1))])
    monkeypatch.setattr("tunesmith.curate.dataset.publish", stop_half_way)
    with pytest.raises(KeyboardInterrupt):
        project.curate()
    assert {"confirm.jsonl", "dev.jsonl"} <= set(moved)
    assert "train.jsonl" not in moved
    with pytest.raises(UserError, match="differs from its manifest"):
        Dataset(project.data).manifest()
    monkeypatch.undo()
    monkeypatch.setattr("tunesmith.curate.stage._renderer", lambda loaded: None)
    # Another seed would place every row anew that is not known.
    found = Known.of(Dataset(project.data), Dataset(project.data).intact()[1])
    assert {hash64(row): SPLITS.index(split) for row, split in before.items()}.items() <= found.ids.items()
    after = placed(project.curate())
    assert before.items() <= after.items()
    assert not (project.data / "manifest.next.json").exists()


def test_what_a_data_set_calls_source_and_licence_itself_is_kept(project):
    project.write([pair(text, source="web", licence="none") for text in sentences(30)])
    row = next(iter(project.curate()["train"]))
    assert row.meta["source"] == "pile"
    assert row.meta["original"] == {"source": "web", "licence": "none"}


def test_rows_that_contradict_each_other_are_refused_with_the_place_of_each_where_the_recipe_says_so(project):
    project.section["steps"] = ["normalise", "empty", {"contradictions": "refuse"}]
    project.write([pair("is it so", "yes"), *(pair(text) for text in sentences(50)), pair("Is it so?", "no")])
    with pytest.raises(UserError) as refused:
        project.curate()
    assert refused.value.problems == [
        "pile.jsonl:1: asks what pile.jsonl:52 asks, with another completion",
        "pile.jsonl:52: asks what pile.jsonl:1 asks, with another completion",
    ]
    assert not project.data.exists() or not list(project.data.iterdir())


def test_rows_that_all_contradict_each_other_leave_nothing_to_cut(project):
    project.write([pair("a", "b"), pair("A", "c")])
    with pytest.raises(UserError, match="no rows are left to cut"):
        project.curate()
