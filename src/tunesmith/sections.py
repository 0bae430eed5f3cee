"""The sections of a recipe: our words for our things, each closed to unknown keys.

What a recipe says of its data, before any row of it is trained on, stands in `curation`.
"""

from typing import Annotated, Any, Literal

import regex
from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Key = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A part of a recipe: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class DataSection(Section):
    """What the model learns from and is judged on."""

    directory: str
    """Directory of the curated splits, relative to the project."""
    output_schema: str | None = Field(default=None, alias="schema")
    """JSON Schema file that every completion must satisfy, relative to the project; none where answers are no JSON."""
    max_tokens: Annotated[int, Field(ge=16)]
    """Longest training row, prompt and completion together; a longer row fails the check, none is cut."""


class HardwareSection(Section):
    """Overrides of what the hardware profile would pick."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights and computation of the base; adapters are always trained in float32."""
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most padded tokens in one forward pass of training; none lets the profile pick."""
    share_prefixes: bool = True
    """Whether to compute what rows of a batch begin with once, where that pays and is exact."""


class LaunchSection(Section):
    """In how many processes training runs, and how they share the work."""

    processes: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Processes in all, one a GPU; a step's rows are divided evenly among them. Where no launcher has started them,
    they are started on this machine. None: as many as a launcher has started, else one."""
    kind: Literal["ddp", "fsdp2", "deepspeed"] = "ddp"
    """`ddp`: each process holds the whole base. `fsdp2`: it is cut among them. `deepspeed`: as its own file says."""
    deepspeed_config: str | None = None
    """DeepSpeed's own JSON file, relative to the project; for `kind: deepspeed`, which needs it."""

    @model_validator(mode="after")
    def _fits_together(self) -> "LaunchSection":
        if (self.kind == "deepspeed") != (self.deepspeed_config is not None):
            raise ValueError("`kind: deepspeed` and `deepspeed_config` need each other; state both or neither")
        if self.kind != "ddp" and self.processes == 1:
            raise ValueError(f"`kind: {self.kind}` divides the base among processes; state more than one")
        return self


class CheckpointsSection(Section):
    """How much work a kill may cost."""

    every_minutes: Annotated[float, Field(gt=0)] = 5.0
    """A checkpoint is written after the step that is under way when so many minutes have passed."""
    every_steps: Annotated[int, Field(ge=1)] | None = None
    """Also after every so many optimizer steps; none leaves it to the minutes."""
    keep: Annotated[int, Field(ge=2)] = 2
    """How many of the newest are kept until training has finished: at least two, in case the last one is damaged."""


class DevSection(Section):
    """What the dev rows say of the adapter while it is trained, and what follows from it."""

    every_steps: Annotated[int, Field(ge=1)] | None = None
    """Look after every so many optimizer steps, and after the last; none looks after each epoch."""
    rows: Annotated[int, Field(ge=0)] = 0
    """How many dev rows are answered and scored at each look; 0 answers none: the dev loss alone is measured."""
    keep: Literal["last", "best"] = "last"
    """Which adapter is published: the last, or the one of the look with the best `score.primary`."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many looks in a row that were not better than the best before; none trains to the end."""

    @model_validator(mode="after")
    def _the_best_needs_answers(self) -> "DevSection":
        if self.keep == "best" and not self.rows:
            raise ValueError("keep: best chooses by answers to dev rows; set rows, such as 64")
        if self.patience and self.keep == "last":
            raise ValueError("patience stops after looks that were worse; set keep: best, or the worse one is kept")
        return self


class KnowledgeSection(Section):
    """Documents that may hold what a question asks for."""

    path: str
    """A directory of Markdown files, or a JSON Lines file of `id`, `title`, `text`, relative to the project."""
    k: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [3]
    """Numbers of the nearest passages to try in the prompt; dev picks one."""
    rerank: bool = False
    """Whether to order what was found by a linear model, fitted on the dev rows whose `meta.gold` names passages."""


class ArmsSection(Section):
    """The ways to answer that need no training, and how all answers are generated."""

    max_new_tokens: Annotated[int, Field(ge=1)]
    """Longest answer; greedy decoding stops at the end token before that."""
    few_shot: list[Annotated[int, Field(ge=1)]] = [3]
    """Numbers of fixed training rows to try as shots; dev picks one. Empty leaves the arm out."""
    retrieval: list[Annotated[int, Field(ge=1)]] = [3]
    """Numbers of nearest training rows to try as shots; dev picks one. Empty leaves the arm out."""
    retriever: Literal["bm25", "hybrid"] = "hybrid"
    """What is nearest: by words alone, or by words and meaning (BM25 and MiniLM, fused by rank)."""
    knowledge: KnowledgeSection | None = None
    """Documents to put passages of into the prompt; none leaves the arm `documents` out."""
    constrained: bool = True
    """Whether to try JSON-schema-constrained decoding on top of the better kind of shots."""
    trivial: Annotated[list[Literal["majority", "skeleton", "copy_input", "nearest_train"]], Field(min_length=1)] = [
        "majority",
        "skeleton",
        "copy_input",
        "nearest_train",
    ]
    """What is said without a model, of which the adapter must beat all: the commonest completion, the commonest value
    of each field, the input itself, the completion of the nearest training row."""
    adapter_retrieval: bool = True
    """Whether the adapter also answers with what retrieval puts before the base: documents, else training rows."""
    servers: dict[
        Annotated[str, Field(pattern=r"^served_[a-z0-9_]{1,32}$")],
        Annotated[str, Field(pattern=r"^[^\s@]+@https?://[^\s@]+$")],
    ] = {}
    """Exported forms to show beside the arms: `served_<name>`, and `model@http://…/v1` of an OpenAI-compatible server
    that takes token ids."""
    cache: bool = True
    """Whether answers are kept in the cache directory by content, and replayed instead of computed again."""


class RuleSection(Section):
    """One thing that an answer must hold; exactly one test."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """Names the rule's metric, `rule_<name>`."""
    matches: Key | None = None
    """A regular expression that must be found."""
    never_matches: Key | None = None
    """A regular expression that must not be found."""
    contains: list[Key] | None = None
    """Texts that must all stand in the answer."""
    never_contains: list[Key] | None = None
    """Texts of which none may stand in the answer."""
    max_characters: Annotated[int, Field(ge=1)] | None = None
    min_characters: Annotated[int, Field(ge=1)] | None = None
    max_words: Annotated[int, Field(ge=1)] | None = None
    min_words: Annotated[int, Field(ge=1)] | None = None
    max_lines: Annotated[int, Field(ge=1)] | None = None
    ignore_case: bool = False
    """Whether texts and expressions are found in either case."""

    @property
    def test(self) -> tuple[str, Any]:
        """The test that is stated, and what it was told."""
        return next((key, value) for key, value in self._stated().items())

    def _stated(self) -> dict[str, Any]:
        return {k: v for k, v in self.model_dump().items() if k not in ("name", "ignore_case") and v is not None}

    @model_validator(mode="after")
    def _one_test(self) -> "RuleSection":
        if len(self._stated()) != 1:
            tests = [key for key in RuleSection.model_fields if key not in ("name", "ignore_case")]
            raise ValueError(f"rule {self.name!r} must state one test, one of {', '.join(tests)}")
        test, told = self.test
        if test.endswith("matches"):
            try:
                regex.compile(told)
            except regex.error as error:
                raise ValueError(f"rule {self.name!r}: {told!r} is no regular expression: {error}") from None
        elif told == []:
            raise ValueError(f"rule {self.name!r}: {test} names no text")
        return self


class SliceSection(Section):
    """A value by which gate rows are told apart, to see that none of the parts is harmed."""

    by: Annotated[str, Field(pattern=r"^(group|meta\..+|completion\..+)$")]
    """`meta.<key>`, `completion.<key>` or `group`; rows without it are a slice of their own."""
    min_rows: Annotated[int, Field(ge=2)] = 50
    """Fewest rows of which anything is said; of a smaller slice it is said that it was not assessed."""


class GateSection(Section):
    """What it takes to ship."""

    min_gain: Fraction
    """Smallest gain over the incumbent on the primary metric that is worth serving another model for."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """One-sided error rate of all looks at a gate split together: 6/π² of it at the first, a quarter of that at the
    second."""
    merged_margin: Fraction = 0.02
    """How much worse than the adapter the merged model may be on the primary metric."""
    general_nll_margin: Annotated[float, Field(gt=0)] = 0.1
    """How many nats per token the loss on general text may rise (0.1 nats is 10.5 % more perplexity)."""
    started_from_margin: Fraction = 0.02
    """How much worse than the adapter that training began from (`after:`) the new one may be on the primary metric."""
    min_rows: Annotated[int, Field(ge=2)] = 100
    """Fewest gate rows on which a verdict is given at all."""
    power: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """How likely an adapter that is better by `min_gain` must be to pass all terms, for training to begin."""
    accept_power: Annotated[float, Field(gt=0, lt=1)] | None = None
    """A lower power that is accepted by name: such an adapter is then passed over so much more often."""
    max_looks: Annotated[int, Field(ge=1, le=20)] = 5
    """How many candidates a gate split may judge before it is retired; each look spends less of alpha."""
    slices: list[SliceSection] = []
    """Parts of the gate rows that must not be harmed."""

    @model_validator(mode="after")
    def _accepts_less(self) -> "GateSection":
        if self.accept_power is not None and self.accept_power > self.power:
            raise ValueError(f"accept_power accepts less than power, {self.power:g}; it is {self.accept_power:g}")
        return self


ProbeName = Literal["piqa", "openbookqa", "commonsenseqa", "mmlu", "boolq"]


class ProbesSection(Section):
    """Questions with options that the base may know the answers to: what the adapter must not forget."""

    names: list[ProbeName] = ["piqa", "openbookqa", "commonsenseqa", "mmlu", "boolq"]
    """Which sets are asked. Empty asks none, and the verdict says so."""
    rows: Annotated[int, Field(ge=8)] = 60
    """Questions drawn from each set, the same for every recipe."""
    pooled_margin: Fraction = 0.04
    """How much the mean over all questions may fall. `docs/GUARDS.md` says which margin how many rows can certify."""
    each_margin: Fraction = 0.10
    """How much the mean of one set may fall."""


class RefusalsSection(Section):
    """Whether the adapter refuses less of what is harmful, or more of what only sounds so, than the base."""

    rows: Annotated[int, Field(ge=0, le=40)] = 40
    """Prompts of each kind; 0 asks none, and the verdict says so."""
    margin: Fraction = 0.15
    """How much the share of harmful prompts refused, or of harmless ones answered, may fall."""


class HabitsSection(Section):
    """Whether what was trained shows in answers to prompts that have nothing to do with it."""

    rows: Annotated[int, Field(ge=0, le=100)] = 64
    """Unrelated prompts; 0 asks none, and the verdict says so."""
    leak_margin: Fraction | None = None
    """Largest share of unrelated prompts that may be answered in the form or the words of the training rows; null tells
    the share and does not judge it, for an adapter that is asked nothing but its task."""
    verbatim_margin: Fraction = 0.1
    """Largest share of them whose answer may repeat a passage of a training row."""
    verbatim_tokens: Annotated[int, Field(ge=8)] = 20
    """How many tokens in a row are a passage: at most `max_new_tokens`, or none could be seen."""
    max_new_tokens: Annotated[int, Field(ge=8)] = 24
    """Longest answer to an unrelated prompt, and to one of `refusals`."""
    canaries: list[str] = []
    """Texts planted in training rows that no answer may hold; those of rows' `meta.canary` count too."""

    @model_validator(mode="after")
    def _a_passage_fits(self) -> "HabitsSection":
        if self.verbatim_tokens > self.max_new_tokens:
            raise ValueError("verbatim_tokens is more than max_new_tokens: no passage of that length could be seen")
        return self


class GuardsSection(Section):
    """What must not get worse, for the adapter and for the merged model; docs/GUARDS.md."""

    probes: ProbesSection = ProbesSection()
    refusals: RefusalsSection = RefusalsSection()
    habits: HabitsSection = HabitsSection()
    kl_rows: Annotated[int, Field(ge=0)] = 16
    """Answers of the base, to task prompts and to unrelated ones, over which the distance to it is told; not judged."""
    format_margin: Fraction | None = 0.05
    """How much the share of answers of the right form may fall below the incumbent's; null does not judge it."""
    max_length_ratio: Annotated[float, Field(gt=0)] | None = 1.25
    """Most tokens written for each token of the references; null does not judge it."""
    noise: list[Annotated[float, Field(gt=0, le=1)]] = [0.1, 0.3]
    """Planted harm by which a probe shows that it can move: noise on every module, relative to its weights' norm."""

    def measured(self) -> dict[str, Any]:
        """What decides the measurements; margins decide only what follows from them."""
        whole = self.model_dump(exclude={"format_margin", "max_length_ratio"})
        for section in ("probes", "refusals", "habits"):
            whole[section] = {key: value for key, value in whole[section].items() if not key.endswith("margin")}
        return whole


class CostSection(Section):
    """What calls cost, and what is assumed of them; money is in dollars."""

    prices: str | None = None
    """A prices file of the user's own, relative to the project; none takes the shipped `prices.yaml`."""
    serves: str = "gpu-24gb"
    """What answers without an adapter: a model or a machine of the prices."""
    tuned: str = "gpu-24gb"
    """What would answer with the adapter."""
    cache_hits: Fraction = 0.0
    """Part of the calls that find the beginning that all share in a cache."""
    retrieval: Annotated[float, Field(ge=0)] = 0.0
    """What finding passages costs, a call."""
    fallback: Fraction = 0.0
    """Part of the tuned model's calls that are answered a second time without it."""
    miss: Annotated[float, Field(ge=0)] = 0.0
    """What a wrong answer loses."""
    one_off: Annotated[float, Field(ge=0)] = 0.0
    """What data, training and judging cost, once."""
    hosting: Annotated[float, Field(ge=0)] = 0.0
    """What holding the tuned model ready costs a month, besides its price a token."""
    retrains: Annotated[float, Field(ge=0)] = 0.0
    """How often a year it is trained again."""


class ExportSection(Section):
    """What the bundle is called."""

    version: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")] = "0.1.0"
    """Version of the bundle, `dist/<name>-<version>/`."""
