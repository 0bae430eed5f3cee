"""The page of a verdict: one file with nothing outside it and no script, from verdict.json and the arms' rows."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.files import write_atomic
from tunesmith.gate.drawn import arms_drawn, classes_drawn, costs_drawn, difference, term_drawn
from tunesmith.gate.evidence import Evidence
from tunesmith.gate.words import cautions, headline, in_numbers, in_order, next_steps, outcome, share
from tunesmith.templates import fill

PAGE = "report.html"
SHOWN_ROWS = 8
"""Fixed and broken rows that are seen at once; more stand folded."""
KEPT_ROWS = 60
"""Fixed and broken rows that the page holds at all."""
COMPARED = ("adapter", "merged")


def write_page(
    path: Path, verdict: Mapping[str, Any], evidence: Evidence, sources: Mapping[str, str], recipe_file: str
) -> None:
    """Write the page. `sources` holds what stood before the model, by row id, of rows that are shown."""
    names = in_order(verdict["arms"])
    compared = [name for name in (verdict["incumbent"], *COMPARED) if name in verdict["failure_classes"]]
    terms = [{**term, "outcome": outcome(term)} for term in verdict["terms"]]
    told = {
        "verdict": verdict,
        "headline": headline(verdict),
        "numbers": in_numbers(verdict),
        "cautions": cautions(verdict),
        "next_steps": next_steps(verdict),
        "level": f"{100 * verdict['ci_level']:.4g} %",
        "arms": arms_drawn(verdict, names, trivial_means(verdict)) if names else None,
        "names": names,
        "terms": [{**term, "drawn": term_drawn(term)} for term in terms if not _fact(term)],
        "facts": [term for term in terms if _fact(term)],
        "changed": [
            (title, rows[:SHOWN_ROWS], rows[SHOWN_ROWS:], number)
            for title, ids in (("Fixed", verdict["fixed"]), ("Broken", verdict["broken"]))
            for rows, number in [(_rows(ids[:KEPT_ROWS], evidence, verdict["incumbent"], sources), len(ids))]
        ],
        "compared": compared,
        "classes": classes_drawn(verdict, compared) if names else [],
        "together": verdict.get("tuning_by_retrieval"),
        "costs": costs_drawn(verdict) if names else None,
        "priced": [name for name in names if "usd_per_1000_calls" in verdict["cost"].get(name, {})],
        "untested": untested(verdict),
        "command": shlex.join(_command(verdict, recipe_file)),
    }
    write_atomic(path, fill("tunesmith.gate", "verdict.html.jinja", told, {"share": share}))


def _command(verdict: Mapping[str, Any], recipe_file: str) -> list[str]:
    return ["tunesmith", "run", recipe_file, *(word for one in verdict["set"] for word in ("--set", one))]


def untested(verdict: Mapping[str, Any]) -> list[str]:
    """What the verdict does not speak of."""
    return [
        *(f"{one['guard']}: {one['why']}" for one in verdict.get("not_assessed", [])),
        "kinds of input that the gate rows do not hold, other languages, hostile input",
        "serving stacks other than transformers'",
        "another training of the same recipe: the verdict is on these weights",
    ]


def _fact(term: Mapping[str, Any]) -> bool:
    return term["estimate"] is None


def trivial_means(verdict: Mapping[str, Any]) -> dict[str, float]:
    """The means of the arms that no model answered."""
    return dict(verdict.get("trivial", {}))


def _rows(ids: Sequence[str], evidence: Evidence, incumbent: str, sources: Mapping[str, str]) -> list[dict[str, Any]]:
    arms = {name: {row["id"]: row for row in evidence.arms[name].rows} for name in (incumbent, "adapter")}
    return [
        {
            "id": row_id,
            "source": sources.get(row_id),
            "reference": arms["adapter"][row_id]["reference"],
            "answers": [
                {
                    "arm": name,
                    "pieces": difference(rows[row_id]["reference"], rows[row_id]["prediction"]),
                    "failure": rows[row_id]["failure"],
                }
                for name, rows in arms.items()
            ],
        }
        for row_id in ids
    ]
