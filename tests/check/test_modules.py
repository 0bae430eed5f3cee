"""What an adapter would change of a base is known before a weight is loaded, and a run that would miss it stops."""

from pathlib import Path
from typing import Any

import pytest

from tunesmith.bases import Base
from tunesmith.check.modules import adapted_modules
from tunesmith.errors import UserError
from tunesmith.files import read_json
from tunesmith.line import Line

LORA: dict[str, Any] = {"r": 8, "lora_alpha": 8, "target_modules": "all-linear"}


def test_it_finds_what_peft_adapts_on_the_model_itself(tiny_base: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    base = Base("tiny", tiny_base, "", {})
    model = get_peft_model(base.model(dtype=torch.float32), LoraConfig(task_type="CAUSAL_LM", **LORA))
    real = {name for name, module in model.get_base_model().named_modules() if isinstance(module, LoraLayer)}
    found = adapted_modules(base, LORA)
    assert {f"model.layers.{layer}.{name}" for layer, names in found.by_layer.items() for name in names} == real
    assert found.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.frozen == sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert found.vocabulary == model.get_input_embeddings().weight.shape[0]


# The settings, the check that speaks, its status, and what it says.
SETTINGS: dict[str, tuple[list[str], str, str, str]] = {
    "a layer without an adapter": (
        [r"lora.target_modules='.*\.0\..*_proj'"],
        "target modules",
        "FAIL",
        "7 modules in 1 of 2 layers",
    ),
    "nothing of that name": (["lora.target_modules=[nope]"], "target modules", "FAIL", "not found in the base"),
    "a layer left out on purpose": (
        ["lora.target_modules=[q_proj]", "lora.layers_to_transform=[1]"],
        "even layers",
        "WARN",
        "they differ",
    ),
    "more in one layer than in another": (
        [r"lora.target_modules='.*(\.0\..*_proj|q_proj)'"],
        "even layers",
        "WARN",
        "they differ",
    ),
    "a head that is tied": (["lora.target_modules=[q_proj, lm_head]"], "tied embeddings", "FAIL", "lm_head adapted"),
}


@pytest.mark.parametrize(("sets", "name", "status", "says"), SETTINGS.values(), ids=SETTINGS.keys())
def test_the_check_speaks_of_what_the_settings_miss(
    project: Path, sets: list[str], name: str, status: str, says: str
) -> None:
    line = Line("smoke", sets=sets)
    line.curate()
    if status == "FAIL":
        with pytest.raises(UserError, match=f"check `{name}` fails"):
            line.check()
    else:
        line.check()
    (finding,) = [one for one in read_json(line.run.path("check.json"))["checks"] if one["name"] == name]
    assert (finding["status"], says in finding["evidence"]) == (status, True), finding
