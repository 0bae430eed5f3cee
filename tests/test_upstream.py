import dataclasses
import subprocess
import sys

import peft
import pytest
import trl
from peft.config import PeftConfigMixin

from tunesmith import upstream

REAL = {"lora": peft.LoraConfig, "trainer": trl.SFTConfig, "dpo": trl.DPOConfig}

# Fields of the mixin under PeftConfig, which `upstream` leaves out: peft fills them in itself when it saves.
PEFT_OWN = {"auto_mapping", "peft_version"}


def defaults(section):
    found = {}
    for field in dataclasses.fields(REAL[section]):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


def test_the_keys_of_lora_are_the_fields_of_lora_config():
    names = {field.name for field in dataclasses.fields(peft.LoraConfig) if field.init}
    assert names > PEFT_OWN
    assert set(upstream.fields("lora")) == names - PEFT_OWN
    of_the_mixin = {field.name for field in dataclasses.fields(PeftConfigMixin)}
    assert set(upstream.fields("lora")) & of_the_mixin == {"peft_type", "task_type"}


@pytest.mark.parametrize("section", ["trainer", "dpo"])
def test_the_keys_of_trainer_are_the_fields_of_trls_config(section):
    assert set(upstream.fields(section)) == {field.name for field in dataclasses.fields(REAL[section]) if field.init}


@pytest.mark.parametrize("section", REAL)
def test_every_plain_default_of_upstream_is_allowed(section):
    plain = {k: v for k, v in defaults(section).items() if type(v) in {bool, int, float, str, type(None)}}
    known = upstream.fields(section)
    assert len(plain) > 25
    assert {k: known[k].problem(v) for k, v in plain.items() if k in known and known[k].problem(v)} == {}


@pytest.mark.parametrize("section", REAL)
def test_only_keys_that_take_an_object_of_upstream_go_unchecked(section):
    unchecked = {name for name, field in upstream.fields(section).items() if field.adapter is None}
    expected = {
        "lora": {
            "arrow_config",
            "corda_config",
            "eva_config",
            "kasa_config",
            "lora_ga_config",
            "monteclora_config",
            "runtime_config",
            "use_bdlora",
        },
        "trainer": {"parallelism_config"},
        "dpo": {"parallelism_config"},
    }
    assert unchecked == expected[section]


WRONG = [
    ("lora", "r", 8.5, "8.5 is not int"),
    ("lora", "r", "8", "'8' is not int"),
    ("lora", "r", True, "True is not int"),
    ("lora", "r", None, "None is not int"),
    ("lora", "lora_dropout", "0.1", "'0.1' is not float"),
    ("lora", "use_rslora", 1, "1 is not bool"),
    ("lora", "use_dora", "no", "'no' is not bool"),
    ("lora", "bias", "lora", "'lora' is not Literal['none', 'all', 'lora_only']"),
    ("lora", "target_modules", 3, "3 is not Optional[Union[list[str], str]]"),
    ("lora", "rank_pattern", [1], "[1] is not Optional[dict]"),
    ("trainer", "learning_rate", "2e-4", "'2e-4' is not float"),
    ("trainer", "num_train_epochs", "two", "'two' is not float"),
    ("trainer", "per_device_train_batch_size", 8.0, "8.0 is not int"),
    ("trainer", "lr_scheduler_type", 3, "3 is not SchedulerType | str"),
    ("trainer", "gradient_checkpointing", "yes", "'yes' is not bool"),
    ("trainer", "gradient_checkpointing_kwargs", [1], "[1] is not dict[str, Any] | str | None"),
    ("trainer", "max_steps", None, "None is not int"),
]


@pytest.mark.parametrize(("section", "key", "value", "problem"), WRONG)
def test_a_value_of_the_wrong_type_is_refused(section, key, value, problem):
    assert upstream.fields(section)[key].problem(value) == problem


RIGHT = [
    ("lora", "lora_dropout", 0),
    ("lora", "target_modules", "all-linear"),
    ("lora", "target_modules", ["q_proj", "v_proj"]),
    ("lora", "init_lora_weights", False),
    ("lora", "init_lora_weights", "pissa_niter_16"),
    ("lora", "layer_replication", [[0, 4], [2, 5]]),
    ("lora", "rank_pattern", {"q_proj": 4}),
    ("trainer", "num_train_epochs", 3),
    ("trainer", "lr_scheduler_type", "cosine"),
    ("trainer", "warmup_steps", 0.1),
    ("trainer", "optim_target_modules", ["q_proj"]),
]


@pytest.mark.parametrize(("section", "key", "value"), RIGHT)
def test_a_value_that_yaml_can_say_is_allowed(section, key, value):
    assert upstream.fields(section)[key].problem(value) is None


def test_fields_are_read_without_importing_the_packages():
    heavy = ("torch", "transformers", "peft", "trl")
    code = (
        "import sys; from tunesmith import recipe, upstream; "
        "assert 'r' in upstream.fields('lora') and 'max_steps' in upstream.fields('trainer'); "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
