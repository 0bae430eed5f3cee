"""A recipe: one YAML that says what is trained on what, how it is judged, and what it takes to ship.

Our words for our things; `lora:` and `trainer:` go verbatim to `peft.LoraConfig` and to `trl.SFTConfig` or
`trl.DPOConfig` after their names and types are checked. Nothing a recipe says is ignored: an unknown key, a wrong type,
a key that the toolkit sets itself are all refused, all at once, each with file, line and what to do.
"""

import os
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, field_validator

from tunesmith import preferences, trackers, upstream
from tunesmith.curation import CurateSection
from tunesmith.errors import UserError
from tunesmith.methods import REFUSED, method_problems
from tunesmith.reserved import MUST_STATE, RANGES, RESERVED
from tunesmith.schema import read_schema
from tunesmith.scoring import KINDS, JsonScore, ScoreSection, kind_of
from tunesmith.secrets import secrets
from tunesmith.sections import (
    ArmsSection,
    CheckpointsSection,
    CostSection,
    DataSection,
    DevSection,
    ExportSection,
    GateSection,
    GuardsSection,
    HardwareSection,
    LaunchSection,
    Section,
)
from tunesmith.yaml_source import Keys, YamlSource, leaves, read_yaml

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class Recipe(Section):
    """A resolved recipe."""

    name: Annotated[str, Field(pattern="^" + NAME.pattern + "$")]
    """Names the run and the bundle."""
    description: str = ""
    """One sentence for the model card."""
    base: str
    """A name from bases.yaml, a Hub id with revision (`org/name@<40 hex>`), or a local directory (`./path`)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds the adapter's initial weights and the order of rows."""
    quantization: Literal["none", "nf4"] = "none"
    """`nf4` trains on a 4-bit base (QLoRA); the merge always goes into the unquantised base."""
    data: DataSection
    curate: CurateSection = CurateSection()
    score: ScoreSection = JsonScore()
    lora: dict[str, Any]
    """Verbatim keys of peft.LoraConfig."""
    lora_plus_ratio: Annotated[float, Field(ge=1, le=1000)] | None = None
    """LoRA+: how many times lora_A's learning rate, `trainer.learning_rate`, lora_B's is; none trains both alike."""
    trainer: dict[str, Any]
    """`kind`: `sft` (the default) or `dpo`; verbatim keys of trl.SFTConfig, or of trl.DPOConfig. Batch size times
    accumulation is kept; how it is cut is the profile's choice."""
    after: Annotated[str, Field(min_length=1)] | None = None
    """Whose adapter `trainer.kind: dpo` begins from: a recipe beside this one, or a run (`runs/<id>`)."""
    hardware: HardwareSection = HardwareSection()
    launch: LaunchSection = LaunchSection()
    checkpoints: CheckpointsSection = CheckpointsSection()
    dev: DevSection = DevSection()
    arms: ArmsSection
    gate: GateSection
    guards: GuardsSection = GuardsSection()
    cost: CostSection = CostSection()
    export: ExportSection = ExportSection()

    @field_validator("lora", "trainer")
    @classmethod
    def _sections_hold_something(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not value:
            raise ValueError("must state its keys; upstream's defaults are not fit for LoRA")
        return value

    @property
    def kind(self) -> str:
        """What training does: imitate completions (`sft`), or prefer them to rejected answers (`dpo`)."""
        return preferences.kind_of({"trainer": self.trainer})

    @property
    def trainer_keys(self) -> dict[str, Any]:
        """The keys of `trainer:` that are upstream's."""
        return {key: value for key, value in self.trainer.items() if key != "kind"}

    def as_dict(self) -> dict[str, Any]:
        """Every value, defaults included, in the recipe's own words."""
        return self.model_dump(by_alias=True, mode="json")


class LoadedRecipe:
    """A recipe with the project it belongs to and the place of each of its values."""

    def __init__(self, recipe: Recipe, source: YamlSource, label: str, root: Path) -> None:
        self.recipe = recipe
        self.source = source
        self.label = label
        self.root = root

    @property
    def data_directory(self) -> Path:
        """The directory of the curated splits."""
        return self.root / self.recipe.data.directory

    @property
    def prices_path(self) -> Path | None:
        """The user's own prices, if the recipe names any."""
        return self.root / self.recipe.cost.prices if self.recipe.cost.prices else None

    @property
    def schema_path(self) -> Path | None:
        """The file of the JSON Schema of completions; none where they are no JSON."""
        path = self.recipe.data.output_schema
        return None if path is None else self.root / path

    def schema(self) -> dict[str, Any] | None:
        """The JSON Schema of completions; none where they are no JSON.

        Raises:
            UserError: the file is not a JSON Schema of an object.
        """
        return None if self.schema_path is None else read_schema(self.schema_path)

    @property
    def knowledge_path(self) -> Path | None:
        """The documents of the arm `documents`, if the recipe has any."""
        knowledge = self.recipe.arms.knowledge
        return self.root / knowledge.path if knowledge else None

    def with_paths(self) -> Recipe:
        """The recipe with its launcher's file where it lies."""
        launch = self.recipe.launch
        if launch.deepspeed_config is None:
            return self.recipe
        placed = launch.model_copy(update={"deepspeed_config": str(self.root / launch.deepspeed_config)})
        return self.recipe.model_copy(update={"launch": placed})

    def overrides(self) -> list[str]:
        """The `--set` options that shaped this recipe, as `key=value`."""
        return sorted(f"{key}={value}" for key, value, place in self.shown() if place == SET)

    def shown(self) -> list[tuple[str, Any, str]]:
        """Every value with its dotted path and where it comes from."""
        lines = []
        for keys, value in leaves(self.recipe.as_dict()):
            lines.append((".".join(map(str, keys)), value, self.source.places.get(keys, "default")))
        return lines


SET = "--set"


def find_recipe(name: str, root: Path) -> Path:
    """The file of a recipe given by name or by path.

    Raises:
        UserError: there is none; the nearest names are offered.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{name}: no such file")
        return path
    directory = root / "recipes"
    known = sorted(path.stem for path in directory.glob("*.yaml") if path.stem != "bases")
    if not NAME.fullmatch(name) or name not in known:
        near = get_close_matches(name, known, n=1)
        guess = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(known) or 'none'}"
        raise UserError(f"{name}: no such recipe in {directory.name}/; {guess}")
    return directory / f"{name}.yaml"


def load_recipe(name: str, *, root: Path | None = None, sets: Sequence[str] = ()) -> LoadedRecipe:
    """Read, merge and check a recipe.

    `sets` are `a.b=c` overrides for this run. Paths in a recipe are relative to the project: the directory above
    `recipes/`, or the current one.

    Raises:
        UserError: anything is wrong; all problems at once.
    """
    root = root or Path()
    path = find_recipe(name, root)
    if path.parent.name == "recipes":
        root = path.parent.parent
    label = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    source = _read_with_parent(path, label)
    if kept := [f"{place}: {kind}" for place, kind in _secrets(source, label, sets)]:
        # Before anything else is told: other messages quote what they refuse.
        raise UserError(kept, hint="a recipe holds no secrets, for it is copied into every run and bundle; revoke it")
    for text in sets:
        dotted, equals, value = text.partition("=")
        if not equals or not dotted:
            raise UserError(f"--set {text}: must read `key=value`, with dots between sections")
        source.set(dotted, value, SET)

    problems = _upstream_problems(source, label)
    for keys, problem in (*preferences.problems(source.values), *method_problems(source.values)):
        problems.append(f"{source.place(keys, label)}: {'.'.join(keys)}: {problem}")
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(source.values)
    except ValidationError as error:
        problems += [_as_text(e["loc"], e, source, label) for e in error.errors()]
    if problems or recipe is None:
        raise UserError(sorted(problems, key=_by_line))
    if recipe.launch.kind != "ddp" and recipe.quantization != "none":
        raise UserError(
            f"{source.place(('launch', 'kind'), label)}: launch.kind: a 4-bit base cannot be divided among processes; "
            "use `ddp`, or `quantization: none`"
        )
    if outside := list(_outside(recipe, source, label)):
        raise UserError(outside, hint="what lies elsewhere is linked or copied into the project, or named by `--set`")
    loaded = LoadedRecipe(recipe, source, label, root)
    if loaded.schema_path is None and (of_json := _of_json(recipe)):
        place = source.place(("data",), label)
        raise UserError(f"{place}: data.schema: missing; {of_json} needs the JSON Schema of the answers")
    if loaded.schema_path is not None and not loaded.schema_path.is_file():
        place = source.place(("data", "schema"), label)
        raise UserError(f"{place}: data.schema: no such file {recipe.data.output_schema!r}")
    config = recipe.launch.deepspeed_config
    if config is not None and not (root / config).is_file():
        place = source.place(("launch", "deepspeed_config"), label)
        raise UserError(f"{place}: launch.deepspeed_config: no such file {config!r}")
    return loaded


def _of_json(recipe: Recipe) -> str | None:
    """What of a recipe works only on answers that are JSON."""
    if recipe.score.json_answers:
        return f"score.kind: {recipe.score.kind} of JSON answers"
    return "arms.constrained: true" if recipe.arms.constrained else None


def _secrets(source: YamlSource, label: str, sets: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Where a recipe or an option holds a key, a token or a private key, and which kind; never the value."""
    told = [(source.place(keys, label), text) for keys, value in leaves(source.values) for text in (*keys, value)]
    for place, text in (*told, *((SET, text) for text in sets)):
        for part in text if isinstance(text, list) else [text]:
            yield from ((place, f"holds a secret ({kind})") for _, _, kind, _ in secrets(str(part)))


def _outside(recipe: Recipe, source: YamlSource, label: str) -> Iterator[str]:
    """Paths of a recipe that lead out of its project; those of `--set` are the user's own word."""
    schema = recipe.data.output_schema
    paths: list[tuple[Keys, str]] = [
        (("data", "directory"), recipe.data.directory),
        *([] if schema is None else [(("data", "schema"), schema)]),
        *([(("cost", "prices"), recipe.cost.prices)] if recipe.cost.prices is not None else []),
        *((("curate", "sources", i, "path"), each.path) for i, each in enumerate(recipe.curate.sources)),
        *((("curate", "probes", i), path) for i, path in enumerate(recipe.curate.probes)),
        *([(("arms", "knowledge", "path"), recipe.arms.knowledge.path)] if recipe.arms.knowledge else []),
    ]
    for keys, path in paths:
        place = source.place(keys, label)
        where = f"{place}: {'.'.join(map(str, keys))}"
        if not path or not path.isprintable():
            yield f"{where}: {path!r} is no path"
        elif place != SET and (path.startswith(("/", "~")) or os.path.normpath(path).split(os.sep)[0] == ".."):
            yield f"{where}: {path!r} leads out of the project"


def _by_line(problem: str) -> tuple[str, int]:
    file, _, rest = problem.partition(":")
    line = rest.partition(":")[0]
    return file, int(line) if line.isdigit() else 0


def _read_with_parent(path: Path, label: str) -> YamlSource:
    source = read_yaml(path, label)
    parent_name = source.values.pop("extends", None)
    place = source.places.pop(("extends",), label)
    if parent_name is None:
        return source
    if not isinstance(parent_name, str) or not NAME.fullmatch(parent_name):
        raise UserError(f"{place}: extends: must name one recipe beside this one, such as `json-extract`")
    parent_path = path.with_name(f"{parent_name}.yaml")
    if not parent_path.is_file():
        raise UserError(f"{place}: extends: no such recipe {parent_name!r} beside this one")
    parent = read_yaml(parent_path, label.replace(path.name, parent_path.name))
    if "extends" in parent.values:
        raise UserError(f"{place}: extends: {parent_name!r} extends another; one parent is the most")
    return source.over(parent)


def _upstream_problems(source: YamlSource, label: str) -> list[str]:
    """Check `lora:` and `trainer:` against the installed classes: names, types, reserved keys, ranges, required."""
    problems = []
    kind = preferences.kind_of(source.values)
    for section, reserved in RESERVED.items():
        path = section.split(".")
        values: Any = source.values
        for key in path:
            values = values.get(key) if isinstance(values, dict) else None
        if not isinstance(values, dict):
            continue
        known = upstream.fields(preferences.SECTIONS[kind] if section == "trainer" else section)
        if section == "trainer" and kind == "dpo":
            reserved = reserved | preferences.RESERVED
        for key, value in values.items():
            if (section, key) == ("trainer", "kind"):
                continue
            where = f"{source.place((*path, key), label)}: {section}.{key}"
            if key in reserved:
                problems.append(f"{where}: set by the toolkit; {reserved[key]}")
            elif key not in known:
                other = _other_kind(kind, key) if section == "trainer" else ""
                ours = {"kind"} if section == "trainer" else set()
                problems.append(f"{where}: unknown key{other}{_did_you_mean(key, (set(known) | ours) - set(reserved))}")
            elif problem := (
                known[key].problem(value) or _range_problem(section, key, value) or trackers.problem(key, values)
            ):
                problems.append(f"{where}: {problem}")
        for key in MUST_STATE.get(section, ()):
            if key not in values:
                problems.append(f"{source.place((section,), label)}: {section}.{key}: missing; a recipe states it")
    return problems


def _other_kind(kind: str, key: str) -> str:
    """Which other kind of training knows a key, as a part of a message."""
    others = [k for k, section in preferences.SECTIONS.items() if k != kind and key in upstream.fields(section)]
    return f" under `kind: {kind}`, only {preferences.CLASSES[others[0]]} has it" if others else ""


def _range_problem(section: str, key: str, value: Any) -> str | None:
    if (section, key) not in RANGES or not isinstance(value, int | float):
        return None
    low, high, exclusive = RANGES[(section, key)]
    # Written so that a NaN, which compares with nothing, is out of range too.
    if not low <= value <= high or (exclusive and value == low):
        return f"{value!r} is out of range; must be {'above' if exclusive else 'at least'} {low:g}, at most {high:g}"
    return None


def _as_text(location: tuple[int | str, ...], error: Any, source: YamlSource, label: str) -> str:
    keys: Keys = tuple(location)
    if keys[0] == "score" and keys[1:2] and keys[1] in KINDS:
        # Which of the kinds was tried is no key of the recipe.
        keys = (keys[0], *keys[2:])
    where = f"{source.place(keys, label)}: {'.'.join(str(key) for key in keys)}"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key{_did_you_mean(str(keys[-1]), _known_keys(keys[:-1], source))}"
    if error["type"] == "missing":
        return f"{where}: missing; a recipe states it"
    message = error["msg"].removeprefix("Value error, ")
    # A whole section is no value that a person would look for.
    value = "" if isinstance(error["input"], dict) else f", not {error['input']!r}"
    return f"{where}: {message[0].lower()}{message[1:]}{value}"


def _known_keys(keys: Keys, source: YamlSource) -> set[str]:
    model: Any = Recipe
    for key in keys:
        if isinstance(key, int):
            continue
        model = KINDS[kind_of(source.values["score"])] if key == "score" else model.model_fields[key].annotation
        # Of `Section | None`, and of `list[Section]`, the section.
        model = next((part for part in (model, *get_args(model)) if hasattr(part, "model_fields")), model)
    names = {info.alias or name for name, info in model.model_fields.items()}
    return names | {"extends"} if model is Recipe else names


def _did_you_mean(key: str, known: set[str]) -> str:
    near = get_close_matches(key, sorted(known), n=1)
    return f"; did you mean `{near[0]}`?" if near else f"; known keys: {', '.join(sorted(known)[:12])}"


def recipe_json_schema() -> dict[str, Any]:
    """JSON Schema of a recipe file, with the keys of the installed `peft.LoraConfig` and trl's configs."""
    schema = Recipe.model_json_schema(by_alias=True)
    both = {**upstream.fields("dpo"), **upstream.fields("trainer")}
    kinds = {"kind": {"enum": list(preferences.CLASSES)}}
    schema["properties"]["extends"] = {"type": "string", "description": "Name of one parent recipe beside this one."}
    for section in MUST_STATE:
        hidden = RESERVED[section].keys() | (REFUSED.keys() if section == "lora" else ())
        keys = {
            name: {"description": field.annotation}
            for name, field in (both if section == "trainer" else upstream.fields(section)).items()
            if name not in hidden
        } | (kinds if section == "trainer" else {})
        description = schema["properties"][section].get("description", "")
        schema["properties"][section] = {
            "type": "object",
            "description": description,
            "properties": keys,
            "additionalProperties": False,
        }
    # A child recipe states only what differs from its parent, in sections too; of the score not even the kind.
    score = schema["properties"]["score"]
    for kind in score.setdefault("anyOf", score.pop("oneOf")):
        schema["$defs"][kind["$ref"].rpartition("/")[2]].pop("required", None)
    required = {section: list(keys) for section, keys in MUST_STATE.items()}
    for key, value in schema["properties"].items():
        section = schema["$defs"].get(value.get("$ref", "").rpartition("/")[2], {})
        if "required" in section:
            required[key] = section.pop("required")
    schema["if"] = {"required": ["extends"]}
    schema["else"] = {
        "required": schema.pop("required"),
        "properties": {key: {"required": names} for key, names in required.items()},
    }
    return schema
