"""What a recipe may say of preference tuning: nothing that trl would take and not act on."""

import re

import jsonschema
import pytest
import trl
from trl.trainer.dpo_trainer import DPOTrainer

from tests.test_recipe import RECIPE, refusal, write  # noqa: F401 - a fixture
from tunesmith import preferences, upstream
from tunesmith.recipe import load_recipe, recipe_json_schema
from tunesmith.reserved import RESERVED
from tunesmith.yaml_source import read_yaml

DPO = [
    "trainer.kind=dpo",
    "after=other",
]


def test_the_keys_of_dpo_go_to_trl_as_they_stand(write):  # noqa: F811
    sets = [*DPO, "trainer.beta=0.2", "trainer.loss_type=[robust, sft]", "trainer.label_smoothing=0.1"]
    recipe = load_recipe("toy", root=write("toy", RECIPE), sets=sets).recipe
    assert (recipe.kind, recipe.after) == ("dpo", "other")
    assert recipe.trainer_keys == {key: value for key, value in recipe.trainer.items() if key != "kind"}
    args = trl.DPOConfig(**recipe.trainer_keys, output_dir="x", use_cpu=True, bf16=False)
    assert (args.beta, args.loss_type, args.label_smoothing) == (0.2, ["robust", "sft"], 0.1)


def test_without_a_kind_training_imitates_and_nothing_of_the_recipe_changes(write):  # noqa: F811
    recipe = load_recipe("toy", root=write("toy", RECIPE)).recipe
    assert recipe.kind == "sft"
    assert recipe.trainer == recipe.trainer_keys
    assert (
        load_recipe("toy", root=write("toy", RECIPE), sets=["trainer.kind=sft"]).recipe.trainer_keys == recipe.trainer
    )


REFUSED = {
    "no such kind": (["trainer.kind=ppo"], "--set: trainer.kind: 'ppo' is none of sft, dpo"),
    "a kind that is no word": (["trainer.kind=[dpo]"], "--set: trainer.kind: ['dpo'] is none of sft, dpo"),
    "nothing to begin from": (
        DPO[:1],
        "--set: trainer.kind: dpo begins from an adapter; name the recipe or the run as `after`",
    ),
    "a beginning for sft": (
        DPO[1:],
        "--set: after: only `trainer.kind: dpo` begins from an adapter; leave it out, or state the kind",
    ),
    "itself": (
        ["trainer.kind=dpo", "after=toy"],
        "--set: after: 'toy' is this recipe itself; name the one whose adapter this begins from",
    ),
    "a key of dpo for sft": (
        ["trainer.beta=0.1"],
        "--set: trainer.beta: unknown key under `kind: sft`, only trl.DPOConfig has it; ",
    ),
    "a key of sft for dpo": (
        [*DPO, "trainer.assistant_only_loss=true"],
        "--set: trainer.assistant_only_loss: set by the toolkit; ",
    ),
    "a typo": ([*DPO, "trainer.beat=0.1"], "--set: trainer.beat: unknown key; did you mean `beta`?"),
    "a typo of ours": ([*DPO, "trainer.kinds=dpo"], "--set: trainer.kinds: unknown key; did you mean `kind`?"),
    "another type": ([*DPO, "trainer.loss_type=ipo"], "--set: trainer.loss_type: 'ipo' is not list[str]"),
    "no such loss": (
        [*DPO, "trainer.loss_type=[sigmoid, dpo]"],
        "--set: trainer.loss_type: 'dpo' is none of sigmoid, ",
    ),
    "no such divergence": (
        [*DPO, "trainer.f_divergence_type=kl"],
        "--set: trainer.f_divergence_type: 'kl' is none of reverse_kl, ",
    ),
    "smoothing that the loss does not read": (
        [*DPO, "trainer.label_smoothing=0.1"],
        "--set: trainer.label_smoothing: does nothing unless trainer.loss_type holds aot or aot_unpaired or ",
    ),
    "smoothing of a half": (
        [*DPO, "trainer.loss_type=[robust]", "trainer.label_smoothing=0.5"],
        "--set: trainer.label_smoothing: 0.5 is out of range; must be at least 0, at most 0.49",
    ),
    "a coefficient of another divergence": (
        [*DPO, "trainer.f_alpha_divergence_coef=0.3"],
        "--set: trainer.f_alpha_divergence_coef: does nothing unless trainer.f_divergence_type holds alpha_divergence",
    ),
    "dropout": (
        [*DPO, "lora.lora_dropout=0.1"],
        "--set: lora.lora_dropout: does nothing under kind: dpo, where trl switches dropout off; set it to 0",
    ),
    "no beta": ([*DPO, "trainer.beta=0"], "--set: trainer.beta: 0 is out of range; must be above 0, at most 100"),
    "another reference": (
        [*DPO, "trainer.sync_ref_model=true"],
        "--set: trainer.sync_ref_model: set by the toolkit; the adapter named by `after` stays the reference, as it is",
    ),
    "trl's smoothing of labels": (
        [*DPO, "trainer.label_smoothing_factor=0.1"],
        "--set: trainer.label_smoothing_factor: set by the toolkit; trl reads no labels here; ",
    ),
}


@pytest.mark.parametrize(("sets", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_meant_is_refused(write, sets, message):  # noqa: F811
    text = refusal(write("toy", RECIPE), sets=sets)
    assert text.startswith(message)
    assert "\n" not in text


def test_the_losses_and_divergences_are_those_that_trl_names():
    help_of = {name: field.metadata["help"] for name, field in trl.DPOConfig.__dataclass_fields__.items()}
    assert set(re.findall(r"`'(\w+)'`", help_of["loss_type"])) == set(preferences.LOSSES)
    told = help_of["f_divergence_type"].partition("Possible values are:")[2].partition(".")[0]
    assert set(re.findall(r"`(\w+)`", told)) == set(preferences.DIVERGENCES)


def test_what_is_reserved_and_what_has_its_place_are_keys_of_trl():
    known = set(upstream.fields("dpo"))
    assert set(preferences.RESERVED) <= known
    assert set(preferences.READ_BY) <= known
    # All else that DPOConfig has of its own may be said.
    own = known - set(upstream.fields("trainer")) - set(preferences.RESERVED) - set(RESERVED["trainer"])
    assert own == {
        "beta",
        "loss_weights",
        "ld_alpha",
        "f_divergence_type",
        "f_alpha_divergence_coef",
        "label_smoothing",
        "use_weighting",
        "discopop_tau",
    }


def test_trl_reads_label_smoothing_in_the_losses_that_we_let_it_be_said_for():
    import inspect

    parts = re.split(r"(?:el)?if loss_type == ", inspect.getsource(DPOTrainer._compute_loss))[1:]
    reading = {part.split('"')[1] for part in parts if "self.label_smoothing" in part}
    assert reading == preferences.READ_BY["label_smoothing"][1]


def test_the_json_schema_takes_both_kinds(write):  # noqa: F811
    values = read_yaml(write("toy", RECIPE) / "recipes" / "toy.yaml", "toy").values
    validator = jsonschema.Draft202012Validator(recipe_json_schema())
    values["trainer"] |= {"kind": "dpo", "beta": 0.1}
    values["after"] = "other"
    assert list(validator.iter_errors(values)) == []
    values["trainer"]["kind"] = "ppo"
    assert not validator.is_valid(values)
