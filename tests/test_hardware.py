import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import UserError
from tunesmith.hardware import Hardware, Profile, choose, look
from tunesmith.recipe import Recipe

CPU = Hardware("cpu", "cpu", memory_gib=16, cores=4, bf16=False, triton=False)
CPU_BF16 = Hardware("cpu", "cpu", memory_gib=16, cores=4, bf16=True, triton=False)
T4 = Hardware("cuda", "Tesla T4", memory_gib=14.6, cores=4, bf16=False, triton=True)
A100 = Hardware("cuda", "NVIDIA A100", memory_gib=79.2, cores=16, bf16=True, triton=True)


def recipe(*, batch=8, accumulation=None, checkpointing=None, dtype="auto", batch_tokens=None, share_prefixes=True):
    trainer = {"learning_rate": 1e-3, "num_train_epochs": 1, "per_device_train_batch_size": batch}
    if accumulation is not None:
        trainer["gradient_accumulation_steps"] = accumulation
    if checkpointing is not None:
        trainer["gradient_checkpointing"] = checkpointing
    return Recipe.model_validate(
        {
            "name": "toy",
            "base": "tiny",
            "data": {"directory": "d", "schema": "s", "max_tokens": 256},
            "lora": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
            "trainer": trainer,
            "hardware": {"dtype": dtype, "batch_tokens": batch_tokens, "share_prefixes": share_prefixes},
            "arms": {"max_new_tokens": 8},
            "gate": {"min_gain": 0.1},
        }
    )


SMALL = {"longest_row": 200, "base_gib_fp32": 0.5}

# hardware, recipe, row and base -> dtype, checkpointing, rows in one pass, passes in one step
TABLE = {
    "CPU": (CPU, recipe(), SMALL, ("float32", False, 8, 1)),
    "CPU with bfloat16 units": (CPU_BF16, recipe(), SMALL, ("float32", False, 8, 1)),
    "T4": (T4, recipe(), SMALL, ("float16", False, 8, 1)),
    "A100": (A100, recipe(), SMALL, ("bfloat16", False, 8, 1)),
    "dtype of the recipe on a CPU": (CPU, recipe(dtype="bfloat16"), SMALL, ("bfloat16", False, 8, 1)),
    "dtype of the recipe on a T4": (T4, recipe(dtype="float32"), SMALL, ("float32", False, 8, 1)),
    "dtype of the recipe on an A100": (A100, recipe(dtype="float16"), SMALL, ("float16", False, 8, 1)),
    "big base on a T4": (T4, recipe(), {"longest_row": 200, "base_gib_fp32": 12}, ("float16", True, 8, 1)),
    "big base on an A100": (A100, recipe(), {"longest_row": 200, "base_gib_fp32": 12}, ("bfloat16", False, 8, 1)),
    "big base on a CPU": (CPU, recipe(), {"longest_row": 200, "base_gib_fp32": 6}, ("float32", True, 8, 1)),
    "checkpointing stated with room": (A100, recipe(checkpointing=True), SMALL, ("bfloat16", True, 8, 1)),
    "no checkpointing stated without room": (
        T4,
        recipe(checkpointing=False),
        {"longest_row": 200, "base_gib_fp32": 12},
        ("float16", False, 8, 1),
    ),
    "long rows on a CPU": (CPU, recipe(), {"longest_row": 1000, "base_gib_fp32": 0.5}, ("float32", False, 2, 4)),
    "long rows on an A100": (A100, recipe(), {"longest_row": 1000, "base_gib_fp32": 0.5}, ("bfloat16", False, 8, 1)),
    "row longer than the budget": (
        CPU,
        recipe(),
        {"longest_row": 9000, "base_gib_fp32": 0.5},
        ("float32", False, 1, 8),
    ),
    "tokens of the recipe": (A100, recipe(batch_tokens=400), SMALL, ("bfloat16", False, 2, 4)),
    "accumulation of the recipe": (CPU, recipe(accumulation=3), SMALL, ("float32", False, 8, 3)),
    "accumulation is joined where it fits": (
        CPU,
        recipe(batch=2, accumulation=4),
        {"longest_row": 100, "base_gib_fp32": 0.5},
        ("float32", False, 8, 1),
    ),
    "biggest batch that a recipe may state": (
        CPU,
        recipe(batch=65536, accumulation=65536),
        SMALL,
        ("float32", False, 8, 2**29),
    ),
    "batch of a prime": (CPU, recipe(batch=7, batch_tokens=1200), SMALL, ("float32", False, 1, 7)),
}


@pytest.mark.parametrize(("hardware", "wanted", "size", "chosen"), TABLE.values(), ids=TABLE.keys())
def test_a_machine_and_a_recipe_give_this_profile(hardware, wanted, size, chosen):
    profile = choose(hardware, wanted, **size)
    assert profile.device == hardware.device
    assert (profile.dtype, profile.gradient_checkpointing, profile.rows_per_pass, profile.accumulation) == chosen
    assert profile.reasons.keys() == {"dtype", "gradient_checkpointing", "share_prefixes", "rows_per_pass"}
    assert all(profile.reasons.values())


def test_each_choice_tells_its_reason():
    assert choose(CPU, recipe(), **SMALL).reasons == {
        "dtype": "on a CPU answers then do not depend on the batch; it would emulate bfloat16",
        "gradient_checkpointing": "15.5 GiB are free for it",
        "share_prefixes": "what rows of a batch begin with is computed once, with the same gradients",
        "rows_per_pass": "8 rows a step, at most 2048 tokens a pass, longest row 200",
    }
    wanted = recipe(dtype="float32", checkpointing=True, batch_tokens=100)
    assert choose(A100, wanted, **SMALL).reasons == {
        "dtype": "the recipe says so",
        "gradient_checkpointing": "the recipe says so",
        "share_prefixes": "under gradient checkpointing the model keeps no cache to share",
        "rows_per_pass": "8 rows a step, at most 100 tokens a pass, longest row 200",
    }
    short = choose(T4, recipe(), longest_row=200, base_gib_fp32=12).reasons
    assert short["dtype"] == "this GPU has no bfloat16 units"
    assert short["gradient_checkpointing"] == "memory is short: 8.6 GiB beside the base"


def test_shared_tokens_are_counted_once():
    long = {"longest_row": 1000, "base_gib_fp32": 0.5, "shared_tokens": 900}
    shared = choose(CPU, recipe(), **long)
    assert (shared.share_prefixes, shared.rows_per_pass, shared.accumulation) == (True, 8, 1)
    assert shared.reasons["rows_per_pass"].endswith("longest row 1000, of which 900 shared")
    apart = choose(CPU, recipe(share_prefixes=False), **long)
    assert (apart.share_prefixes, apart.rows_per_pass, apart.accumulation) == (False, 2, 4)
    assert apart.reasons["share_prefixes"] == "the recipe says so"


@settings(deadline=None)
@given(
    hardware=st.sampled_from([CPU, CPU_BF16, T4, A100]),
    batch=st.integers(1, 300),
    accumulation=st.none() | st.integers(1, 20),
    batch_tokens=st.none() | st.integers(1, 100_000),
    longest_row=st.integers(1, 20_000),
    base_gib_fp32=st.floats(0, 500),
    processes=st.integers(1, 9),
)
def test_the_cut_never_changes_the_rows_of_a_step(
    hardware, batch, accumulation, batch_tokens, longest_row, base_gib_fp32, processes
):
    wanted = recipe(batch=batch, accumulation=accumulation, batch_tokens=batch_tokens)
    size = {"longest_row": longest_row, "base_gib_fp32": base_gib_fp32, "processes": processes}
    if batch * (accumulation or 1) % processes:
        with pytest.raises(UserError, match=f"cannot be divided evenly among {processes} processes"):
            choose(hardware, wanted, **size)
        return
    profile = choose(hardware, wanted, **size)
    assert profile.rows_per_pass * profile.accumulation * processes == batch * (accumulation or 1)
    # One row always goes through; more only within the budget.
    if batch_tokens is not None:
        assert profile.rows_per_pass == 1 or profile.rows_per_pass * longest_row <= batch_tokens


def test_a_look_at_this_machine_gives_a_profile():
    import torch

    found = look()
    assert found.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert found.cores >= 1
    assert 0.1 < found.memory_gib < 100_000
    assert choose(found, recipe(), **SMALL).torch_dtype in {torch.float32, torch.float16, torch.bfloat16}


def test_a_profile_names_torchs_dtype():
    import torch

    assert Profile("cpu", "bfloat16", False, 1, 1, True).torch_dtype is torch.bfloat16
