"""The rows of json-extract, made anew from the pinned package by the real script."""

import json
import re
import runpy

import jsonschema
import pytest

from tunesmith.curate.sources import Sieve, read_sources
from tunesmith.schema import read_schema

pytestmark = pytest.mark.package_index

KEYS = ["recipient", "building", "number", "street", "unit", "po_box", "city", "state", "zip", "country", "landmark"]


@pytest.fixture(scope="module")
def made(repository):
    """The script's rows, and the sieve with what it left out."""
    sieve = Sieve()
    program = runpy.run_path(str(repository / "scripts" / "curate_json_extract.py"))
    return list(program["rows"](read_sources(repository / "data" / "json-extract"), sieve)), sieve


@pytest.fixture(scope="module")
def rows(made):
    return made[0]


def test_the_counts_are_those_of_the_committed_card(made, repository):
    rows, sieve = made
    card = (repository / "data" / "json-extract" / "CARD.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| script \| (.+) \| (\d+) \|$", card, flags=re.MULTILINE))
    assert {reason: str(count) for reason, count in sieve.dropped.items()} == stated
    assert f"{len(rows)} rows made" in card
    assert len(rows) == 1469


def test_what_is_left_out_is_the_rest_of_the_source(made):
    rows, sieve = made
    assert len(rows) + sum(sieve.dropped.values()) == 1513


def test_ids_stand_once_and_say_where_in_the_source(rows):
    numbers = [int(row.id.removeprefix("usaddress-")) for row in rows]
    assert numbers == sorted(set(numbers))


def test_every_value_stands_verbatim_in_its_text(rows):
    for row in rows:
        values = json.loads(row.reference)
        assert values
        assert [key for key, value in values.items() if value not in row.source] == []
        assert list(values) == [key for key in KEYS if key in values]


def test_every_completion_is_valid_under_the_schema(rows, repository):
    validator = jsonschema.Draft202012Validator(read_schema(repository / "data" / "json-extract" / "schema.json"))
    assert [row.id for row in rows if not validator.is_valid(json.loads(row.reference))] == []


def test_one_street_in_one_city_is_one_group(rows):
    groups = {}
    for row in rows:
        values = json.loads(row.reference)
        if "street" in values:
            place = tuple(re.sub(r"[\W_]+", "", values.get(key, "")).casefold() for key in ("street", "city"))
            assert groups.setdefault(place, row.group) == row.group
    assert len(groups) > 1000
