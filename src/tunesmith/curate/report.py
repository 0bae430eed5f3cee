"""The report of a curation: one page by which a person judges the data, with nothing outside it and no script.

Text of rows is data: whatever it holds is escaped, and characters that nobody sees or that turn the line around stand
as their code points. `report.html.jinja` is the page, `facts.gather` says what is on it.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from markupsafe import Markup, escape

from tunesmith.rows import SPLITS
from tunesmith.templates import fill
from tunesmith.text import INVISIBLE, ODD_SPACES

COMPARED = 1500
"""Characters of a text that are shown beside its twin."""
SHORT = 240
"""Characters of a text in a table."""
HIDDEN = re.compile(f"{INVISIBLE.pattern}|{ODD_SPACES.pattern}|[\u2028\u2029\u200e\u200f\u061c]")
MARKS = {"\n": ("↵", "\n"), "\t": ("⇥", "\t"), " ": ("␣", "")}
"""What stands for white space that was changed."""
NAMED = {"Cc", "Cf", "Mn", "Zl", "Zp", "Zs"}
"""Unicode categories of characters that stand as their code points where they were changed."""


def page(facts: Mapping[str, Any]) -> str:
    """The page that shows what `facts.gather` has gathered."""
    totals = {s: sum(value["splits"][s] for value in facts["balance"]) or 1 for s in SPLITS}
    told = {
        "splits": [{"name": split, **facts["manifest"]["files"][f"{split}.jsonl"]} for split in SPLITS],
        "leaking": sum(rows for side in facts["leaks"] for kind, rows in side["kinds"].items() if kind != "passage"),
        "passages": sum(side["kinds"]["passage"] for side in facts["leaks"]),
        "stages": stages(facts),
        "changed": changes(facts),
        "pairs": pairs(facts),
        "steps": step_names(facts),
        "totals": totals,
        "largest": max([v["splits"][s] / totals[s] for v in facts["balance"] for s in SPLITS], default=0) or 1,
    }
    filters = {each.__name__: each for each in (count, share, visible, short, control, bars)}
    return fill("tunesmith.curate", "report.html.jinja", {**facts, **told}, filters)


# ---------------------------------------------------------------------- what is told


def step_names(facts: Mapping[str, Any]) -> list[str]:
    """The recipe's cleaning steps in order, without what they were told."""
    return [step.partition(":")[0] for step in facts["manifest"]["steps"]]


def stages(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The funnel's stages, each with what it took away or added, why, and the width of its bar in percent."""
    widest = max([1, *(stage["rows"] for stage in facts["funnel"])])
    told, before = [], None
    for stage in facts["funnel"]:
        name = str(stage["name"])
        step = {"lines read": "script", "rows made of them": "read"}.get(name, name.removeprefix("after "))
        told.append(
            {
                **stage,
                "change": stage["rows"] - before if before is not None else 0,
                "why": [drop for drop in facts["drops"] if drop["step"] == step],
                "before_reading": step == "script",
                "width": 100 * stage["rows"] / widest,
            }
        )
        before = stage["rows"]
    return told


def changes(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each step changed, before and after; no text that held what was redacted.

    Up to the step `privacy` a text still holds what that step takes out, so there is nothing to show of it but what
    the step itself left.
    """
    steps = step_names(facts)
    redacted = {"privacy", "redact"} & {
        *(c["step"] for c in facts["changes"]),
        *(f["action"] for f in facts["privacy"]),
    }
    redacts = steps.index("privacy") if redacted and "privacy" in steps else -1
    told = []
    for change in facts["changes"]:
        place = steps.index(change["step"]) if change["step"] in steps else len(steps)
        shown: list[tuple[str, Markup | None, Markup | None]] = []
        for row, before, after in change["shown"]:
            left, right = differ(before, after, exact=True) if place > redacts else (None, visible(after))
            shown.append((row, left, right if place >= redacts else None))
        told.append({"step": change["step"], "rows": change["rows"], "shown": shown})
    return told


def pairs(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Near pairs as they are shown: alike, ids, and the two sides of prompt and completion with marks."""
    told = []
    for pair in facts["near"]["shown"]:
        left, right = pair["left"], pair["right"]
        texts = [differ(a, b) for a, b in zip(left[1:], right[1:], strict=True)]
        sides = [{"id": side[0], "texts": [both[n] for both in texts]} for n, side in enumerate((left, right))]
        told.append({"alike": pair["alike"], "sides": sides})
    return told


# ---------------------------------------------------------------------- how it is written


def count(number: int) -> str:
    """A number with its thousands apart."""
    return f"{number:,}"


def share(part: float) -> str:
    """A share in percent; what is there is never told as nothing, nor what lacks as all."""
    if 0 < part < 0.001:
        return "<0.1%"
    return ">99.9%" if 0.999 < part < 1 else f"{100 * part:.1f}%"


def visible(text: object, exact: bool = False) -> Markup:
    """Text, escaped, with what nobody would see as code points; `exact` names white space and accents too."""
    if exact:
        return Markup("").join(_named(character) for character in str(text))
    return Markup(HIDDEN.sub(lambda match: str(_code(match[0])), str(escape(str(text)))))


def short(text: object, most: int = SHORT) -> Markup:
    """The beginning of a text, with how much follows."""
    rest = len(whole := str(text)) - most
    more = Markup(' <span class="more">… {} more characters</span>').format(count(rest))
    return visible(whole[:most]) + (more if rest > 0 else "")


def control(pieces: Sequence[tuple[str, bool]]) -> Markup:
    """Pieces of text and of control tokens, the latter told apart."""
    token = Markup('<span class="control">{}</span>')
    return Markup("").join(token.format(text) if is_control else visible(text) for text, is_control in pieces)


def differ(left: str, right: str, exact: bool = False) -> tuple[Markup, Markup]:
    """Two texts, from shortly before they part, with the characters marked in which they differ."""
    part = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    begin = max(0, part - COMPARED // 4) if max(len(left), len(right)) > COMPARED else 0
    both = (left[begin : begin + COMPARED], right[begin : begin + COMPARED])
    told = Markup('<span class="more">{} characters alike … </span>').format(count(begin)) if begin else Markup("")
    sides: tuple[list[Markup], list[Markup]] = ([told], [told])
    for kind, *ends in SequenceMatcher(None, *both, autojunk=False).get_opcodes():
        pieces = (both[0][ends[0] : ends[1]], both[1][ends[2] : ends[3]])
        for side, piece in zip(sides, pieces, strict=True):
            if piece:
                shown = visible(piece, exact and kind != "equal")
                side.append(shown if kind == "equal" else Markup("<mark>{}</mark>").format(shown))
    rest = [short(text[begin + COMPARED :], 0) for text in (left, right)]
    return Markup("").join([*sides[0], rest[0]]), Markup("").join([*sides[1], rest[1]])


def bars(bins: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """A histogram whose areas are rows: bins may span unlike numbers of tokens."""
    low, high = bins[0]["low"], bins[-1]["high"]
    spans = [each["high"] - each["low"] + 1 for each in bins]
    top = max(each["rows"] / span for each, span in zip(bins, spans, strict=True))
    heights = [100 * each["rows"] / span / (top or 1) for each, span in zip(bins, spans, strict=True)]
    columns = [{**b, "span": s, "height": h} for b, s, h in zip(bins, spans, heights, strict=True)]
    return {
        "low": low,
        "middle": (low + high) // 2,
        "high": high,
        "densest": f"{top:,.{0 if top >= 10 else 1}f}",
        "columns": columns,
    }


def _named(character: str) -> Markup:
    if character in MARKS:
        return Markup('<span class="code">{}</span>{}').format(*MARKS[character])
    return _code(character) if unicodedata.category(character) in NAMED else escape(character)


def _code(character: str) -> Markup:
    return Markup('<span class="code">U+{}</span>').format(f"{ord(character):04X}")
