"""Score one answer that should be one JSON object, field by field.

A wrong value is told apart by where it stands: another place of the text (`wrong_in_source`), nowhere in it
(`hallucinated`), an earlier version of the fact (`stale`, from `meta.earlier`), or the right value in another form
(`normalisation_only`).
"""

import json
from typing import Any

from tunesmith.evaluate.score_form import (
    BREACHES,
    NOTHING,
    Validator,
    canonical,
    folded,
    leaves,
    read_object,
    reference_object,
    stands_in,
)
from tunesmith.rows import Row
from tunesmith.scoring import JsonScore


def score(text: str, ended: bool, row: Row, settings: JsonScore, validator: Validator | None) -> dict[str, Any]:
    """Score an answer against a row's reference.

    Returns the metrics of JsonScore; the paths that were right, wrong and missed; the class of each that was not right;
    and all failure classes. `hallucinated` is 1 if any value is of that class.

    Raises:
        ValueError: the reference is not a JSON object.
    """
    reference = reference_object(row.reference)
    form = read_object(text, ended, validator)
    is_object = form.strict is not NOTHING
    wanted = set(leaves(reference))
    got = set(leaves(form.strict)) if is_object else set()
    right, wrong, missed = got & wanted, got - wanted, wanted - got
    exact = is_object and got == wanted
    values = _classes(dict(wrong), dict(missed), row) if is_object else {}
    labels = set() if exact else set(form.labels) | set(values.values())
    lenient = set(leaves(form.lenient)) if isinstance(form.lenient, dict) else None
    return {
        "scores": {
            "exact_match": float(exact),
            "field_f1": 2 * len(right) / (len(got) + len(wanted)) if is_object else 0.0,
            "json_strict": float(is_object),
            "json_lenient": float(lenient is not None),
            "exact_match_lenient": float(lenient == wanted),
            "normalised_match": float(is_object and set(values.values()) <= {"normalisation_only"}),
            "schema_valid": float(is_object and not form.labels & BREACHES),
            "hallucinated": float("hallucinated" in values.values()),
        },
        "fields": {
            "right": sorted(path for path, _ in right),
            "wrong": sorted(path for path, _ in wrong),
            "missed": sorted(path for path, _ in missed),
        },
        "values": values,
        "labels": labels,
    }


def _classes(wrong: dict[str, str], missed: dict[str, str], row: Row) -> dict[str, str]:
    """The class of each path that is not right."""
    source = folded(row.source)
    earlier = (row.meta or {}).get("earlier", {})
    found = {}
    for path in sorted(wrong.keys() | missed.keys()):
        got, wanted = (json.loads(leaf[path]) if path in leaf else NOTHING for leaf in (wrong, missed))
        old = earlier.get(path, []) if isinstance(earlier, dict) else []
        found[path] = value_class(got, wanted, source, old if isinstance(old, list) else [old])
    return found


def value_class(got: Any, wanted: Any, source: str, earlier: list[Any]) -> str:
    """The class of one value that is not the reference's; NOTHING stands for one that is not there.

    `source` is the folded text that values are taken from, `earlier` are values that this one had once. A number that
    stands nowhere may have been counted or computed: it is wrong, not hallucinated.
    """
    if got is NOTHING or (got in (None, "") and wanted not in (NOTHING, None, "")):
        known = not isinstance(wanted, str | int | float) or isinstance(wanted, bool)
        return "missing_available" if known or stands_in(str(wanted), source) else "missing_unavailable"
    if wanted is not NOTHING and canonical(got) == canonical(wanted):
        return "normalisation_only"
    if any(canonical(got) == canonical(old) for old in earlier):
        return "stale"
    is_text = isinstance(got, str) and got.strip() != ""
    if is_text and not stands_in(got, source):
        return "hallucinated"
    if wanted is NOTHING:
        return "extra_field"
    is_number = isinstance(got, int | float) and not isinstance(got, bool)
    return "wrong_in_source" if is_text or (is_number and stands_in(str(got), source)) else "wrong_value"
