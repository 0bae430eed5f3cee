"""What a recipe says of scoring: the kind, its settings, and the metric that decides.

Each kind names its metrics, every one 0..1 for one row, so that whoever reads scored rows need not know their scorer.
`tests/evaluate/test_scorers.py` holds scorers to these names.
"""

from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal

import regex
from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from tunesmith.scoring_judge import JudgeSection
from tunesmith.sections import Key, RuleSection, Section


class ScoreKind(Section):
    """What every kind of scorer has."""

    metrics_of_kind: ClassVar[tuple[str, ...]]
    lower_is_better: ClassVar[frozenset[str]] = frozenset()
    """Metrics of which less is better; none of them can be primary."""
    tie_break: ClassVar[str]
    """The metric that decides between arms of equal primary metric."""
    columns_of_kind: ClassVar[dict[str, str]]
    """Metrics that a report shows beside the primary one, with their headings."""

    judge: JudgeSection | None = None
    """A model that is asked for its opinion besides; never primary."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of one row."""
        return self.metrics_of_kind

    @property
    def columns(self) -> dict[str, str]:
        """Metrics that a report shows beside the primary one, with their headings."""
        primary = getattr(self, "primary")  # noqa: B009 - each kind has its own literals
        return {metric: heading for metric, heading in self.columns_of_kind.items() if metric != primary}

    @property
    def looks_at_reference(self) -> bool:
        """Whether the primary metric tells one row's reference from another's."""
        return True

    @property
    def strict_form(self) -> bool:
        """Whether prose or a fence around a right answer makes it a wrong one."""
        return True

    @property
    def json_answers(self) -> bool:
        """Whether an answer is read as a JSON object, so that the task has a schema."""
        return getattr(self, "field", None) is not None

    def decides(self) -> dict[str, Any]:
        """The settings that decide what an answer scores: all but which metric counts, and who is asked besides."""
        return self.model_dump(mode="json", exclude={"primary", "judge"})


class JsonScore(ScoreKind):
    """The answer is one JSON object, compared field by field."""

    metrics_of_kind = (
        "exact_match",
        "field_f1",
        "json_strict",
        "json_lenient",
        "exact_match_lenient",
        "normalised_match",
        "schema_valid",
        "hallucinated",
    )
    lower_is_better = frozenset({"hallucinated"})
    tie_break = "field_f1"
    columns_of_kind: ClassVar[dict[str, str]] = {
        "json_strict": "valid JSON",
        "json_lenient": "lenient",
        "schema_valid": "schema",
        "hallucinated": "invented",
    }

    @property
    def json_answers(self) -> bool:
        """It is one."""
        return True

    kind: Literal["json"] = "json"
    """`json`: the answer is one JSON object, compared field by field."""
    primary: Literal["exact_match", "field_f1"] = "exact_match"
    """The metric that decides."""


class LabelScore(ScoreKind):
    """The answer is one label of a set."""

    metrics_of_kind = ("accuracy", "accuracy_lenient", "accuracy_surface", "in_set", "abstention_right")
    tie_break = "accuracy_lenient"
    columns_of_kind: ClassVar[dict[str, str]] = {
        "accuracy_lenient": "lenient",
        "accuracy_surface": "but for case",
        "in_set": "in set",
        "abstention_right": "abstention",
    }

    kind: Literal["label"]
    """`label`: the answer is one label of a set."""
    primary: Literal["accuracy"] = "accuracy"
    """The metric that decides."""
    field: Key | None = None
    """The one key of the JSON object that the answer is; none takes the answer itself for the label."""
    labels: list[Key] = Field(default=[])
    """The set; none stated takes the `enum` of the field in `data.schema`."""
    abstention: Key | None = None
    """The label that says that none of the others fits."""
    synonyms: dict[str, list[Key]] = Field(default={})
    """Other names of a label: no right answers, but faults of surface only."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of one row, without abstention where no label says it."""
        return tuple(name for name in self.metrics_of_kind if self.abstention or name != "abstention_right")

    @property
    def columns(self) -> dict[str, str]:
        """Without a heading of what is not measured."""
        return {metric: heading for metric, heading in super().columns.items() if metric in self.metrics}

    @model_validator(mode="after")
    def _in_the_set(self) -> "LabelScore":
        if not self.labels and self.field is None:
            raise ValueError("labels: missing; without a `field` no schema says which labels there are")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels: one stands twice")
        named = [*self.synonyms, *([self.abstention] if self.abstention else [])]
        if self.labels and (strange := [label for label in named if label not in self.labels]):
            raise ValueError(f"{strange[0]!r} is none of `labels`")
        return self


class ToolCallScore(ScoreKind):
    """The answer is function calls, or none."""

    metrics_of_kind = (
        "exact_match",
        "calls_match",
        "calls_acceptable",
        "argument_f1",
        "decoded",
        "function_names",
        "call_decision",
    )
    tie_break = "argument_f1"
    columns_of_kind: ClassVar[dict[str, str]] = {
        "calls_match": "any order",
        "calls_acceptable": "acceptable",
        "argument_f1": "argument F1",
        "decoded": "decoded",
        "call_decision": "call or none",
    }

    kind: Literal["tool_call"]
    """`tool_call`: the answer is function calls, or none."""
    primary: Literal["exact_match", "calls_match", "calls_acceptable"] = "calls_match"
    """The metric that decides."""
    field: Key | None = None
    """The one key of the JSON object whose list holds the calls; none reads calls as a template writes them: a list, an
    object, or `<tool_call>` blocks, and anything else as no call."""
    functions: Literal["tools", "prompt"] = "tools"
    """Where a row offers functions: in `tools`, or as the JSON list that its last user message begins with."""

    @property
    def strict_form(self) -> bool:
        """Without a field an answer in words is no call, however it begins."""
        return self.field is not None


class TextRulesScore(ScoreKind):
    """The answer is text that rules must hold for."""

    metrics_of_kind = ("all_rules", "rules_share")
    tie_break = "rules_share"
    columns_of_kind: ClassVar[dict[str, str]] = {"rules_share": "rules held"}

    kind: Literal["text_rules"]
    """`text_rules`: the answer is text that every rule must hold for."""
    primary: Literal["all_rules", "rules_share"] = "all_rules"
    """The metric that decides."""
    field: Key | None = None
    """The one key of the JSON object that the answer is; none takes the answer itself for the text."""
    rules: list[RuleSection] = Field(min_length=1)
    """What must hold."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of one row: one for each rule too."""
        return (*self.metrics_of_kind, *(f"rule_{rule.name}" for rule in self.rules))

    @property
    def columns(self) -> dict[str, str]:
        """A heading for each rule too."""
        return {**super().columns, **{f"rule_{rule.name}": rule.name for rule in self.rules}}

    @property
    def looks_at_reference(self) -> bool:
        """Rules hold or do not, whatever the reference is."""
        return False

    @property
    def strict_form(self) -> bool:
        """Without a field, text around an answer is part of it."""
        return self.field is not None

    @field_validator("rules")
    @classmethod
    def _once_each(cls, value: list[RuleSection]) -> list[RuleSection]:
        names = [rule.name for rule in value]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"rule {twice[0]!r} stands twice")
        return value


class TextReferenceScore(ScoreKind):
    """The answer is text that is compared with the reference."""

    metrics_of_kind = ("exact_match", "normalised_match", "chrf", "token_f1", "read")
    tie_break = "chrf"
    columns_of_kind: ClassVar[dict[str, str]] = {
        "exact_match": "exact",
        "normalised_match": "but for case",
        "chrf": "chrF",
        "token_f1": "token F1",
        "read": "read",
    }

    kind: Literal["text_reference"]
    """`text_reference`: the answer is text that is compared with the reference."""
    primary: Literal["exact_match", "normalised_match", "chrf", "token_f1"] = "chrf"
    """The metric that decides."""
    field: Key | None = None
    """The one key of the JSON object that the answer is; none takes the answer itself for the text."""

    @property
    def strict_form(self) -> bool:
        """Token F1 counts words: a fence around them is none."""
        return self.field is not None or self.primary != "token_f1"


class GroundedScore(ScoreKind):
    """The answer stands in passages of the prompt, and says in which."""

    metrics_of_kind = (
        "exact_match",
        "answer_match",
        "token_f1",
        "quote_verbatim",
        "citation_known",
        "citation_right",
        "supported",
        "abstention_right",
    )
    tie_break = "token_f1"
    columns_of_kind: ClassVar[dict[str, str]] = {
        "answer_match": "answer",
        "token_f1": "token F1",
        "quote_verbatim": "verbatim",
        "citation_right": "passage",
        "supported": "supported",
        "abstention_right": "abstention",
    }

    kind: Literal["grounded"]
    """`grounded`: the answer stands in passages of the prompt, and says in which."""
    primary: Literal["exact_match", "answer_match", "token_f1"] = "exact_match"
    """The metric that decides."""
    answer: Key | None = "answer"
    """The key of the JSON object that holds the answer, null where no passage does. None: the answer is text that cites
    `[id]` and quotes in double quotation marks."""
    citation: Key = "document"
    """The key that holds the id of the passage, or a list of ids."""
    quote: Key | None = None
    """The key whose text must stand in the cited passage to the letter; it may be `answer`'s own."""
    passage: Key = r"(?m)^\[(?P<id>[^\]\n]+)\]"
    """A regular expression that finds where a passage begins in the last user message; its group `id` is the id."""
    abstention: Key | None = None
    """The text that says that no passage answers, where the answer is text."""

    @property
    def json_answers(self) -> bool:
        """It is, unless the answer is text."""
        return self.answer is not None

    @property
    def strict_form(self) -> bool:
        """Of text, quotes and citations count whatever stands around them."""
        return self.answer is not None

    @model_validator(mode="after")
    def _fits_together(self) -> "GroundedScore":
        if (self.answer is None) != (self.abstention is not None):
            raise ValueError("`abstention` belongs to an answer that is text, `answer: null`; state both or neither")
        if self.answer is None and self.quote is not None:
            raise ValueError("quote: of an answer that is text, what stands in double quotation marks is quoted")
        try:
            found = regex.compile(self.passage)
        except regex.error as error:
            raise ValueError(f"passage: {self.passage!r} is no regular expression: {error}") from None
        if "id" not in found.groupindex:
            raise ValueError("passage: must have a group `(?P<id>...)`")
        return self


class CodeScore(ScoreKind):
    """The answer is Python."""

    metrics_of_kind = ("parses", "parses_lenient")
    tie_break = "parses_lenient"
    columns_of_kind: ClassVar[dict[str, str]] = {
        "parses": "parses",
        "parses_lenient": "lenient",
        "lint_clean": "lint",
        "tests_pass": "tests",
    }

    kind: Literal["code"]
    """`code`: the answer is Python."""
    primary: Literal["parses", "lint_clean", "tests_pass"] = "parses"
    """The metric that decides; `lint_clean` and `tests_pass` imply that it parses."""
    field: Key | None = None
    """The one key of the JSON object that the answer is; none takes the answer itself for the code."""
    rules: list[Annotated[str, Field(pattern=r"^[A-Z]+[0-9]*$")]] = Field(default=[])
    """Rules of ruff that the code must keep, such as `F` or `E711`; none stated runs no ruff."""
    run_tests: bool = False
    """Whether to RUN what models wrote, with the row's `meta.tests` after it, in a child process with limits. What the
    limits do not hold off stands in docs/SCORING.md."""
    cpu_seconds: Annotated[int, Field(ge=1, le=600)] = 5
    """Processor time of one run; the clock gives it three times as much."""
    memory_mib: Annotated[int, Field(ge=64)] = 512
    """Address space of one run."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of one row, without what the recipe does not ask for."""
        more = (("lint_clean",) if self.rules else ()) + (("tests_pass",) if self.run_tests else ())
        return (*self.metrics_of_kind, *more)

    @property
    def columns(self) -> dict[str, str]:
        """Without headings of what the recipe does not ask for."""
        return {metric: heading for metric, heading in super().columns.items() if metric in self.metrics}

    @property
    def looks_at_reference(self) -> bool:
        """Only a row's tests know what its code is for."""
        return self.primary == "tests_pass"

    @model_validator(mode="after")
    def _measured(self) -> "CodeScore":
        if self.primary not in self.metrics:
            needs = {"lint_clean": "rules", "tests_pass": "run_tests: true"}[self.primary]
            raise ValueError(f"primary: {self.primary} is not measured; state `{needs}`")
        return self


KINDS: dict[str, type[ScoreKind]] = {
    "json": JsonScore,
    "label": LabelScore,
    "tool_call": ToolCallScore,
    "text_rules": TextRulesScore,
    "text_reference": TextReferenceScore,
    "grounded": GroundedScore,
    "code": CodeScore,
}


def kind_of(value: Any) -> str:
    """The kind of scorer that a `score:` section asks for; `json` where it says none."""
    kind = value.get("kind", "json") if isinstance(value, dict) else getattr(value, "kind", "json")
    return kind if isinstance(kind, str) else ""


def _known_kind(value: Any) -> Any:
    kind = kind_of(value)
    if kind == "judge":
        raise ValueError("kind: a judge is never primary; state it as `score.judge`, beside a kind")
    if kind not in KINDS:
        near = get_close_matches(kind, KINDS, n=1)
        guess = f"did you mean `{near[0]}`?" if near else f"known kinds: {', '.join(KINDS)}"
        raise ValueError(f"kind: {value['kind']!r} is no kind of scorer; {guess}")
    return value


ScoreSection = Annotated[
    Annotated[JsonScore, Tag("json")]
    | Annotated[LabelScore, Tag("label")]
    | Annotated[ToolCallScore, Tag("tool_call")]
    | Annotated[TextRulesScore, Tag("text_rules")]
    | Annotated[TextReferenceScore, Tag("text_reference")]
    | Annotated[GroundedScore, Tag("grounded")]
    | Annotated[CodeScore, Tag("code")],
    Discriminator(kind_of),
    BeforeValidator(_known_kind),
]
"""How one answer is scored: one of KINDS."""
