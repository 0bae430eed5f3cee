"""Where dots, bars and marks stand on the page of a verdict, in percent of their track."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ROOM = 0.06
"""Of an axis, what stays free on each side."""


class Axis(NamedTuple):
    """A stretch of numbers."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Where a value stands, in percent from the left; what lies beyond the axis stands at its end."""
        return round(100 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low))), 2)

    def ticks(self) -> list[float]:
        """Three to seven round values."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * unit for unit in (1, 2, 2.5, 5, 10) if power * unit >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(number * step, 12) + 0.0 for number in range(first, last + 1)]


def axis(values: Sequence[float], *, within: tuple[float, float] = (-math.inf, math.inf)) -> Axis:
    """An axis that holds all values with some room, and does not leave what is possible."""
    low, high = min(values), max(values)
    room = ROOM * (high - low) or 0.05
    low, high = max(within[0], low - room), min(within[1], high + room)
    return Axis(low, high) if high > low else Axis(low - 0.05, high + 0.05)


def arms_drawn(verdict: Mapping[str, Any], names: Sequence[str], trivial: Mapping[str, float]) -> dict[str, Any]:
    """Arms as dots with their intervals, on one axis; trivial arms as dots alone."""
    metric = verdict["primary"]
    shown = {name: verdict["arms"][name][metric] for name in names}
    values = [value for arm in shown.values() for value in (arm["ci_low"], arm["ci_high"])] + list(trivial.values())
    scale = axis(values, within=(0.0, 1.0))
    dots = [
        {
            "name": name,
            "kind": "ours" if name in TRAINED else "theirs",
            "incumbent": name == verdict["incumbent"],
            "k": verdict["arms"][name].get("k"),
            "at": scale.at(arm["mean"]),
            "from": scale.at(arm["ci_low"]),
            "to": scale.at(arm["ci_high"]),
            **arm,
        }
        for name, arm in shown.items()
    ]
    floor = [{"name": name, "at": scale.at(mean), "mean": mean} for name, mean in trivial.items()]
    best = shown.get(verdict["incumbent"])
    return {
        "dots": dots,
        "trivial": floor,
        "line": scale.at(best["mean"]) if best else None,
        "ticks": [{"at": scale.at(tick), "says": f"{100 * tick:g} %"} for tick in scale.ticks()],
    }


TRAINED = ("adapter", "adapter_retrieval", "merged")


def term_drawn(term: Mapping[str, Any]) -> dict[str, Any] | None:
    """A term's interval beside its margin and beside no difference; none where it has no numbers."""
    if term["estimate"] is None:
        return None
    margin = term["margin"]
    scale = axis([0.0, term["ci_low"], term["ci_high"], *([] if margin is None else [margin])])
    return {
        "zero": scale.at(0.0),
        "margin": None if margin is None else scale.at(margin),
        "at": scale.at(term["estimate"]),
        "from": scale.at(term["ci_low"]),
        "to": scale.at(term["ci_high"]),
    }


def costs_drawn(verdict: Mapping[str, Any], tuned: str = "merged") -> dict[str, Any] | None:
    """A month's cost by its calls, of the incumbent and of what ships, up to twice the calls at which they cross.

    None where they do not cross, or where nothing but the calls costs anything.
    """
    ours, theirs = (verdict["cost"].get(arm, {}) for arm in (tuned, verdict["incumbent"]))
    crossing = ours.get("break_even_calls_a_month")
    if not isinstance(crossing, int) or crossing <= 0 or "usd_per_1000_calls" not in theirs:
        return None
    after, before = (cost["usd_per_1000_calls"] / 1000 for cost in (ours, theirs))
    fixed = crossing * (before - after)
    calls = axis([0.0, 2.0 * crossing], within=(0.0, math.inf))
    money = axis([0.0, 2.0 * crossing * before, fixed + 2.0 * crossing * after], within=(0.0, math.inf))
    lines = {verdict["incumbent"]: (0.0, before), tuned: (fixed, after)}
    return {
        "lines": [
            {
                "name": name,
                "kind": "ours" if name == tuned else "theirs",
                "from": 100 - money.at(start),
                "to": 100 - money.at(start + calls.high * each),
            }
            for name, (start, each) in lines.items()
        ],
        "crossing": {"at": calls.at(crossing), "calls": f"{crossing:,}"},
        "calls": [{"at": calls.at(tick), "says": f"{tick:,.0f}"} for tick in calls.ticks()],
        "money": [{"at": 100 - money.at(tick), "says": f"${tick:,.4g}"} for tick in money.ticks()],
    }


class Piece(NamedTuple):
    """A part of an answer: `same` as the reference, `extra` in the answer, or `missing` from it."""

    kind: str
    text: str


def difference(reference: str, answer: str) -> list[Piece]:
    """An answer beside the reference, by words and signs."""
    wanted, got = _words(reference), _words(answer)
    pieces: list[Piece] = []
    for what, a, b, c, d in difflib.SequenceMatcher(None, wanted, got, autojunk=False).get_opcodes():
        if what == "equal":
            pieces.append(Piece("same", "".join(got[c:d])))
            continue
        if c < d:
            pieces.append(Piece("extra", "".join(got[c:d])))
        if a < b:
            pieces.append(Piece("missing", "".join(wanted[a:b])))
    return pieces


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|\s+|[^\w\s]", text)


def classes_drawn(verdict: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Of each class of failure how many rows of each arm are in it, as bars of one scale."""
    held = verdict["failure_classes"]
    classes = sorted({name for arm in names for name in held.get(arm, {})})
    most = max((held[arm].get(name, 0) for arm in names for name in classes), default=0) or 1
    lines = [
        {
            "name": name.replace("_", " "),
            "bars": [
                {"arm": arm, "rows": rows, "width": round(100 * rows / most, 2)}
                for arm in names
                for rows in [held[arm].get(name, 0)]
            ],
        }
        for name in classes
    ]
    return sorted(lines, key=lambda line: -max(bar["rows"] for bar in line["bars"]))
