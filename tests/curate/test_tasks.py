"""The rows that the tasks' own scripts make of their pinned sources."""

import json
import re
import runpy
from collections import Counter, defaultdict

import jsonschema
import pytest

from tunesmith.curate.sources import Sieve, read_sources
from tunesmith.errors import EnvironmentFault
from tunesmith.packages import read_member
from tunesmith.schema import read_schema
from tunesmith.text import duplicate_key

# How many rows each script makes of its pinned package; house-style's depend on the machine's point release.
MADE = {"triage": 3896, "tool-call": 1941, "bank-answers": 880, "house-style": None}


@pytest.fixture(scope="session")
def script(repository):
    """The names that a task's script defines."""
    return lambda task: runpy.run_path(str(repository / "scripts" / f"curate_{task.replace('-', '_')}.py"))


@pytest.fixture(scope="session")
def make(repository, script):
    """Run a task's `rows` from the beginning."""

    def call(task):
        sieve = Sieve()
        return list(script(task)["rows"](read_sources(repository / "data" / task), sieve)), sieve

    return call


@pytest.fixture(scope="session")
def made(make):
    """The rows of a task and what was left out; made once."""
    done = {}

    def call(task):
        if task not in done:
            try:
                done[task] = make(task)
            except EnvironmentFault as fault:
                if task != "house-style":
                    raise
                pytest.skip(fault.text)
        return done[task]

    return call


def answer(row):
    return json.loads(row.reference)


# ---------------------------------------------------------------------- all of them


@pytest.mark.package_index
@pytest.mark.parametrize("task", MADE)
class TestEachTask:
    def test_as_many_rows_as_ever(self, made, task):
        rows, _ = made(task)
        assert len(rows) == MADE[task] if MADE[task] else len(rows) > 2300

    def test_ids_stand_once(self, made, task):
        rows, _ = made(task)
        assert [name for name, count in Counter(row.id for row in rows).items() if count > 1] == []

    def test_every_completion_is_valid_under_the_schema(self, made, task, repository):
        rows, _ = made(task)
        validator = jsonschema.Draft202012Validator(read_schema(repository / "data" / task / "schema.json"))
        off = [row.id for row in rows if not validator.is_valid(answer(row))]
        # A point release may change a synopsis to one off the rules; curation then leaves it out.
        assert len(off) <= (20 if task == "house-style" else 0), off

    def test_the_same_rows_again(self, made, make, task):
        rows, sieve = made(task)
        again, other = make(task)
        assert again == rows
        assert other.dropped == sieve.dropped

    def test_every_row_names_its_source(self, made, task, repository):
        rows, _ = made(task)
        known = set(read_sources(repository / "data" / task)) or {"debian"}
        assert {row.meta["source"] for row in rows} == known


# ---------------------------------------------------------------------- triage


@pytest.mark.package_index
class TestTriage:
    def test_labels_are_those_of_the_schema_and_of_the_instruction(self, made, repository):
        rows, _ = made("triage")
        labels = {answer(row)["subject"] for row in rows}
        schema = read_schema(repository / "data" / "triage" / "schema.json")
        assert labels == set(schema["properties"]["subject"]["enum"])
        systems = {row.messages[0].content for row in rows}
        assert len(systems) == 1
        listed = re.search(r"Subjects: ([^.]*)\.", systems.pop())[1].split(", ")
        assert {*listed, "out_of_scope"} == labels

    def test_no_subject_is_larger_than_the_cap_and_a_seventh_is_out_of_scope(self, made):
        rows, _ = made("triage")
        counts = Counter(answer(row)["subject"] for row in rows)
        outside = counts.pop("out_of_scope")
        assert max(counts.values()) == 200
        assert min(counts.values()) == counts["skin"] == 77
        assert outside / len(rows) == pytest.approx(0.15, abs=0.01)
        assert outside == sum(not row.meta["in_scope"] for row in rows)

    def test_the_same_question_is_one_group(self, made):
        rows, _ = made("triage")
        groups = defaultdict(set)
        for row in rows:
            groups[duplicate_key(row.source)].add(row.group)
        assert all(len(found) == 1 for found in groups.values())
        assert len(groups) == len({row.group for row in rows}) == 3884

    def test_no_question_that_a_clinic_could_be_asked_is_out_of_scope(self, made):
        rows, _ = made("triage")
        clinical = re.compile(r"\b(blood|cancer|disease|doctor|hospital|medicine|patient|pregnan|sick|surgeon)", re.I)
        assert [row.id for row in rows if not row.meta["in_scope"] and clinical.search(row.source)] == []

    def test_what_is_left_out_is_counted(self, made):
        _, sieve = made("triage")
        # All lines of MedMCQA in the wheel, of OpenBookQA's test part and of CommonsenseQA's validation part.
        assert sum(sieve.dropped.values()) + MADE["triage"] == 10_333 + 500 + 1_221


# ---------------------------------------------------------------------- tool-call


def offered(row):
    return json.loads(row.source.partition("\n\n")[0])


@pytest.mark.package_index
class TestToolCall:
    def test_functions_are_the_sources_to_the_byte(self, made, repository):
        source = read_sources(repository / "data" / "tool-call")["bfcl"]
        held = {}
        for name in {row.meta["set"] for row in made("tool-call")[0]}:
            raw = read_member(source.path(), f"{source.member}/BFCL_v4_{name}.json").decode()
            held |= {(name, line["id"]): line for line in map(json.loads, raw.splitlines())}
        for row in made("tool-call")[0]:
            line = held[row.meta["set"], row.id]
            # The representation tells 1 from 1.0 and shows the order of keys.
            assert repr(offered(row)) == repr(line["function"]), row.id
            assert row.source.partition("\n\n")[2] == line["question"][0][0]["content"]

    def test_rows_that_share_a_function_are_one_group(self, made):
        rows, _ = made("tool-call")
        groups = defaultdict(set)
        for row in rows:
            for function in offered(row):
                groups[function["name"]].add(row.group)
        assert [name for name, found in groups.items() if len(found) > 1] == []

    def test_no_group_swallows_the_others(self, made):
        rows, _ = made("tool-call")
        counts = Counter(row.group for row in rows)
        assert len(counts) == 822
        assert max(counts.values()) / len(rows) < 0.1

    def test_calls_are_of_functions_on_offer_with_acceptable_arguments(self, made):
        for row in made("tool-call")[0]:
            functions = {function["name"]: function["parameters"] for function in offered(row)}
            calls = answer(row)["calls"]
            assert len(calls) == len(row.meta["acceptable"])
            for call, acceptable in zip(calls, row.meta["acceptable"], strict=True):
                ((name, values),) = acceptable.items()
                assert call["name"] == name
                assert set(functions[name].get("required", [])) <= set(call["arguments"]) <= set(values), row.id
                for key, value in call["arguments"].items():
                    assert key in functions[name].get("required", []) or "" not in values[key], row.id
                    assert isinstance(value, dict | list) or value in values[key], row.id

    def test_a_third_of_the_requests_calls_nothing(self, made):
        rows, _ = made("tool-call")
        nothing = [row for row in rows if not answer(row)["calls"]]
        assert len(nothing) / len(rows) == pytest.approx(0.34, abs=0.01)
        assert {row.meta["set"] for row in nothing} == {"irrelevance", "live_irrelevance"}
        assert all(row.meta["calls"] == "none" for row in nothing)


def test_the_first_acceptable_value_stands_in_for_all(script):
    chosen = script("tool-call")["chosen"]
    assert chosen({"unit": ["", "m"], "side": [3, "three"]}, []) == {"side": 3}
    assert chosen({"unit": ["", "m"], "note": [""]}, ["unit", "note"]) == {"unit": "m", "note": ""}
    assert chosen({"body": [{"mode": ["dry"], "wind": ["", "low"]}]}, []) == {"body": {"mode": "dry"}}
    assert chosen({"where": [[{"field": ["age"], "value": ["25", 25]}]]}, []) == {
        "where": [{"field": "age", "value": "25"}]
    }


def test_names_connect_over_others(script):
    connected = script("tool-call")["connected"]
    assert connected([["d", "e"], ["c"], ["b", "a"], ["e", "b"], ["c", "x"]]) == ["a", "c", "a", "a", "c"]


# ---------------------------------------------------------------------- bank-answers


def passages(row):
    found = re.split(r"^\[(doc_\S+)\] ", row.source, flags=re.MULTILINE)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


@pytest.mark.package_index
class TestBankAnswers:
    def test_every_answer_stands_verbatim_in_the_passage_that_it_names(self, made):
        rows = [row for row in made("bank-answers")[0] if row.meta["answerable"]]
        assert [row.id for row in rows if answer(row)["answer"] not in passages(row)[answer(row)["document"]]] == []
        assert all(re.search(r"\d", answer(row)["answer"]) for row in rows)

    def test_where_there_is_no_answer_its_passage_is_not_shown(self, made):
        rows, _ = made("bank-answers")
        without = [row for row in rows if not row.meta["answerable"]]
        assert {row.reference for row in without} == {'{"answer":null,"document":null}'}
        assert [row.id for row in without if row.meta["gold"] in passages(row)] == []
        assert len(without) / len(rows) == pytest.approx(0.22, abs=0.02)

    def test_no_form_tells_whether_there_is_an_answer(self, made):
        rows, _ = made("bank-answers")
        assert {len(passages(row)) for row in rows} == {3}
        places = Counter(list(passages(row)).index(row.meta["gold"]) for row in rows if row.meta["answerable"])
        assert min(places[number] for number in range(3)) / places.total() > 0.25
        # Rows with one passage about the product that is asked about, of those with an answer and of those without.
        product = {answerable: [] for answerable in (True, False)}
        for row in rows:
            about = row.meta["gold"].rpartition("_")[0]
            product[row.meta["answerable"]].append(sum(name.rpartition("_")[0] == about for name in passages(row)))
        one = {answerable: counts.count(1) / len(counts) for answerable, counts in product.items()}
        assert one[True] == pytest.approx(one[False], abs=0.15)
        assert product[False].count(0) <= 1

    def test_the_question_without_an_answer_is_asked_with_one_too_in_the_same_group(self, made):
        rows = {row.id: row for row in made("bank-answers")[0]}
        for name, row in rows.items():
            assert row.group == row.meta["gold"].partition("#")[0]
            if not row.meta["answerable"]:
                twin = rows[name.removesuffix(":absent")]
                assert twin.group == row.group
                assert twin.source.partition("\n")[0] == row.source.partition("\n")[0]

    def test_no_other_passage_of_the_product_holds_a_number_of_the_answer(self, made):
        known = {row.id: row for row in made("bank-answers")[0]}
        for name, row in known.items():
            gold = known[name.removesuffix(":absent")]
            numbers = set(re.findall(r"\d+(?:[.,]\d+)*", answer(gold)["answer"]))
            for passage, text in passages(row).items():
                if passage != row.meta["gold"] and passage.rpartition("_")[0] == row.meta["gold"].rpartition("_")[0]:
                    assert not numbers & set(re.findall(r"\d+(?:[.,]\d+)*", text)), (name, passage)


# ---------------------------------------------------------------------- house-style


@pytest.mark.package_index
class TestHouseStyle:
    def test_a_group_is_a_source_package(self, made):
        rows, _ = made("house-style")
        counts = Counter(row.group for row in rows)
        assert len(counts) > 2000
        assert "mono" in counts
        assert max(counts.values()) / len(rows) < 0.02

    def test_descriptions_are_of_the_length_that_was_chosen(self, made):
        rows, _ = made("house-style")
        lengths = sorted(len(row.source.partition("\n\n")[2]) for row in rows)
        assert lengths[len(rows) // 100] >= 200
        assert lengths[-len(rows) // 100] <= 1200

    def test_what_is_gone_is_counted(self, made, script):
        rows, sieve = made("house-style")
        names = script("house-style")["NAMES"].read_text(encoding="utf-8").split()
        assert len(rows) + sum(sieve.dropped.values()) == len(names)


def test_the_chosen_names_are_names_and_stand_once(repository):
    lines = (repository / "data" / "house-style" / "names.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2500
    assert lines == sorted(set(lines))
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", line)] == []


@pytest.mark.parametrize(
    ("synopsis", "is_valid"),
    [
        ("fast text search", True),
        ("Then and now", True),
        ("an archive tool", False),
        ("A tool", False),
        ("THE tool", False),
        ("another tool", True),
        ("tool for archives.", False),
        ("x" * 80, True),
        ("x" * 81, False),
        ("two\nlines", False),
    ],
)
def test_the_schema_holds_the_rules_of_the_house(repository, synopsis, is_valid):
    schema = read_schema(repository / "data" / "house-style" / "schema.json")
    assert jsonschema.Draft202012Validator(schema).is_valid({"synopsis": synopsis}) is is_valid


def test_paragraphs_are_joined_and_lists_kept(script):
    prose = script("house-style")["prose"]
    assert prose(" One line\n and more.\n .\n Choose:\n  * this\n  * that\n .\n The end.") == (
        "One line and more.\n\nChoose:\n* this\n* that\n\nThe end."
    )


def test_without_apt_it_says_what_to_do(script, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault) as fault:
        script("house-style")["lists"]()
    assert "there is no apt on this machine" in fault.value.text
    assert "Debian 12" in fault.value.text


def test_an_apt_whose_sources_lack_the_release_says_so(script, monkeypatch, tmp_path):
    lists = script("house-style")["lists"]
    monkeypatch.setitem(lists.__globals__, "APT_HELPER", tmp_path / "apt-helper")
    (tmp_path / "apt-helper").touch()
    (tmp_path / "apt-get").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EnvironmentFault, match="do not name bookworm main"):
        lists()
    assert (tmp_path / "cache" / "apt" / "lists" / "partial").is_dir()
