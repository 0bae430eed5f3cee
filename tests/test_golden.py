"""The losses of the smoke runs are those that were recorded: what changes them is seen, by whom it may be.

`make golden` records them anew; read its diff, and say in the commit why they changed.
"""

import runpy
import subprocess
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tunesmith.files import read_json

SCRIPT: dict[str, Any] = runpy.run_path(str(REPOSITORY / "scripts" / "record_golden.py"))
GOLDEN = read_json(REPOSITORY / "tests" / "golden" / "losses.json")

# Other processors sum in another order, which training amplifies step by step; a changed loss is far more.
MOST, ON_AVERAGE = 2e-3, 2e-4


@pytest.mark.parametrize("recipe", sorted(GOLDEN["losses"]))
def test_the_losses_are_the_recorded_ones(project: Path, recipe: str) -> None:
    found = SCRIPT["losses"](recipe, project, project)
    for key, recorded in GOLDEN["losses"][recipe].items():
        apart = [abs(a - b) for a, b in zip(found[key], recorded, strict=True)]
        told = f"{key}: recorded in {GOLDEN['environment']}, now {SCRIPT['environment']()}"
        scale = max(1.0, max(recorded))
        assert max(apart) <= MOST * scale, told
        assert mean(apart) <= ON_AVERAGE * scale, told


def test_all_of_a_run_was_recorded() -> None:
    assert set(GOLDEN["losses"]) == {"smoke", "smoke-qlora"}
    for values in GOLDEN["losses"].values():
        assert len(values["loss"]) == len(values["grad_norm"]) == 30
        assert values["loss"][-1] < values["loss"][0] - 0.5
    assert GOLDEN["environment"]["versions"].keys() >= {"torch", "trl", "peft", "transformers"}


def test_a_tree_with_changes_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = SCRIPT["refuse_changes"]
    monkeypatch.setitem(refuse.__globals__, "ROOT", tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    refuse()
    (tmp_path / "new.txt").write_text("")
    with pytest.raises(SystemExit, match=r"not committed: new\.txt"):
        refuse()
