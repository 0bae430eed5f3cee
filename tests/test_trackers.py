"""A recipe names its trackers from a closed list, and no library tells anybody anything by itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith import trackers
from tunesmith.errors import UserError
from tunesmith.line import Line
from tunesmith.recipe import load_recipe


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name that can be found."""
    (tmp_path / "stubs" / "tensorboard").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "stubs")


def refusal(*sets: str) -> str:
    with pytest.raises(UserError) as refused:
        load_recipe("smoke", sets=sets)
    return refused.value.text


def test_an_unknown_tracker_is_refused_with_the_list(project: Path) -> None:
    for value in ("all", "[tensorboard, comet_ml]"):
        told = refusal(f"trainer.report_to={value}")
        assert "--set: trainer.report_to: no such tracker:" in told
        assert "there are: tensorboard, wandb, mlflow, trackio, or none" in told
    assert "is not None | str | list[str]" in refusal("trainer.report_to=3")


def test_one_that_is_not_installed_is_refused_with_the_command(project: Path) -> None:
    told = refusal("trainer.report_to=[trackio, mlflow]")
    assert "not installed: trackio, mlflow; run `pip install trackio mlflow`" in told


def test_a_key_that_only_trackio_reads_is_refused_without_it(project: Path) -> None:
    assert "trainer.trackio_space_id: is read by trackio alone" in refusal("trainer.trackio_space_id=a/b")


def test_none_is_the_default_and_may_be_said(project: Path, installed: None) -> None:
    for value, names in (("none", []), ("[]", []), ("tensorboard", ["tensorboard"])):
        recipe = load_recipe("smoke", sets=[f"trainer.report_to={value}"]).recipe
        assert trackers.named(recipe.trainer["report_to"]) == names
    assert trackers.named(load_recipe("smoke").recipe.trainer.get("report_to")) == []


def test_who_is_told_of_a_run_does_not_make_it_another_run(project: Path, installed: None) -> None:
    line = Line("smoke")
    line.curate()
    told = Line("smoke", sets=["trainer.report_to=tensorboard"])
    assert told.run.directory == line.run.directory
    assert Line("smoke", sets=["trainer.max_grad_norm=0.5"]).run.directory != line.run.directory


def test_variables_that_would_upload_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_LOG_MODEL", "checkpoint")
    monkeypatch.setenv("HF_MLFLOW_LOG_ARTIFACTS", "0")
    assert [told.partition(":")[0] for told in trackers.uploads(["wandb", "mlflow"])] == ["WANDB_LOG_MODEL"]
    assert trackers.uploads(["tensorboard"]) == []


def test_telemetry_is_off_as_the_libraries_read_it_and_a_users_own_setting_wins() -> None:
    program = """
import os
os.environ["RAY_USAGE_STATS_ENABLED"] = "1"
from tunesmith.line import quiet_libraries
quiet_libraries()
from tunesmith.trackers import QUIET
told = {name: os.environ[name] for name in QUIET}
assert told == QUIET | {"RAY_USAGE_STATS_ENABLED": "1"}, told
from huggingface_hub import constants
assert constants.HF_HUB_DISABLE_TELEMETRY
"""
    clean = {"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path), "HOME": str(Path.home())}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=clean)
    assert done.returncode == 0, done.stderr
