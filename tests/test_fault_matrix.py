"""The matrix of faults is whole, its table is the stored run's, and that run can be repeated."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tunesmith.findings import FAULTS

CHEAP = (5, 12, 24)
NOT_YET: set[int] = set()
"""Faults that pass us still."""


@pytest.fixture(scope="module")
def matrix(repository: Path) -> Iterator[ModuleType]:
    """The runner; its neighbours lie beside it."""
    sys.path.insert(0, str(repository / "scripts"))
    import fault_matrix

    yield fault_matrix
    sys.path.remove(str(repository / "scripts"))


@pytest.fixture
def kept(repository: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((repository / "docs" / "fault-matrix.json").read_text())
    return found


def test_each_fault_has_a_case_on_either_side_that_says_what_it_plants(matrix: ModuleType) -> None:
    for side in (matrix.faults_plain, matrix.faults_ours):
        assert side.CASES.keys() == FAULTS.keys()
        assert len(set(side.CASES.values())) == len(FAULTS)
        assert all(case.__doc__ for case in side.CASES.values())


def test_the_table_in_the_document_is_that_of_the_stored_run(
    matrix: ModuleType, repository: Path, kept: dict[str, Any]
) -> None:
    document = (repository / "docs" / "FOOTGUNS.md").read_text()
    assert matrix.written(document, matrix.layout(kept)) == document
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", document, flags=re.MULTILINE)] == list(FAULTS)


def test_the_stored_run_speaks_of_the_cases_as_they_are(matrix: ModuleType, kept: dict[str, Any]) -> None:
    for number, fault in FAULTS.items():
        one = kept["faults"][str(number)]
        assert one["fault"] == fault.title
        assert one["plain"]["planted"] == matrix.first_line(matrix.faults_plain.CASES[number])
        assert one["ours"]["how"] == matrix.first_line(matrix.faults_ours.CASES[number])


def test_no_other_fault_passes_us_in_silence(kept: dict[str, Any]) -> None:
    assert {int(number) for number, one in kept["faults"].items() if one["ours"]["outcome"] != "held"} == NOT_YET


def test_a_line_that_names_nothing_or_an_exit_of_0_is_not_held(matrix: ModuleType) -> None:
    ours = matrix.faults_ours
    assert ours.refused(ours.Ended(2, "a\nthe `length` fails: x\n"), "`length` fails").held
    assert not ours.refused(ours.Ended(0, "the `length` fails: x"), "`length` fails").held
    assert not ours.refused(ours.Ended(2, "something else fails"), "`length` fails").held
    assert not ours.without_effect(False, "the same adapter").held


def test_some_cases_run_again_end_as_they_are_stored(
    tmp_path: Path, repository: Path, tiny_base: Path, kept: dict[str, Any]
) -> None:
    out = tmp_path / "matrix.json"
    command = [sys.executable, "scripts/fault_matrix.py", "--only", *map(str, CHEAP)]
    done = subprocess.run(
        [*command, "--base", str(tiny_base), "--out", str(out)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())["faults"]
    assert found == {str(number): kept["faults"][str(number)] for number in CHEAP}
