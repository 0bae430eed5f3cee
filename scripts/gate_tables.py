"""The tables of docs/GATE.md that follow from formulas: what rows can show, and what many terms cost.

python scripts/gate_tables.py
"""

import numpy as np

from tunesmith.design import detectable_gain, rows_for_gain, rows_for_margin, smallest_margin
from tunesmith.gate.power import all_pass
from tunesmith.stats import spent, unseen

ALPHA, POWER = 0.05, 0.8
ROWS = (50, 100, 200, 500, 1000, 2000)
GAINS = (0.05, 0.10, 0.20, 0.30)
ALIKE = (0.02, 0.05, 0.10)


def table(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *lines])


def number(value: float | None) -> str:
    """Three decimals, or a dash where there is no such number."""
    return "-" if value is None else f"{value:.3f}"


def rows_table() -> str:
    """Smallest gain and smallest margin by rows and by how often two arms differ."""
    header = ["n", *(f"gain, q {q:.2f}" for q in GAINS), *(f"margin, q {q:.2f}" for q in ALIKE)]
    lines = [
        [
            str(n),
            *(number(detectable_gain(n, q, ALPHA, POWER)) for q in GAINS),
            *(number(smallest_margin(n, q, ALPHA, POWER)) for q in ALIKE),
        ]
        for n in ROWS
    ]
    return table(header, lines)


def needed_table() -> str:
    """Rows for a gain and for a margin at the power that a single term wants."""
    effects = (0.02, 0.03, 0.05, 0.08, 0.10)
    header = ["points", *(f"gain, q {q:.2f}" for q in GAINS), *(f"margin, q {q:.2f}" for q in ALIKE)]
    lines = []
    for effect in effects:
        gains = [rows_for_gain(effect, q, ALPHA, 0.95) for q in GAINS]
        margins = [rows_for_margin(effect, q, ALPHA, 0.95) for q in ALIKE]
        lines.append([f"{100 * effect:.0f}", *("-" if rows is None else str(rows) for rows in [*gains, *margins])])
    return table(header, lines)


def terms_table() -> str:
    """How likely all of several terms pass."""
    lines = [
        [f"{power:.2f}", *(f"{all_pass([power] * k, 0.3 + 0.7 * np.eye(k)):.2f}" for k in (3, 6, 10))]
        for power in (0.80, 0.95)
    ]
    return table(["power of each", "3 terms", "6 terms", "10 terms"], lines)


def looks_table() -> str:
    """The level of each look."""
    looks = range(1, 7)
    return table(["look", *map(str, looks)], [["alpha", *(f"{spent(ALPHA, look):.4f}" for look in looks)]])


def unseen_table() -> str:
    """What may hide where nothing was seen."""
    rows = (30, 100, 300, 1000)
    return table(["none of", *map(str, rows)], [["at most", *(f"{unseen(n, ALPHA):.2%}" for n in rows)]])


def tables() -> dict[str, str]:
    """All tables by name."""
    return {
        "rows": rows_table(),
        "needed": needed_table(),
        "terms": terms_table(),
        "looks": looks_table(),
        "unseen": unseen_table(),
    }


if __name__ == "__main__":
    for name, text in tables().items():
        print(f"{name}\n\n{text}\n")
