"""A verdict as Markdown: for a pull request, and as the block of the model card."""

import re
from collections.abc import Mapping
from typing import Any

from tunesmith.gate.page import trivial_means
from tunesmith.gate.words import cautions, headline, in_numbers, in_order, next_steps, outcome, share
from tunesmith.templates import fill


def summary(verdict: Mapping[str, Any]) -> str:
    """The verdict, its arms and its terms. No text of a row stands in it."""
    compared = [term for term in verdict["terms"] if term["estimate"] is not None]
    facts = [term for term in verdict["terms"] if term["estimate"] is None]
    told = {
        "verdict": verdict,
        "headline": headline(verdict),
        "numbers": in_numbers(verdict),
        "cautions": cautions(verdict),
        "next_steps": next_steps(verdict),
        "names": in_order(verdict["arms"]),
        "trivial": trivial_means(verdict),
        "level": f"{100 * verdict['ci_level']:.4g} %",
        "terms": [{**term, "outcome": outcome(term)} for term in compared],
        "held": sum(term["pass"] for term in facts),
        "facts": len(facts),
    }
    return fill("tunesmith.gate", "summary.md.jinja", told, {"share": share, "plain": plain})


def plain(text: str) -> str:
    """Text that Markdown shows as it stands, on one line."""
    return re.sub(r"([\\`*{}\[\]<>#|~]|\b_|_\b)", r"\\\1", " ".join(text.split()))
