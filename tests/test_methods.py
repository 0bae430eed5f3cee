"""A method that would not work from the first step to the merged model is refused where the recipe asks for it."""

from pathlib import Path

import pytest

from tunesmith.errors import UserError
from tunesmith.methods import INITS, REFUSED, init_name
from tunesmith.recipe import load_recipe
from tunesmith.upstream import fields


def refusal(root: Path, *sets: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe("smoke", root=root, sets=sets)
    return str(caught.value)


WRONG = {
    "corda": (["lora.init_lora_weights=corda"], "lora.init_lora_weights: not supported: peft needs covariances"),
    "lora_ga": (["lora.init_lora_weights=lora_ga"], "without gradients collected first peft falls back to plain LoRA"),
    "a misspelt one": (["lora.init_lora_weights=Pissa"], "'Pissa' is none of true, gaussian, orthogonal, mica, eva"),
    "pissa without iterations": (["lora.init_lora_weights=pissa_niter_"], "'pissa_niter_' is none of"),
    "our own word": (["lora.init_lora_weights=default"], "'default' is none of"),
    "a random start": (["lora.init_lora_weights=false"], "changes the base before it has learned"),
    "pissa on 4 bits": (
        ["lora.init_lora_weights=pissa_niter_4", "quantization=nf4"],
        "'pissa_niter_4' goes with `quantization: none` only: it needs the base's weights unquantised",
    ),
    "olora on 4 bits": (["lora.init_lora_weights=olora", "quantization=nf4"], "goes with `quantization: none` only"),
    "loftq on none": (["lora.init_lora_weights=loftq"], "'loftq' goes with `quantization: nf4` only"),
    "loftq set": (["lora.loftq_config={loftq_bits: 2}"], "lora.loftq_config: not supported: LoftQ is one step"),
    "odd and orthogonal": (["lora.init_lora_weights=orthogonal", "lora.r=7"], "'orthogonal' needs even ranks"),
    "odd in a pattern": (
        ["lora.init_lora_weights=orthogonal", "lora.rank_pattern={q_proj: 3}"],
        "'orthogonal' needs even ranks",
    ),
    "mica and dora": (
        ["lora.init_lora_weights=mica", "lora.use_dora=true"],
        "lora.use_dora: does not go with `init_lora_weights: mica`",
    ),
    "eva's section alone": (["lora.eva_config={rho: 1.5}"], "lora.eva_config: has no effect without"),
    "eva's section misspelt": (
        ["lora.init_lora_weights=eva", "lora.eva_config={roh: 1.5}"],
        "lora.eva_config.roh: unknown key; did you mean `rho`?",
    ),
    "eva's section out of range": (
        ["lora.init_lora_weights=eva", "lora.eva_config={rho: 0.5}"],
        "lora.eva_config.rho: 0.5 is out of range",
    ),
    "eva's mask": (
        ["lora.init_lora_weights=eva", "lora.eva_config={label_mask_value: 0}"],
        "lora.eva_config.label_mask_value: set by the toolkit",
    ),
    "eva's section no section": (["lora.init_lora_weights=eva", "lora.eva_config=2"], "must be a section"),
    "a rank that is none": (["lora.rank_pattern={q_proj: 4.5}"], "lora.rank_pattern: 4.5 is no rank"),
    "an alpha that is none": (["lora.alpha_pattern={q_proj: 0}"], "lora.alpha_pattern: 0 is no alpha"),
    "a token twice": (["lora.trainable_token_indices=[3, 3]"], "lora.trainable_token_indices: names a token twice"),
    "a token that is none": (["lora.trainable_token_indices={embed_tokens: [-1]}"], "[-1] is no list of token ids"),
    "tying nothing": (["lora.ensure_weight_tying=true"], "lora.ensure_weight_tying: has no effect without"),
    "parameters and eva": (
        ["lora.init_lora_weights=eva", "lora.target_parameters=[mlp.gate_proj.weight]"],
        "'eva' knows modules only",
    ),
    "a ratio below one": (["lora_plus_ratio=0.5"], "lora_plus_ratio: input should be greater than or equal to 1"),
    "a ratio without b": (
        ["lora_plus_ratio=4", "lora.init_lora_weights=mica"],
        "lora_plus_ratio: has no effect with `init_lora_weights: mica`",
    ),
    "a ratio of groups": (
        ["lora_plus_ratio=4", "trainer.optim=galore_adamw"],
        "does not go with `trainer.optim: galore",
    ),
    "no noise": (["trainer.neftune_noise_alpha=0"], "trainer.neftune_noise_alpha: 0 is out of range; must be above 0"),
}


@pytest.mark.parametrize(("sets", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_would_not_work_is_refused(repository: Path, sets: list[str], message: str) -> None:
    found = refusal(repository, *sets)
    assert message in found
    assert found.startswith("--set: ")


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_leads_nowhere_is_refused_and_is_there_to_be_refused(repository: Path, key: str) -> None:
    assert key in fields("lora")
    assert f"lora.{key}: not supported: {REFUSED[key]}" in refusal(repository, f"lora.{key}=all")


def test_a_problem_of_method_names_its_line(tmp_path: Path, repository: Path) -> None:
    text = (repository / "recipes" / "smoke.yaml").read_text().replace("  r: 16\n", "  r: 16\n  use_qalora: true\n")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "smoke.yaml").write_text(text)
    line = text.splitlines().index("  use_qalora: true") + 1
    assert f"recipes/smoke.yaml:{line}: lora.use_qalora: not supported: peft has QALoRA" in refusal(tmp_path)


GOOD = ["true", *(name for name in INITS if name not in ("default", "loftq")), "pissa_niter_16"]


@pytest.mark.parametrize("init", GOOD)
def test_every_init_of_the_table_is_taken(repository: Path, init: str) -> None:
    recipe = load_recipe("smoke", root=repository, sets=[f"lora.init_lora_weights={init}"]).recipe
    assert init_name(recipe.lora) == {"true": "default", "pissa_niter_16": "pissa"}.get(init, init)


def test_every_init_that_peft_names_is_taken_or_refused_by_name(repository: Path) -> None:
    annotation = fields("lora")["init_lora_weights"].annotation
    for init in ("gaussian", "eva", "olora", "pissa", "corda", "loftq", "orthogonal", "mica"):
        assert f"'{init}'" in annotation
    assert annotation.count("'") == 2 * 9, "peft has come to take another: decide on it in tunesmith.methods"


def test_a_key_that_asks_for_nothing_is_no_problem(repository: Path) -> None:
    sets = ["lora.bias=none", "lora.modules_to_save=null", "lora.lora_bias=false", "lora.use_qalora=false"]
    assert load_recipe("smoke", root=repository, sets=sets).recipe.lora["bias"] == "none"
