"""The quickstart notebook runs from top to bottom on the tiny base; only its install cell is left out."""

import os
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.test_line import shorten


def test_the_quickstart_runs_and_shows_curve_and_verdict(
    project: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECIPE", "smoke")
    # The shell cells call `tunesmith` and `python`: those of the environment under test.
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    shutil.copytree(repository / "notebooks", project / "notebooks")
    shorten(project / "recipes" / "smoke.yaml")
    notebook = nbformat.read(project / "notebooks" / "quickstart.ipynb", as_version=4)
    installs = [cell for cell in notebook.cells if "install" in cell.metadata.get("tags", [])]
    assert len(installs) == 1
    notebook.cells.remove(installs[0])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(project)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    text = "".join(output.get("text", "") for output in outputs)
    assert len(images) == 2
    assert "SHIP" in text
    assert (project / "dist" / "smoke-0.1.0" / "manifest.json").is_file()
