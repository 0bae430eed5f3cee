"""The `curate:` section of a recipe: from sources to rows, from rows to splits.

Every choice that decides which rows there are and where they go stands here, in the order in which it is made: sources,
steps, duplicates, splits, selection.
"""

import re
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_serializer, model_validator

from tunesmith.rows import SPLITS, Split
from tunesmith.sections import Fraction, Section

Format = Literal["rows", "messages", "prompt_completion", "preference", "alpaca", "sharegpt", "columns", "documents"]
Action = Literal["fail", "redact", "pass"]
Column = Literal["id", "group", "system", "prompt", "completion", "rejected"]

FieldPath = Annotated[str, Field(pattern=r"^(group|shape|completion|completion(\.[\w-]+)+|meta(\.[\w-]+)+)$")]
"""Where a value stands in a row: `group`, `completion`, `completion.<key>`, `shape` (its keys) or `meta.<key>`."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}")


class SourceSection(Section):
    """A pile of rows in some form."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    """Stands in every row of it, as `meta.source`."""
    licence: Annotated[str, Field(min_length=1)]
    """Licence of the rows, as an SPDX name or a sentence; stands in every row, as `meta.licence`."""
    path: str
    """A file, a directory of documents or a glob: relative to the project, or inside the Hub data set."""
    hub: str | None = None
    """The data set of the Hub that holds `path`, with its revision: `org/name@<40 hex>`; its files are streamed."""
    format: Format | Literal["auto"] = "auto"
    """The form of a line; `auto` reads it off the first one and says it."""
    columns: dict[Column, str] = Field(default={})
    """For `columns`: which one is the id, group, system message, prompt, completion, rejected answer; the others go
    into `meta`."""
    system: str | None = None
    """The system message of rows that have none."""
    malformed: Literal["refuse", "drop"] = "refuse"
    """Whether a line that is no row stops the curation, or is left out and counted."""

    @model_validator(mode="after")
    def _whole(self) -> "SourceSection":
        if self.hub is not None and not HUB_ID.fullmatch(self.hub):
            raise ValueError(f"hub {self.hub!r} must read `org/name@<40 hex of the revision>`")
        if self.columns and self.format not in ("columns", "auto"):
            raise ValueError(f"columns are named, but the format is {self.format!r}")
        return self


# What a step may be told, and what it does where it is told nothing. A list stands for the values it may take.
STEPS: dict[str, tuple[Any, Any]] = {
    "normalise": (None, None),
    "control_tokens": (["refuse", "neutralise", "drop"], "refuse"),
    "privacy": (None, None),
    "empty": (None, None),
    "truncated": (None, None),
    "refusals": (None, None),
    "language": (str, "en"),
    "length": (None, None),
    "completion": (None, None),
    "copying": (float, 0.9),
    "contradictions": (["drop", "refuse"], "drop"),
}


class StepSection(Section):
    """One cleaning step and what it was told: `name`, or `name: option` in the recipe."""

    name: str
    """Which step."""
    option: str | float | None = None
    """What it was told."""

    @model_validator(mode="after")
    def _known(self) -> "StepSection":
        if self.name not in STEPS:
            raise ValueError(f"step {self.name!r} is not one of {', '.join(STEPS)}")
        kinds, _ = STEPS[self.name]
        if self.option is None:
            return self
        if kinds is None:
            raise ValueError(f"step {self.name!r} takes no option")
        if isinstance(kinds, list):
            if self.option not in kinds:
                raise ValueError(f"step {self.name!r} takes one of {', '.join(kinds)}, not {self.option!r}")
        elif not isinstance(self.option, kinds):
            raise ValueError(f"step {self.name!r} takes a {kinds.__name__}, not {self.option!r}")
        return self

    @model_serializer
    def _as_written(self) -> Any:
        return self.name if self.option is None else {self.name: self.option}

    @property
    def told(self) -> Any:
        """The option, or what stands for it."""
        return STEPS[self.name][1] if self.option is None else self.option


def _step(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and len(value) == 1:
        name, option = next(iter(value.items()))
        return {"name": name, "option": option}
    return value


STEP_SCHEMA = {
    "anyOf": [
        {"enum": list(STEPS)},
        {"type": "object", "propertyNames": {"enum": list(STEPS)}, "minProperties": 1, "maxProperties": 1},
    ]
}
Step = Annotated[StepSection, BeforeValidator(_step), WithJsonSchema(STEP_SCHEMA)]
USUAL_STEPS = ("normalise", "control_tokens", "empty", "truncated", "completion", "contradictions")


class PrivacySection(Section):
    """What is done about what the step `privacy` finds, by rule."""

    email: Action = "pass"
    """E-mail addresses."""
    phone: Action = "pass"
    """Telephone numbers."""
    card: Action = "fail"
    """Payment cards, by their check digit (Luhn)."""
    iban: Action = "fail"
    """Bank accounts, by their check digits."""
    ip: Action = "pass"
    """Internet addresses, versions 4 and 6."""
    national_id: Action = "fail"
    """National numbers of persons that carry a checksum."""
    secret: Action = "fail"
    """Keys, tokens and passwords."""


class DuplicatesSection(Section):
    """What counts as the same row twice. Copies are dropped; what is near is one group."""

    near: Fraction | None = 0.8
    """Jaccard similarity of the prompts' character 5-grams from which rows are one group; none looks for none."""
    drop_near: bool = False
    """Whether one row of each near-duplicate cluster is kept, instead of all in one group."""
    semantic: Fraction | None = None
    """Cosine similarity of the prompts' MiniLM embeddings from which rows are one group."""


class TimeSection(Section):
    """A cut by date: rows before `dev` are train, from then on dev, gate and confirm in turn."""

    field: FieldPath
    """Where a row's date stands, such as `meta.date`."""
    dev: date
    """First day of dev."""
    gate: date
    """First day of gate."""
    confirm: date
    """First day of confirm."""

    @field_validator("dev", "gate", "confirm", mode="before")
    @classmethod
    def _a_day(cls, value: Any) -> Any:
        return date.fromisoformat(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _in_turn(self) -> "TimeSection":
        if not self.dev <= self.gate <= self.confirm:
            raise ValueError("must be in turn: dev, gate, confirm")
        return self


class SplitSection(Section):
    """How groups are dealt to train, dev, gate and confirm."""

    shares: dict[Split, Fraction] = Field(default={"train": 0.6, "dev": 0.1, "gate": 0.2, "confirm": 0.1})
    """Share of the groups for each split; they add up to 1."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Another seed is another cut."""
    by: FieldPath | None = None
    """A field whose equal values are one group, such as `meta.customer`; none takes the row's own `group`."""
    stratify: FieldPath | None = None
    """A field that each split gets in the same shares: `completion`, `completion.<key>`, `shape` or `meta.<key>`."""
    time: TimeSection | None = None
    """Cut by date instead of by share."""

    @field_validator("shares")
    @classmethod
    def _whole(cls, value: dict[Split, float]) -> dict[Split, float]:
        if set(value) != set(SPLITS) or abs(sum(value.values()) - 1) > 1e-9:
            raise ValueError("must name train, dev, gate and confirm and add up to 1")
        return value


class SelectSection(Section):
    """Which training rows are worth training on: coverage, within quotas, without the oddest."""

    rows: Annotated[int, Field(ge=1)]
    """How many training rows to keep."""
    quotas: dict[str, Annotated[int, Field(ge=0)]] = Field(default={})
    """Rows of a value of `split.stratify`; the values not named share what is left in proportion."""
    leave_easiest: Fraction = 0.0
    """Share of the rows to leave out that the base finds most likely already; needs one forward pass of the base."""
    leave_hardest: Fraction = 0.0
    """Share of the rows to leave out that the base finds least likely: often wrong labels."""


class CurateSection(Section):
    """From sources to splits."""

    sources: list[SourceSection] = Field(default=[])
    """The piles; none stated means the task's own script, `scripts/curate_<task>.py`."""
    turns: Literal["each", "last", "whole"] = "each"
    """Of a conversation: a row for each assistant turn, one for the last, or one whole row that trains every turn."""
    steps: list[Step] = Field(default=[StepSection(name=name) for name in USUAL_STEPS])
    """Cleaning steps, in order."""
    labels: list[str] = Field(default=[])
    """The completions that there may be, for the step `completion`; none stated means `data.schema` decides."""
    privacy: PrivacySection = PrivacySection()
    """What the step `privacy` does."""
    duplicates: DuplicatesSection = DuplicatesSection()
    """What is the same row twice."""
    split: SplitSection = SplitSection()
    """How rows are cut."""
    select: SelectSection | None = None
    """Which training rows are kept."""
    probes: list[str] = Field(default=[])
    """Files of text or rows that training rows must not hold, relative to the project."""

    @model_validator(mode="after")
    def _nothing_said_in_vain(self) -> "CurateSection":
        names = {step.name for step in self.steps}
        split, duplicates = self.split, self.duplicates
        if "privacy" in self.model_fields_set and "privacy" not in names:
            raise ValueError("privacy: does nothing without the step `privacy`")
        if self.labels and "completion" not in names:
            raise ValueError("labels: does nothing without the step `completion`")
        if duplicates.drop_near and duplicates.near is None and duplicates.semantic is None:
            raise ValueError("duplicates.drop_near: does nothing where nothing near is looked for")
        said = {"shares", "stratify"} & split.model_fields_set
        if split.time is not None and said:
            raise ValueError(f"split.{sorted(said)[0]}: does nothing beside split.time, which cuts by date")
        if self.select and self.select.quotas and split.stratify is None:
            raise ValueError("select.quotas: does nothing without split.stratify, whose values they name")
        sources = [source.name for source in self.sources]
        if twice := sorted({name for name in sources if sources.count(name) > 1}):
            raise ValueError(f"sources: {', '.join(twice)} stands twice; a row names its source, so names differ")
        return self

    @field_validator("steps")
    @classmethod
    def _once_each(cls, value: list[StepSection]) -> list[StepSection]:
        names = [step.name for step in value]
        if len(set(names)) < len(names):
            raise ValueError("a step stands twice")
        if "contradictions" in names[:-1]:
            raise ValueError("`contradictions` looks at all rows at once: it stands last")
        return value
