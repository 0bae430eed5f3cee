"""What is looked at while the arms answer is seen to be wrong where it is."""

from pathlib import Path

import pytest
import torch

from tunesmith import adapters, findings
from tunesmith.adapters import verify
from tunesmith.errors import EnvironmentFault
from tunesmith.evaluate import generate, stage
from tunesmith.files import read_json
from tunesmith.line import Line


@pytest.fixture
def line(project: Path) -> Line:
    line = Line("smoke", sets=["trainer.max_steps=4", "trainer.warmup_steps=0", "trainer.learning_rate=0.01"])
    line.curate()
    return line


def test_rows_that_read_their_padding_are_seen(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    model = stage.load_base(line.arena)
    assert stage.padding(model, line.arena).status == "PASS"
    real = generate.Slots
    monkeypatch.setattr(
        generate,
        "Slots",
        lambda cache, ids, positions, mask, once: real(cache, ids, positions, torch.ones_like(mask), once),
    )
    found = stage.padding(model, line.arena)
    assert (found.status, found.faults) == ("FAIL", (20,))


def test_an_adapter_on_another_base_is_seen_even_where_its_loader_is_silent(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.check()
    line.baseline()
    line.train()
    other = {"name": "other", "digest": "0" * 64}
    with monkeypatch.context() as patch:
        patch.setattr(adapters, "verify", lambda *args, **options: {**verify(*args, **options), "base": other})
        with pytest.raises(EnvironmentFault, match="`the base of the adapter` fails: trained on 000000000000"):
            line.evaluate()
    line.evaluate()
    found = {one["name"]: one["status"] for one in read_json(line.run.path(findings.FILES["evaluate"]))["checks"]}
    assert found["the base of the adapter"] == found["padding"] == found["adapter at work"] == "PASS"
