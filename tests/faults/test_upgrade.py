"""A checkpoint that an earlier version wrote is read, or refused with what differs; never half understood.

`form-1/` was written by version 0.1.0: `tunesmith train smoke` with the settings below, killed in its fifth step. It is
never written anew: the form of later checkpoints gets a directory of its own.
"""

import shutil
from pathlib import Path

import pytest

from tests.faults.conftest import Workshop
from tunesmith.errors import ExitCode, UserError
from tunesmith.files import read_json, sha256_json, write_json
from tunesmith.train.checkpoints import read

FORM_1 = Path(__file__).parent / "form-1"
SETTINGS = ("lora.r=1", "lora.lora_alpha=1", "lora.target_modules=[q_proj, v_proj]")


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The stored checkpoint, in a place that may be written."""
    return Path(shutil.copytree(FORM_1, tmp_path / "step-00000004"))


def test_the_stored_checkpoint_is_whole(earlier: Path) -> None:
    found = read(earlier)
    assert found.step == 4
    assert found.binding["versions"]["tunesmith"] == "0.1.0"


def test_it_is_gone_on_from_or_refused_by_name(workshop: Workshop, earlier: Path) -> None:
    refused = workshop.train(*SETTINGS, more=("--resume", str(earlier)))
    if refused.code != ExitCode.DONE:
        # The versions, the base or the machine are others than those it was made with: each is named.
        assert refused.code == ExitCode.USER, refused.said
        assert "was made otherwise: " in refused.said
        assert "--allow-drift" in refused.said
        done = workshop.train(*SETTINGS, more=("--resume", str(earlier), "--allow-drift"))
        assert done.code == ExitCode.DONE, done.said
        assert "goes on after step 4" in done.said
    assert list((workshop.root / "runs").glob("*/adapter/adapter_model.safetensors"))


def test_a_form_of_later_versions_is_refused_with_its_number(earlier: Path) -> None:
    manifest = read_json(earlier / "manifest.json")
    del manifest["seal"]
    manifest["schema"] = 2
    write_json(earlier / "manifest.json", {**manifest, "seal": sha256_json(manifest)})
    with pytest.raises(UserError, match="was written in form 2, this version reads form 1"):
        read(earlier)
