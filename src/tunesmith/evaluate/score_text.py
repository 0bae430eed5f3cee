"""Score one answer that is text: by rules that must hold for it, or by its nearness to a reference.

chrF is sacrebleu's chrF2 of a sentence (Popović 2015, character n-grams to 6, beta 2), in 0..1. Token F1 is SQuAD's
(Rajpurkar et al. 2016, arXiv:1606.05250) over words, without that paper's dropping of English articles.
"""

from collections import Counter
from functools import cache
from typing import Any

import regex

from tunesmith.evaluate.score_form import NOTHING, Validator, canonical, folded, read_field, reference_text
from tunesmith.rows import Row
from tunesmith.scoring import TextReferenceScore, TextRulesScore
from tunesmith.sections import RuleSection

RULE_SECONDS = 0.2
"""A regular expression that takes longer on one answer counts as not kept: models can write what takes years."""
LENGTH_RANGE = (0.5, 2.0)
"""Characters of an answer against those of its reference; outside it is called `length`."""


def score_rules(
    text: str, ended: bool, row: Row, settings: TextRulesScore, validator: Validator | None
) -> dict[str, Any]:
    """Score an answer by the recipe's rules. Nothing written keeps no rule."""
    form = read_field(text, ended, settings.field, validator)
    value = form.strict if isinstance(form.strict, str) and form.strict.strip() else None
    held = {f"rule_{rule.name}": value is not None and holds(rule, value) for rule in settings.rules}
    right = all(held.values())
    labels: set[str] = set()
    if not right:
        labels = set(form.labels) | ({"rule"} if value is not None else _unread(form.strict))
    return {
        "scores": {
            "all_rules": float(right),
            "rules_share": sum(held.values()) / len(held),
            **{name: float(kept) for name, kept in held.items()},
        },
        "labels": labels,
    }


def holds(rule: RuleSection, text: str) -> bool:
    """Whether a rule holds for a text."""
    test, told = rule.test
    if test.endswith("matches"):
        pattern = _compiled(told, rule.ignore_case)
        try:
            found = pattern.search(text, timeout=RULE_SECONDS) is not None
        except TimeoutError:
            return False
        return found == (test == "matches")
    if test.endswith("contains"):
        within = text.casefold() if rule.ignore_case else text
        found_each = [(part.casefold() if rule.ignore_case else part) in within for part in told]
        return all(found_each) if test == "contains" else not any(found_each)
    bound, _, unit = test.partition("_")
    size = {"characters": len(text), "words": len(text.split()), "lines": len(text.splitlines())}[unit]
    return bool(size <= told if bound == "max" else size >= told)


@cache
def _compiled(pattern: str, ignore_case: bool) -> Any:
    return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)


def score_reference(
    text: str, ended: bool, row: Row, settings: TextReferenceScore, validator: Validator | None
) -> dict[str, Any]:
    """Score an answer by its nearness to the reference.

    Raises:
        ValueError: the reference holds no text.
    """
    wanted = reference_text(row.reference, settings.field)
    form = read_field(text, ended, settings.field, validator)
    got = form.strict if isinstance(form.strict, str) else ""
    exact = got == wanted
    normalised = got != "" and canonical(got) == canonical(wanted)
    labels: set[str] = set()
    if not exact:
        labels = set(form.labels) | (
            {"normalisation_only"} if normalised else {"wording"} if got.strip() else _unread(form.strict)
        )
        if got.strip() and not LENGTH_RANGE[0] <= len(got) / len(wanted) <= LENGTH_RANGE[1]:
            labels.add("length")
    return {
        "scores": {
            "exact_match": float(exact),
            "normalised_match": float(exact or normalised),
            "chrf": 1.0 if exact else chrf(got, wanted),
            "token_f1": 1.0 if exact else token_f1(got, wanted),
            "read": float(got.strip() != ""),
        },
        "labels": labels,
    }


def chrf(got: str, wanted: str) -> float:
    """Character n-gram F-score of a text against another, 0..1."""
    return min(1.0, max(0.0, float(_chrf().sentence_score(got, [wanted]).score) / 100)) if got.strip() else 0.0


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def token_f1(got: str, wanted: str) -> float:
    """F1 of the words that two texts share, each as often as both have it, 0..1; without case and marks."""
    ours, theirs = (Counter(regex.findall(r"[\w\p{M}]+", folded(text))) for text in (got, wanted))
    if not ours or not theirs:
        return float(bool(got.strip()) and canonical(got) == canonical(wanted))
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def _unread(strict: Any) -> set[str]:
    """What to call an answer that holds no text."""
    return (
        {"wrong_type"}
        if strict is not NOTHING and not isinstance(strict, str)
        else {"empty"}
        if strict is not NOTHING
        else set()
    )
