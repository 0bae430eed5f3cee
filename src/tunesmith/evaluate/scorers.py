"""The scorer of a recipe: from one answer and its row to scores, and the proof that it can tell right from wrong.

Scorers are pure: the same text and row score the same, whatever was scored before. The exceptions are stated in their
own modules: `code` where tests are run, and the judge, which is no scorer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tunesmith import scoring
from tunesmith.errors import UserError
from tunesmith.evaluate import score_code, score_grounded, score_json, score_label, score_text, score_tool_call
from tunesmith.evaluate.score_form import Validator
from tunesmith.failures import ordered
from tunesmith.files import sha256_file, sha256_json
from tunesmith.recipe import Recipe
from tunesmith.rows import Row
from tunesmith.schema import validator_of
from tunesmith.scoring import LabelScore, ScoreKind, ToolCallScore

SCORES: dict[str, Any] = {
    "json": score_json.score,
    "label": score_label.score,
    "tool_call": score_tool_call.score,
    "text_rules": score_text.score_rules,
    "text_reference": score_text.score_reference,
    "grounded": score_grounded.score,
    "code": score_code.score,
}
"""For each kind: (text, ended, row, settings, validator) to `scores`, `labels` and, where it has them, more."""
LIBRARIES = ("jsonschema", "sacrebleu", "regex", "ruff")
"""What a score may depend on beside our own source."""

SELF_TEST_ROWS = 200
SELF_TEST_RUNS = 16
"""Rows of a self-test; so few where each one runs code."""
BY_CHANCE = 0.05
"""Part of the rows of which another row's answer, or one with words around it, may score full marks."""


@dataclass(frozen=True)
class Scorer:
    """How the answers of one recipe are scored."""

    settings: ScoreKind
    schema: dict[str, Any] | None

    @property
    def kind(self) -> str:
        """One of scoring.KINDS."""
        return scoring.kind_of(self.settings)

    @property
    def primary(self) -> str:
        """The metric that decides."""
        return str(getattr(self.settings, "primary"))  # noqa: B009 - each kind has its own literals

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of one row, each 0..1."""
        return self.settings.metrics

    @property
    def lower_is_better(self) -> frozenset[str]:
        """Those of which less is better."""
        return self.settings.lower_is_better

    @cached_property
    def validator(self) -> Validator | None:
        """Of the schema, where there is one."""
        return None if self.schema is None else validator_of(self.schema)

    @cached_property
    def labels(self) -> list[str]:
        """The set of labels, for kind `label`.

        Raises:
            UserError: neither recipe nor schema says it.
        """
        assert isinstance(self.settings, LabelScore)
        try:
            return score_label.labels_of(self.settings, self.schema)
        except ValueError as error:
            raise UserError(f"score: {error}") from None

    def digest(self) -> str:
        """Of all that decides what an answer scores: source, settings, schema, and the libraries' versions."""
        source = sorted(
            [*Path(__file__).parent.glob("score*.py"), Path(__file__).with_name("box.py"), Path(scoring.__file__)]
        )
        return sha256_json(
            {
                "source": {path.name: sha256_file(path) for path in source},
                "settings": self.settings.decides(),
                "schema": self.schema,
                "libraries": {name: _version(name) for name in LIBRARIES},
            }
        )

    def score(self, text: str, ended: bool, row: Row) -> dict[str, Any]:
        """Score one answer; `ended` says that the model ended it itself.

        Returns `scores` (a number 0..1 for each metric), `failure` (the first failure class, None where the answer is
        the reference in every way), `labels` (all failure classes, in order), and what the kind adds: `fields` (paths
        `right`, `wrong`, `missed`), `values` (the class of each wrong path), `answer` (what was said and wanted).

        Raises:
            UserError: the row's reference is none of this kind.
        """
        more = (self.labels,) if self.kind == "label" else ()
        try:
            found: dict[str, Any] = SCORES[self.kind](text, ended, row, self.settings, self.validator, *more)
        except ValueError as error:
            raise UserError(
                f"row {row.id}: its reference {error}",
                hint=f"score.kind: {self.kind} cannot score it; mend the rows, or name another kind",
            ) from None
        labels = ordered(found["labels"])
        return {**found, "failure": labels[0] if labels else None, "labels": labels}

    def corpus(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """What only all rows together show, from scored lines; no paired interval can be given for it."""
        if isinstance(self.settings, LabelScore):
            return score_label.corpus(lines, self.settings)
        if isinstance(self.settings, ToolCallScore):
            return score_tool_call.corpus(lines, self.settings)
        return {}


def scorer_of(recipe: Recipe, schema: dict[str, Any] | None) -> Scorer:
    """The scorer that a recipe asks for.

    Raises:
        UserError: recipe and schema do not say enough.
    """
    scorer = Scorer(recipe.score, schema)
    if scorer.kind == "label":
        _ = scorer.labels
    return scorer


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


# ---------------------------------------------------------------------- whether it can tell right from wrong

AROUND = ("```\n{}\n```", "Sure! Here is the answer: {}", "{}\n\nI hope this helps.")


def self_test(scorer: Scorer, rows: Sequence[Row]) -> list[str]:
    """What is wrong with a scorer on these rows: nothing, where gold scores 1, silence 0, and another's answer not 1.

    Full marks for another row's answer are by chance, so a twentieth of them is forgiven; rows whose reference is the
    same are left out. Where the kind is strict about form, words or a fence around gold must cost its marks too.

    Raises:
        UserError: the reference of a row is none of this kind.
    """
    rows = sorted(rows, key=lambda row: sha256_json(row.id))
    rows = rows[: SELF_TEST_RUNS if "tests_pass" in scorer.metrics else SELF_TEST_ROWS]
    if not rows:
        return ["there are no rows"]

    def worth(answer: str, row: Row) -> float:
        return float(scorer.score(answer, True, row)["scores"][scorer.primary])

    gold = {row.id: gold_answer(row) for row in rows}
    problems = []
    if short := [row.id for row in rows if worth(gold[row.id], row) != 1.0]:
        problems.append(f"gold does not score 1: {_named(short)}")
    if paid := [row.id for row in rows if worth("", row) != 0.0]:
        problems.append(f"an empty answer scores above 0: {_named(paid)}")
    if scorer.settings.looks_at_reference:
        # Sorted by a hash, the next row is any other.
        others = [gold[row.id] for row in (*rows[1:], rows[0])]
        pairs = [(row, answer) for row, answer in zip(rows, others, strict=True) if answer != gold[row.id]]
        if full := [row.id for row, answer in pairs if worth(answer, row) == 1.0]:
            if len(full) > BY_CHANCE * len(pairs):
                problems.append(f"another row's answer scores 1 in {len(full)} of {len(pairs)} rows: {_named(full)}")
        elif not pairs and len(rows) > 1:
            problems.append("all rows have the same reference, so nothing tells an answer from a constant one")
    if scorer.settings.strict_form:
        for around in AROUND:
            full = [row.id for row in rows if worth(around.format(gold[row.id]), row) == 1.0]
            if len(full) > BY_CHANCE * len(rows):
                problems.append(f"{around.format('...')!r} around gold scores 1 in {len(full)} rows: {_named(full)}")
    return problems


def gold_answer(row: Row) -> str:
    """A row's completion as the text that a model would write."""
    calls = row.completion.tool_calls
    return score_tool_call.written(calls) if calls else row.reference


def _named(ids: Sequence[str]) -> str:
    return ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
