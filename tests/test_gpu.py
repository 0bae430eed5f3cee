"""What only a CUDA device can show. Without one these are skipped, and the reason is printed."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.conftest import as_a_user
from tunesmith import hardware
from tunesmith.files import read_json
from tunesmith.prompt import Rendered
from tunesmith.train.loss import gradient_error
from tunesmith.train.opening import TOLERANCE
from tunesmith.train.tree import Limits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def test_a_gpu_is_found_with_its_memory() -> None:
    found = hardware.look()
    assert found.device == "cuda"
    assert found.memory_gib > 1


@pytest.mark.parametrize("recipe", ["smoke", "smoke-qlora"])
def test_the_line_reaches_a_verdict_on_a_gpu(project: Path, recipe: str) -> None:
    done = as_a_user(project, "run", recipe)
    assert done.code in {0, 10, 11}, done.err
    (path,) = (project / "runs").glob(f"{recipe}-*/verdict.json")
    verdict = read_json(path)
    assert all(term["pass"] for term in verdict["terms"] if term["kind"] == "integrity")
    assert verdict["arms"]["adapter"]["exact_match"]["mean"] > 0.3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gradients_through_a_shared_beginning_are_those_of_rows_alone(dtype: str) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=997, hidden_size=256, intermediate_size=512, num_hidden_layers=4)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).cuda()
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter, dtype=torch.float32) * 0.05
    head = torch.randint(1, 997, (200,)).tolist()
    rows = [Rendered(head + torch.randint(1, 997, (9 + n,)).tolist(), [5, 6, 7], ends=True) for n in range(2)]
    with torch.autocast("cuda", getattr(torch, dtype), enabled=dtype != "float32"):
        assert gradient_error(adapted, rows, Limits()) < TOLERANCE[dtype]
