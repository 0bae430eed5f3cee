"""The curated addresses, made anew from the pinned package by the real script."""

import json
import re
import runpy
import shutil

import jsonschema
import pytest

from tunesmith.curate.text import duplicate_key
from tunesmith.rows import SPLITS, Dataset
from tunesmith.schema import read_schema

pytestmark = pytest.mark.package_index

KEYS = ["recipient", "building", "number", "street", "unit", "po_box", "city", "state", "zip", "country", "landmark"]


@pytest.fixture(scope="module")
def dataset(repository, tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "json-extract"
    directory.mkdir()
    shutil.copy(repository / "data" / "json-extract" / "sources.lock", directory)
    script = repository / "scripts" / "curate_json_extract.py"
    runpy.run_path(str(script))["curate"](directory)
    return Dataset(directory)


@pytest.fixture(scope="module")
def rows(dataset):
    return [row for split in SPLITS for row in dataset.rows(split)]


def test_the_card_is_the_committed_one_to_the_byte(dataset, repository):
    committed = (repository / "data" / "json-extract" / "CARD.md").read_bytes()
    assert (dataset.directory / "CARD.md").read_bytes() == committed


def test_the_counts_are_those_of_the_committed_card(dataset, repository):
    card = (repository / "data" / "json-extract" / "CARD.md").read_text(encoding="utf-8")
    stated = {
        split: (int(rows), int(groups)) for split, rows, groups in re.findall(r"\| (\w+) \| (\d+) \| (\d+) \|", card)
    }
    counted = {}
    for split in SPLITS:
        rows = dataset.rows(split)
        counted[split] = (len(rows), len({row.group for row in rows}))
    assert counted == stated
    assert sum(count for count, _ in counted.values()) == 1423


def test_every_value_stands_verbatim_in_its_text(rows):
    for row in rows:
        values = json.loads(row.reference)
        assert values
        assert [key for key, value in values.items() if value not in row.source] == []
        assert list(values) == [key for key in KEYS if key in values]


def test_every_completion_is_valid_under_the_schema(rows, repository):
    validator = jsonschema.Draft202012Validator(read_schema(repository / "data" / "json-extract" / "schema.json"))
    assert [row.id for row in rows if not validator.is_valid(json.loads(row.reference))] == []


def test_no_group_straddles_two_splits(dataset):
    groups = [{row.group for row in dataset.rows(split)} for split in SPLITS]
    assert sum(map(len, groups)) == len(set().union(*groups))


def test_no_text_stands_twice(rows):
    keys = [duplicate_key(row.source) for row in rows]
    assert len(set(keys)) == len(keys)
