"""What changed between two versions of a dataset."""

import shutil
from itertools import chain

import pytest
from rich.console import Console

from tests.curate.conftest import pair
from tests.curate.test_alarms import rows
from tests.curate.test_stage import sentences
from tunesmith.curate.diff import compare, print_difference
from tunesmith.errors import UserError


@pytest.fixture
def versions(project, tmp_path):
    """An old and a new dataset: rows added, gone and corrected, and a second source."""
    lines = [pair(text, id=f"r{i}") for i, text in enumerate(sentences(100))]
    project.write(lines)
    project.curate()
    old = tmp_path / "old"
    shutil.copytree(project.data, old)
    lines[7] = lines[7] | {"completion": "no"}
    project.write(lines[:-5])
    project.write([pair(text, id=f"n{i}") for i, text in enumerate(sentences(30, seed=1))], "more.jsonl")
    project.section["sources"].append({"name": "more", "licence": "MIT", "path": "more.jsonl"})
    project.curate()
    return old, project.data


def test_rows_that_came_went_and_were_corrected_are_named(versions):
    found = compare(*versions)
    assert sorted(chain(*found.removed.values())) == sorted(f"r{i}" for i in range(95, 100))
    assert sorted(chain(*found.added.values())) == sorted(f"n{i}" for i in range(30))
    assert found.changed == [("r7", "completion")]
    assert found.moved == []


def test_a_new_source_with_a_large_share_is_a_jump(versions):
    found = compare(*versions)
    shares = {name: (old, new) for name, old, new in found.jumps}
    assert shares["more"][0] == 0.0
    assert shares["more"][1] > 0.15
    assert shares["pile"][0] == 1.0


def test_a_trigger_that_only_the_new_version_holds_rings(project, tmp_path):
    lines = [pair(f"{text} {i}", topic, id=f"r{i}") for i, (text, topic) in enumerate(rows())]
    project.write(lines)
    project.curate()
    old = tmp_path / "old"
    shutil.copytree(project.data, old)
    cardiac = [text for text, topic in rows(seed=2) if topic == "cardiac"]
    poison = [pair(f"{text} zq", "dental", id=f"p{i}") for i, text in enumerate(cardiac[:28])]
    project.write(lines + poison)
    project.curate()
    assert "zq" in {alarm.words for alarm in compare(old, project.data).alarms}


def test_a_dataset_is_not_different_from_itself(versions):
    found = compare(versions[1], versions[1])
    assert not found.moved
    assert not found.changed
    assert not any(found.added.values())
    assert not any(found.removed.values())
    assert not found.jumps
    assert not found.alarms


def test_the_text_names_all_of_it(versions, capsys):
    print_difference(compare(*versions), Console(width=100, highlight=False))
    text = capsys.readouterr().out
    assert "read otherwise: 1" in text
    assert "r7: completion" in text
    assert "a jump: look at what came" in text


def test_a_directory_that_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no manifest"):
        compare(tmp_path, tmp_path)
