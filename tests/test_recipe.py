import os

import jsonschema
import pytest

from tunesmith.errors import UserError
from tunesmith.recipe import load_recipe, recipe_json_schema
from tunesmith.yaml_source import read_yaml

RECIPE = """\
name: toy
base: tiny
data:
  directory: data/toy
  schema: data/toy/schema.json
  max_tokens: 64
lora:
  r: 16
  lora_alpha: 32
  target_modules: all-linear
trainer:
  learning_rate: 2e-4
  num_train_epochs: 2
  per_device_train_batch_size: 8
arms:
  max_new_tokens: 24
gate:
  min_gain: 0.05
"""


@pytest.fixture
def write(tmp_path):
    """Write recipes/<name>.yaml into a project that has the schema file."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "data" / "toy").mkdir(parents=True)
    (tmp_path / "data" / "toy" / "schema.json").write_text('{"type": "object"}')

    def recipe(name, text):
        (tmp_path / "recipes" / f"{name}.yaml").write_text(text)
        return tmp_path

    return recipe


def refusal(root, name="toy", sets=()):
    with pytest.raises(UserError) as refused:
        load_recipe(name, root=root, sets=sets)
    return refused.value.text


LORA_KEYS = (
    "alora_invocation_tokens, alpha_pattern, arrow_config, bias, corda_config, ensure_weight_tying, eva_config, "
    "exclude_modules, fan_in_fan_out, init_lora_weights, kasa_config, layer_replication"
)

BROKEN = {
    "typo at the top": (
        "base: tiny",
        "base: tiny\nsead: 1",
        "recipes/toy.yaml:3: sead: unknown key; did you mean `seed`?",
    ),
    "key like no other at the top": (
        "base: tiny",
        "base: tiny\nxyzzy: 1",
        "recipes/toy.yaml:3: xyzzy: unknown key; known keys: after, arms, base, checkpoints, cost, curate, data, "
        "description, dev, export, extends, gate",
    ),
    "typo in a section": (
        "  max_tokens: 64",
        "  max_tokens: 64\n  max_token: 64",
        "recipes/toy.yaml:7: data.max_token: unknown key; did you mean `max_tokens`?",
    ),
    "typo in lora": (
        "  r: 16",
        "  r: 16\n  lora_dropuot: 0.1",
        "recipes/toy.yaml:9: lora.lora_dropuot: unknown key; did you mean `lora_dropout`?",
    ),
    "key like no other in lora": (
        "  r: 16",
        "  r: 16\n  xyzzy: 0.1",
        f"recipes/toy.yaml:9: lora.xyzzy: unknown key; known keys: {LORA_KEYS}",
    ),
    "typo in trainer": (
        "  num_train_epochs: 2",
        "  num_train_epochs: 2\n  warmup_step: 10",
        "recipes/toy.yaml:14: trainer.warmup_step: unknown key; did you mean `warmup_steps`?",
    ),
    "word for a number": (
        "base: tiny",
        "base: tiny\nseed: nine",
        "recipes/toy.yaml:3: seed: input should be a valid integer, not 'nine'",
    ),
    "quoted number": (
        "  min_gain: 0.05",
        '  min_gain: "0.05"',
        "recipes/toy.yaml:18: gate.min_gain: input should be a valid number, not '0.05'",
    ),
    "scalar for a list": (
        "  max_new_tokens: 24",
        "  max_new_tokens: 24\n  few_shot: 3",
        "recipes/toy.yaml:17: arms.few_shot: input should be a valid list, not 3",
    ),
    "scalar for a section": (
        "gate:\n  min_gain: 0.05",
        "gate: 0.05",
        "recipes/toy.yaml:17: gate: input should be a valid dictionary or instance of GateSection, not 0.05",
    ),
    "scalar for lora": (
        "lora:\n  r: 16\n  lora_alpha: 32\n  target_modules: all-linear",
        "lora: 16",
        "recipes/toy.yaml:7: lora: input should be a valid dictionary, not 16",
    ),
    "no such choice": (
        "base: tiny",
        "base: tiny\nquantization: int4",
        "recipes/toy.yaml:3: quantization: input should be 'none' or 'nf4', not 'int4'",
    ),
    "bad name": (
        "name: toy",
        "name: Toy model",
        "recipes/toy.yaml:1: name: string should match pattern '^[a-z0-9][a-z0-9._-]{0,63}$', not 'Toy model'",
    ),
    "fraction for an integer of lora": ("  r: 16", "  r: 8.5", "recipes/toy.yaml:8: lora.r: 8.5 is not int"),
    "quoted integer of lora": ("  r: 16", '  r: "8"', "recipes/toy.yaml:8: lora.r: '8' is not int"),
    "boolean for an integer of lora": ("  r: 16", "  r: true", "recipes/toy.yaml:8: lora.r: True is not int"),
    "nothing for an integer of lora": ("  r: 16", "  r:", "recipes/toy.yaml:8: lora.r: None is not int"),
    "quoted learning rate": (
        "  learning_rate: 2e-4",
        '  learning_rate: "2e-4"',
        "recipes/toy.yaml:12: trainer.learning_rate: '2e-4' is not float",
    ),
    "rank of nothing": (
        "  r: 16",
        "  r: 0",
        "recipes/toy.yaml:8: lora.r: 0 is out of range; must be at least 1, at most 512",
    ),
    "alpha of nothing": (
        "  lora_alpha: 32",
        "  lora_alpha: 0",
        "recipes/toy.yaml:9: lora.lora_alpha: 0 is out of range; must be above 0, at most 4096",
    ),
    "dropout in per cent": (
        "  r: 16",
        "  r: 16\n  lora_dropout: 5.0",
        "recipes/toy.yaml:9: lora.lora_dropout: 5.0 is out of range; must be at least 0, at most 0.9",
    ),
    "learning rate that is not a number": (
        "  learning_rate: 2e-4",
        "  learning_rate: .nan",
        "recipes/toy.yaml:12: trainer.learning_rate: nan is out of range; must be above 0, at most 1",
    ),
    "gain in per cent": (
        "  min_gain: 0.05",
        "  min_gain: 5",
        "recipes/toy.yaml:18: gate.min_gain: input should be less than or equal to 1, not 5",
    ),
    "number of shots in a list": (
        "  max_new_tokens: 24",
        "  max_new_tokens: 24\n  few_shot:\n  - 3\n  - 0",
        "recipes/toy.yaml:19: arms.few_shot.1: input should be greater than or equal to 1, not 0",
    ),
    "key that is set elsewhere": (
        "  num_train_epochs: 2",
        "  num_train_epochs: 2\n  max_length: 512",
        "recipes/toy.yaml:14: trainer.max_length: set by the toolkit; use `data.max_tokens`",
    ),
    "key of lora that is set elsewhere": (
        "  r: 16",
        "  r: 16\n  task_type: SEQ_CLS",
        "recipes/toy.yaml:9: lora.task_type: set by the toolkit; the toolkit trains causal language models",
    ),
    "lora without rank": ("  r: 16\n", "", "recipes/toy.yaml:7: lora.r: missing; a recipe states it"),
    "trainer without learning rate": (
        "  learning_rate: 2e-4\n",
        "",
        "recipes/toy.yaml:11: trainer.learning_rate: missing; a recipe states it",
    ),
    "section without a required key": (
        "  max_tokens: 64\n",
        "",
        "recipes/toy.yaml:3: data.max_tokens: missing; a recipe states it",
    ),
    "no base": ("base: tiny\n", "", "recipes/toy.yaml: base: missing; a recipe states it"),
    "no lora": (
        "lora:\n  r: 16\n  lora_alpha: 32\n  target_modules: all-linear\n",
        "",
        "recipes/toy.yaml: lora: missing; a recipe states it",
    ),
    "missing schema file": (
        "schema: data/toy/schema.json",
        "schema: data/toy/shema.json",
        "recipes/toy.yaml:5: data.schema: no such file 'data/toy/shema.json'",
    ),
    "duplicate key": (
        "  lora_alpha: 32",
        "  lora_alpha: 32\n  r: 8",
        'recipes/toy.yaml:10: not YAML: found duplicate key "r" with value "8" (original value: "16")',
    ),
}


@pytest.mark.parametrize(("old", "new", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_recipe_is_refused_with_line_and_remedy(write, old, new, message):
    assert RECIPE.count(old) == 1
    root = write("toy", RECIPE.replace(old, new))
    assert refusal(root) == message


def test_a_typo_is_never_led_to_a_key_that_is_set_elsewhere(write):
    text = refusal(write("toy", RECIPE.replace("  num_train_epochs: 2", "  num_train_epochs: 2\n  max_lenght: 64")))
    assert text.startswith("recipes/toy.yaml:14: trainer.max_lenght: unknown key; ")
    assert "max_length" not in text


def test_a_misspelt_required_key_is_told_twice_as_missing_and_as_a_typo(write):
    root = write("toy", RECIPE.replace("learning_rate", "learning_rat"))
    assert refusal(root) == (
        "recipes/toy.yaml:11: trainer.learning_rate: missing; a recipe states it\n"
        "recipes/toy.yaml:12: trainer.learning_rat: unknown key; did you mean `learning_rate`?"
    )


def test_all_problems_are_told_at_once_in_the_order_of_lines(write):
    text = RECIPE.replace("name: toy", "name: toy\nsead: 1")
    text = text.replace("  max_tokens: 64", "  max_tokens: 8")
    text = text.replace("  r: 16", "  r: 0")
    text = text.replace("  learning_rate: 2e-4", "  learning_rate: high\n  max_length: 64")
    text = text.replace("  min_gain: 0.05", "  min_gains: 0.05")
    assert refusal(write("toy", text)) == (
        "recipes/toy.yaml:2: sead: unknown key; did you mean `seed`?\n"
        "recipes/toy.yaml:7: data.max_tokens: input should be greater than or equal to 16, not 8\n"
        "recipes/toy.yaml:9: lora.r: 0 is out of range; must be at least 1, at most 512\n"
        "recipes/toy.yaml:13: trainer.learning_rate: 'high' is not float\n"
        "recipes/toy.yaml:14: trainer.max_length: set by the toolkit; use `data.max_tokens`\n"
        "recipes/toy.yaml:19: gate.min_gain: missing; a recipe states it\n"
        "recipes/toy.yaml:20: gate.min_gains: unknown key; did you mean `min_gain`?"
    )


def test_an_unknown_name_is_answered_with_the_nearest(write):
    root = write("toy", RECIPE)
    assert refusal(root, "tory") == "tory: no such recipe in recipes/; did you mean `toy`?"
    assert refusal(root, "xyzzy") == "xyzzy: no such recipe in recipes/; there are: toy"


def test_the_list_of_bases_is_no_recipe(write):
    root = write("toy", RECIPE)
    write("bases", "tiny:\n  licence: MIT\n  directory: x\n")
    assert refusal(root, "bases") == "bases: no such recipe in recipes/; there are: toy"


def test_a_name_cannot_lead_out_of_the_directory(write):
    root = write("toy", RECIPE)
    assert refusal(root, "../recipes/toy") == "../recipes/toy: no such recipe in recipes/; there are: toy"


def test_a_project_without_recipes_says_so(tmp_path):
    assert refusal(tmp_path, "toy") == "toy: no such recipe in recipes/; there are: none"


def test_a_missing_file_is_named(tmp_path):
    assert refusal(tmp_path, "elsewhere/toy.yaml") == "elsewhere/toy.yaml: no such file"


def test_a_recipe_given_by_path_belongs_to_the_project_around_recipes(write):
    root = write("toy", RECIPE)
    loaded = load_recipe(str(root / "recipes" / "toy.yaml"))
    assert loaded.label == "recipes/toy.yaml"
    assert loaded.root == root
    assert loaded.data_directory == root / "data" / "toy"
    assert loaded.schema_path == root / "data" / "toy" / "schema.json"


def test_a_recipe_outside_recipes_belongs_to_the_current_directory(write, monkeypatch):
    root = write("toy", RECIPE)
    os.rename(root / "recipes" / "toy.yaml", root / "mine.yml")
    monkeypatch.chdir(root)
    loaded = load_recipe("mine.yml")
    assert (loaded.label, loaded.recipe.name) == ("mine.yml", "toy")
    assert loaded.schema_path.is_file()


def test_an_exponent_without_a_dot_reads_as_a_float(write):
    rate = load_recipe("toy", root=write("toy", RECIPE)).recipe.trainer["learning_rate"]
    assert rate == 2e-4
    assert type(rate) is float


def test_shown_names_the_line_of_each_stated_value_and_default_for_the_rest(write):
    shown = load_recipe("toy", root=write("toy", RECIPE)).shown()
    curated = [line for line in shown if line[0].startswith(("arms.", "cost.", "curate.", "guards."))]
    assert ("curate.split.seed", 0, "default") in curated
    assert ("guards.probes.pooled_margin", 0.04, "default") in curated
    assert ("arms.max_new_tokens", 24, "recipes/toy.yaml:16") in curated
    assert ("arms.retriever", "hybrid", "default") in curated
    assert ("cost.serves", "gpu-24gb", "default") in curated
    assert [line for line in shown if line not in curated] == [
        ("name", "toy", "recipes/toy.yaml:1"),
        ("description", "", "default"),
        ("base", "tiny", "recipes/toy.yaml:2"),
        ("seed", 0, "default"),
        ("quantization", "none", "default"),
        ("data.directory", "data/toy", "recipes/toy.yaml:4"),
        ("data.schema", "data/toy/schema.json", "recipes/toy.yaml:5"),
        ("data.max_tokens", 64, "recipes/toy.yaml:6"),
        ("score.judge", None, "default"),
        ("score.kind", "json", "default"),
        ("score.primary", "exact_match", "default"),
        ("lora.r", 16, "recipes/toy.yaml:8"),
        ("lora.lora_alpha", 32, "recipes/toy.yaml:9"),
        ("lora.target_modules", "all-linear", "recipes/toy.yaml:10"),
        ("lora_plus_ratio", None, "default"),
        ("trainer.learning_rate", 2e-4, "recipes/toy.yaml:12"),
        ("trainer.num_train_epochs", 2, "recipes/toy.yaml:13"),
        ("trainer.per_device_train_batch_size", 8, "recipes/toy.yaml:14"),
        ("after", None, "default"),
        ("hardware.dtype", "auto", "default"),
        ("hardware.batch_tokens", None, "default"),
        ("hardware.share_prefixes", True, "default"),
        ("launch.processes", None, "default"),
        ("launch.kind", "ddp", "default"),
        ("launch.deepspeed_config", None, "default"),
        ("checkpoints.every_minutes", 5.0, "default"),
        ("checkpoints.every_steps", None, "default"),
        ("checkpoints.keep", 2, "default"),
        ("dev.every_steps", None, "default"),
        ("dev.rows", 0, "default"),
        ("dev.keep", "last", "default"),
        ("dev.patience", None, "default"),
        ("gate.min_gain", 0.05, "recipes/toy.yaml:18"),
        ("gate.alpha", 0.05, "default"),
        ("gate.merged_margin", 0.02, "default"),
        ("gate.general_nll_margin", 0.1, "default"),
        ("gate.started_from_margin", 0.02, "default"),
        ("gate.min_rows", 100, "default"),
        ("gate.power", 0.8, "default"),
        ("gate.accept_power", None, "default"),
        ("gate.max_looks", 5, "default"),
        ("gate.slices", [], "default"),
        ("export.version", "0.1.0", "default"),
    ]


CHILD = "extends: toy\nname: toy-wide\nlora:\n  r: 64\n  lora_dropout: 0.1\narms:\n  few_shot: [1, 2]\n"


def test_a_child_overrides_its_parent_and_each_value_keeps_its_own_line(write):
    write("toy", RECIPE)
    loaded = load_recipe("toy-wide", root=write("toy-wide", CHILD))
    assert loaded.recipe.lora == {"r": 64, "lora_alpha": 32, "target_modules": "all-linear", "lora_dropout": 0.1}
    place = {key: (value, where) for key, value, where in loaded.shown()}
    assert place["name"] == ("toy-wide", "recipes/toy-wide.yaml:2")
    assert place["lora.r"] == (64, "recipes/toy-wide.yaml:4")
    assert place["lora.lora_dropout"] == (0.1, "recipes/toy-wide.yaml:5")
    assert place["arms.few_shot"] == ([1, 2], "recipes/toy-wide.yaml:7")
    assert place["lora.lora_alpha"] == (32, "recipes/toy.yaml:9")
    assert place["base"] == ("tiny", "recipes/toy.yaml:2")
    assert place["seed"] == (0, "default")
    assert "extends" not in place


def test_problems_of_parent_and_child_name_their_own_files(write):
    write("toy", RECIPE.replace("  lora_alpha: 32", "  lora_alpha: 0"))
    assert refusal(write("toy-wide", CHILD.replace("r: 64", "r: 0")), "toy-wide") == (
        "recipes/toy-wide.yaml:4: lora.r: 0 is out of range; must be at least 1, at most 512\n"
        "recipes/toy.yaml:9: lora.lora_alpha: 0 is out of range; must be above 0, at most 4096"
    )


REFUSED_PARENTS = {
    "grandparent": ("toy", "recipes/child.yaml:2: extends: 'toy' extends another; one parent is the most"),
    "missing": ("tory", "recipes/child.yaml:2: extends: no such recipe 'tory' beside this one"),
    "path": (
        "../toy",
        "recipes/child.yaml:2: extends: must name one recipe beside this one, such as `json-extract`",
    ),
    "list": (
        "[toy]",
        "recipes/child.yaml:2: extends: must name one recipe beside this one, such as `json-extract`",
    ),
}


@pytest.mark.parametrize(("parent", "message"), REFUSED_PARENTS.values(), ids=REFUSED_PARENTS.keys())
def test_a_recipe_has_one_parent_beside_it_at_most(write, parent, message):
    write("toy", "extends: smoke\nname: toy\n")
    write("smoke", RECIPE)
    assert refusal(write("child", f"name: child\nextends: {parent}\n"), "child") == message


def test_a_set_value_is_typed_and_told_as_set(write):
    sets = ["trainer.learning_rate=1e-3", "lora.r=32", "quantization=nf4", "arms.few_shot=[1, 5]", "seed=7"]
    loaded = load_recipe("toy", root=write("toy", RECIPE), sets=sets)
    assert loaded.recipe.trainer["learning_rate"] == 1e-3
    assert loaded.recipe.lora["r"] == 32
    assert loaded.recipe.arms.few_shot == [1, 5]
    place = {key: where for key, _, where in loaded.shown()}
    set_keys = ["arms.few_shot", "lora.r", "quantization", "seed", "trainer.learning_rate"]
    assert [key for key in sorted(place) if place[key] == "--set"] == set_keys
    assert loaded.overrides() == [
        "arms.few_shot=[1, 5]",
        "lora.r=32",
        "quantization=nf4",
        "seed=7",
        "trainer.learning_rate=0.001",
    ]
    assert place["lora.lora_alpha"] == "recipes/toy.yaml:9"


def test_nothing_is_an_override_without_set(write):
    assert load_recipe("toy", root=write("toy", RECIPE)).overrides() == []


def test_the_last_of_two_sets_counts(write):
    loaded = load_recipe("toy", root=write("toy", RECIPE), sets=["lora.r=32", "lora.r=64"])
    assert loaded.recipe.lora["r"] == 64
    assert loaded.overrides() == ["lora.r=64"]


REFUSED_SETS = {
    "no value": ("lora.r", "--set lora.r: must read `key=value`, with dots between sections"),
    "no key": ("=3", "--set =3: must read `key=value`, with dots between sections"),
    "not YAML": ("lora.r=[1", "--set lora.r=[1: the value is not YAML; quote it"),
    "through a value": ("lora.r.x=1", "--set lora.r.x: `r` is not a section"),
    "typo": ("lora.rr=1", "--set: lora.rr: unknown key; did you mean `r`?"),
    "wrong type": ("lora.r=wide", "--set: lora.r: 'wide' is not int"),
    "out of range": ("lora.r=0", "--set: lora.r: 0 is out of range; must be at least 1, at most 512"),
    "reserved": ("trainer.seed=3", "--set: trainer.seed: set by the toolkit; use `seed`"),
    "nothing": ("seed=", "--set: seed: input should be a valid integer, not None"),
    "missing schema file": ("data.schema=x.json", "--set: data.schema: no such file 'x.json'"),
    "no processes": (
        "launch.processes=0",
        "--set: launch.processes: input should be greater than or equal to 1, not 0",
    ),
    "processes that share in another way": (
        "launch.kind=fsdp1",
        "--set: launch.kind: input should be 'ddp', 'fsdp2' or 'deepspeed', not 'fsdp1'",
    ),
    "a divided base in one process": (
        "launch={processes: 1, kind: fsdp2}",
        "--set: launch: `kind: fsdp2` divides the base among processes; state more than one",
    ),
    "DeepSpeed without its file": (
        "launch.kind=deepspeed",
        "--set: launch: `kind: deepspeed` and `deepspeed_config` need each other; state both or neither",
    ),
    "DeepSpeed with a file that is not there": (
        "launch={kind: deepspeed, deepspeed_config: zero3.json}",
        "--set: launch.deepspeed_config: no such file 'zero3.json'",
    ),
    "sharding in upstream's words": ("trainer.fsdp=true", "--set: trainer.fsdp: set by the toolkit; use `launch.kind`"),
    "another section": ("gates.alpha=0.1", "--set: gates: unknown key; did you mean `gate`?"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED_SETS.values(), ids=REFUSED_SETS.keys())
def test_a_wrong_set_is_refused(write, text, message):
    assert refusal(write("toy", RECIPE), sets=[text]) == message


def test_a_base_in_four_bits_is_not_divided(write):
    sets = ["launch.kind=fsdp2", "quantization=nf4"]
    message = "--set: launch.kind: a 4-bit base cannot be divided among processes; use `ddp`, or `quantization: none`"
    assert refusal(write("toy", RECIPE), sets=sets) == message
    assert load_recipe("toy", root=write("toy", RECIPE), sets=["launch.processes=2", "quantization=nf4"])


def test_deepspeeds_file_is_found_from_the_project(write, tmp_path):
    root = write("toy", RECIPE)
    (root / "zero3.json").write_text("{}")
    loaded = load_recipe("toy", root=root, sets=["launch={kind: deepspeed, deepspeed_config: zero3.json}"])
    assert loaded.with_paths().launch.deepspeed_config == str(root / "zero3.json")
    assert loaded.recipe.launch.deepspeed_config == "zero3.json"


def shipped(repository):
    found = sorted(path for path in (repository / "recipes").rglob("*.yaml") if path.name != "bases.yaml")
    assert found
    return found


def test_every_shipped_recipe_loads(repository):
    names = {path: load_recipe(str(path)).recipe.name for path in shipped(repository)}
    assert names == {path: path.stem for path in names}


def test_the_json_schema_takes_every_shipped_recipe(repository):
    schema = recipe_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in shipped(repository):
        assert list(validator.iter_errors(read_yaml(path, path.name).values)) == []


def test_the_json_schema_takes_a_child_that_states_only_what_differs(write):
    root = write("child", CHILD)
    validator = jsonschema.Draft202012Validator(recipe_json_schema())
    values = read_yaml(root / "recipes" / "child.yaml", "child").values
    assert list(validator.iter_errors(values)) == []
    del values["extends"]
    assert not validator.is_valid(values)


JSON_SCHEMA_BREAKS = {
    "typo at the top": ((), "sead", 1),
    "typo in a section": (("data",), "max_token", 64),
    "typo in lora": (("lora",), "lora_alfa", 32),
    "typo in trainer": (("trainer",), "learning_rat", 2e-4),
    "reserved key": (("trainer",), "max_length", 64),
    "wrong type": ((), "seed", "nine"),
}
JSON_SCHEMA_LACKS = {
    "base": ((), "base"),
    "key of a section": (("data",), "max_tokens"),
    "rank": (("lora",), "r"),
    "learning rate": (("trainer",), "learning_rate"),
}


@pytest.mark.parametrize(("section", "key", "value"), JSON_SCHEMA_BREAKS.values(), ids=JSON_SCHEMA_BREAKS.keys())
def test_the_json_schema_refuses_what_the_loader_refuses(write, section, key, value):
    values = read_yaml(write("toy", RECIPE) / "recipes" / "toy.yaml", "toy").values
    place = values
    for name in section:
        place = place[name]
    place[key] = value
    assert not jsonschema.Draft202012Validator(recipe_json_schema()).is_valid(values)


@pytest.mark.parametrize(("section", "key"), JSON_SCHEMA_LACKS.values(), ids=JSON_SCHEMA_LACKS.keys())
def test_the_json_schema_wants_what_the_loader_wants(write, section, key):
    values = read_yaml(write("toy", RECIPE) / "recipes" / "toy.yaml", "toy").values
    validator = jsonschema.Draft202012Validator(recipe_json_schema())
    assert validator.is_valid(values)
    place = values
    for name in section:
        place = place[name]
    del place[key]
    assert not validator.is_valid(values)


TEXT_RECIPE = RECIPE.replace("  schema: data/toy/schema.json\n", "").replace(
    "  max_new_tokens: 24\n", "  max_new_tokens: 24\n  constrained: false\nscore: {kind: text_reference}\n"
)


def test_a_task_whose_answers_are_text_needs_no_schema(write):
    loaded = load_recipe("toy", root=write("toy", TEXT_RECIPE))
    assert (loaded.schema_path, loaded.schema()) == (None, None)
    assert list(jsonschema.Draft202012Validator(recipe_json_schema()).iter_errors(loaded.source.values)) == []


@pytest.mark.parametrize(
    ("change", "needs"),
    [
        ("score={kind: json}", "score.kind: json of JSON answers"),
        ("score.field=line", "score.kind: text_reference of JSON answers"),
        ("arms.constrained=true", "arms.constrained: true"),
    ],
)
def test_json_answers_and_constrained_decoding_need_a_schema(write, change, needs):
    root = write("toy", TEXT_RECIPE)
    wanted = f"recipes/toy.yaml:3: data.schema: missing; {needs} needs the JSON Schema of the answers"
    assert refusal(root, sets=[change]) == wanted


def test_a_section_set_whole_is_told_value_by_value(write):
    loaded = load_recipe("toy", root=write("toy", RECIPE), sets=["score={kind: json, primary: field_f1}"])
    assert loaded.overrides() == ["score.kind=json", "score.primary=field_f1"]
