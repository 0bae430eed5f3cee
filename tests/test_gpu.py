"""What only a CUDA device can show. Without one these are skipped, and the reason is printed."""

from pathlib import Path

import pytest
import torch

from tests.conftest import Tunesmith
from tunesmith import hardware
from tunesmith.files import read_json

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def test_a_gpu_is_found_with_its_memory() -> None:
    found = hardware.look()
    assert found.device == "cuda"
    assert found.memory_gib > 1


@pytest.mark.parametrize("recipe", ["smoke", "smoke-qlora"])
def test_the_line_reaches_a_verdict_on_a_gpu(tunesmith: Tunesmith, project: Path, recipe: str) -> None:
    done = tunesmith("run", recipe)
    assert done.returncode in {0, 10, 11}, done.stderr
    (path,) = (project / "runs").glob(f"{recipe}-*/verdict.json")
    verdict = read_json(path)
    assert all(term["pass"] for term in verdict["terms"] if term["kind"] == "integrity")
    assert verdict["arms"]["adapter"]["exact_match"]["mean"] > 0.3
