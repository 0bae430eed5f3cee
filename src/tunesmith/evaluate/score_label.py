"""Score one answer that should be one label of a set.

Right is the label to the letter. A label in another case, by another name or in a sentence is a fault of form; it is
told apart and counts only in the metrics that say so. Macro F1, abstention and calibration are of all rows together.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from tunesmith.evaluate.score_form import NOTHING, Validator, canonical, folded, read_field, reference_text
from tunesmith.rows import Row
from tunesmith.scoring import LabelScore

BINS = 15
"""Of the confidences, for the calibration error."""


def labels_of(settings: LabelScore, schema: Mapping[str, Any] | None) -> list[str]:
    """The set of labels: the recipe's, or the `enum` of the field in the schema.

    Raises:
        ValueError: neither says it.
    """
    if settings.labels:
        return settings.labels
    found = (schema or {}).get("properties", {}).get(settings.field, {}).get("enum")
    if not isinstance(found, list) or not found or not all(isinstance(label, str) for label in found):
        raise ValueError(f"labels: missing; data.schema has no `enum` of texts for {settings.field!r}")
    strange = [label for label in (settings.abstention, *settings.synonyms) if label and label not in found]
    if strange:
        raise ValueError(f"{strange[0]!r} is none of the labels in data.schema")
    return found


def score(
    text: str, ended: bool, row: Row, settings: LabelScore, validator: Validator | None, labels: Sequence[str]
) -> dict[str, Any]:
    """Score an answer against a row's label.

    Returns the metrics of LabelScore, the failure classes, and what was said and wanted: `said` is the label that
    counts, null where it is none; `nearest` the label that was probably meant.

    Raises:
        ValueError: the reference is none of the labels.
    """
    wanted = reference_text(row.reference, settings.field)
    if wanted not in labels:
        raise ValueError(f"{wanted!r} is none of the labels")
    form = read_field(text, ended, settings.field, validator)
    said = form.strict if isinstance(form.strict, str) and form.strict in labels else None
    surface = said or _surface(form.strict, settings, labels)
    named = said or _named(text if form.lenient is NOTHING else form.lenient, settings, labels)
    right = said == wanted
    faults: set[str] = set()
    if not right:
        # That the schema knows no such label, and its `label_surface`, is said here, by the set itself.
        faults = set(form.labels) - {"out_of_set", "label_surface", "wrong_type"}
        faults |= _fault(form.strict, said, surface, named)
        if settings.abstention is not None and (surface or named) is not None:
            abstains = (surface or named) == settings.abstention
            if abstains != (wanted == settings.abstention):
                faults.add("abstained" if abstains else "not_abstained")
    abstention = settings.abstention
    scores = {
        "accuracy": float(right),
        "accuracy_lenient": float(named == wanted),
        "accuracy_surface": float(surface == wanted),
        "in_set": float(said is not None),
    }
    if abstention is not None:
        scores["abstention_right"] = float(said is not None and (said == abstention) == (wanted == abstention))
    return {
        "scores": scores,
        "answer": {
            "said": said,
            "wanted": wanted,
            "nearest": said or surface or named or _nearest(form.lenient, labels),
        },
        "labels": faults,
    }


def _fault(strict: Any, said: str | None, surface: str | None, named: str | None) -> set[str]:
    if said is not None:
        return {"wrong_label"}
    if surface is not None:
        return {"label_surface"}
    if strict is NOTHING:
        return set()
    return {"wrapped"} if named is not None else {"out_of_set"} if isinstance(strict, str) else {"wrong_type"}


def _surface(value: Any, settings: LabelScore, labels: Sequence[str]) -> str | None:
    """The label that a text is but for case, marks and spaces, or a synonym of; none where two could be meant."""
    if not isinstance(value, str):
        return None
    meant = {
        label for label in labels for name in (label, *settings.synonyms.get(label, ())) if plain(name) == plain(value)
    }
    return meant.pop() if len(meant) == 1 else None


def _named(value: Any, settings: LabelScore, labels: Sequence[str]) -> str | None:
    """The only label that a text names as words of its own; none where it names two, or none."""
    if not isinstance(value, str):
        return None
    names = {folded(name): label for label in labels for name in (label, *settings.synonyms.get(label, ()))}
    # The longest first: where `skin cancer` stands, `skin` is not named.
    words = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    found = {names[match] for match in re.findall(rf"(?<!\w)(?:{words})(?!\w)", folded(value))}
    return found.pop() if len(found) == 1 else None


def _nearest(value: Any, labels: Sequence[str]) -> str | None:
    near = get_close_matches(folded(value), labels, n=1) if isinstance(value, str) else []
    return near[0] if near else None


def plain(text: str) -> str:
    """A label without case, spaces and the marks that stand for spaces."""
    return re.sub(r"[\s_-]+", "", canonical(text))


# ---------------------------------------------------------------------- of all rows together


def corpus(lines: Sequence[Mapping[str, Any]], settings: LabelScore) -> dict[str, float]:
    """Macro F1, abstention recall and precision where the recipe names the label, calibration where lines hold it.

    A line holds `answer` as `score` returned it, and may hold `label_logprobs`: the log-probability of each label.
    """
    answers = [(line["answer"]["said"], line["answer"]["wanted"]) for line in lines]
    found = {"macro_f1": macro_f1(answers)}
    if settings.abstention is not None:
        both = sum(said == wanted == settings.abstention for said, wanted in answers)
        said_so = sum(said == settings.abstention for said, _ in answers)
        wanted_so = sum(wanted == settings.abstention for _, wanted in answers)
        found |= {"abstention_recall": both / wanted_so} if wanted_so else {}
        found |= {"abstention_precision": both / said_so} if said_so else {}
    if lines and all("label_logprobs" in line for line in lines):
        found |= calibration([(line["label_logprobs"], line["answer"]["wanted"]) for line in lines])
    return found


def macro_f1(answers: Sequence[tuple[str | None, str]]) -> float:
    """The mean F1 of the labels that are wanted at least once; an answer that is no label is a miss and no false alarm.

    Labels that are never wanted have no recall; said wrongly they still cost the F1 of the label that was wanted.
    """
    wanted = Counter(wanted for _, wanted in answers)
    said = Counter(said for said, _ in answers)
    both = Counter(wanted for said, wanted in answers if said == wanted)
    return math.fsum(2 * both[label] / (said[label] + count) for label, count in wanted.items()) / max(1, len(wanted))


def calibration(rows: Sequence[tuple[Mapping[str, float], str]]) -> dict[str, float]:
    """How far the probabilities of labels are from how often they are right.

    Each row gives the natural-log probability of every label (they need not add up to 1: they are normalised over the
    labels) and the label that is wanted. `ece` is the expected calibration error over 15 bins of equal width, weighted
    by rows (Guo et al. 2017, arXiv:1706.04599); `brier` the mean squared distance of the probabilities from the label
    that is wanted, summed over labels, 0..2 (Brier 1950); `confidence` the mean of the highest probability.

    Raises:
        ValueError: there are no rows, a row has no finite log-probability, or none for the label that is wanted.
    """
    if not rows:
        raise ValueError("calibration: no rows")
    bins: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    brier, confidences = [], []
    for logprobs, wanted in rows:
        if wanted not in logprobs:
            raise ValueError(f"calibration: no log-probability for {wanted!r}")
        highest = max(logprobs.values())
        if math.isnan(sum(logprobs.values())) or not math.isfinite(highest):
            raise ValueError("calibration: a log-probability is not a number")
        weights = {label: math.exp(value - highest) for label, value in logprobs.items()}
        total = math.fsum(weights.values())
        chances = {label: weight / total for label, weight in weights.items()}
        best = max(chances, key=lambda label: chances[label])
        bins[min(BINS - 1, int(chances[best] * BINS))].append((chances[best], float(best == wanted)))
        brier.append(math.fsum((chance - (label == wanted)) ** 2 for label, chance in chances.items()))
        confidences.append(chances[best])
    gaps = (abs(math.fsum(sure - right for sure, right in part)) for part in bins)
    return {
        "ece": math.fsum(gaps) / len(rows),
        "brier": math.fsum(brier) / len(rows),
        "confidence": math.fsum(confidences) / len(rows),
    }
