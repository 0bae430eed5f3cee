"""A verdict as text: one page for a terminal, from verdict.json and the arms' rows."""

from typing import Any

from rich.console import Console
from rich.table import Table

from tunesmith.gate.evidence import Evidence
from tunesmith.gate.words import headline, in_numbers, in_order, outcome

SHOWN_ROWS = 5


def print_report(verdict: dict[str, Any], evidence: Evidence, console: Console) -> None:
    """Print arms, terms, fixed and broken rows, and the verdict in a sentence."""
    level = f"{verdict['ci_level']:.0%}"
    primary = verdict["primary"]
    if verdict["arms"]:
        console.print(f"\nArms on the gate rows ({level} intervals; * is the incumbent, chosen on dev)\n")
        console.print(_arms(verdict))
        for name, arm in verdict["arms"].items():
            if "judge" in arm:
                console.print(f"  {_judged(name, arm['judge'])}", markup=False, soft_wrap=True)
        if all("fields" in verdict["arms"][name] for name in ("adapter", verdict["incumbent"])):
            console.print("\nFields, F1\n")
            console.print(_fields(verdict))
    console.print("\nTerms\n")
    console.print(_terms(verdict))
    if verdict["arms"]:
        for title, ids in (("Fixed", verdict["fixed"]), ("Broken", verdict["broken"])):
            console.print(f"\n{title} by the adapter: {len(ids)} rows{', the first:' if ids else ''}")
            _rows(ids[:SHOWN_ROWS], evidence, verdict["incumbent"], console)
    console.print(f"\n[bold]{verdict['verdict']}[/bold]: {headline(verdict)}.")
    if numbers := in_numbers(verdict):
        console.print(numbers, markup=False, soft_wrap=True)
    for reason in verdict["reasons"]:
        console.print(f"  - {reason}", markup=False, soft_wrap=True)
    for each in verdict["not_assessed"]:
        console.print(f"  - not assessed: {each['guard']}: {each['why']}", markup=False, soft_wrap=True)
    if verdict["set"]:
        console.print(f"  - made with --set {', '.join(verdict['set'])}", markup=False)
    console.print(f"  primary metric {primary}, look {verdict['look']} at this gate split")


def _arms(verdict: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    arms, columns = verdict["arms"].values(), verdict["score"]["columns"]
    with_fields = all("fields_micro" in arm for arm in arms)
    corpus = list(dict.fromkeys(metric for arm in arms for metric in arm.get("corpus", {})))
    headings = ["field F1"] * with_fields + list(columns.values()) + [metric.replace("_", " ") for metric in corpus]
    for column in ("arm", verdict["primary"], *headings, "tokens in/out"):
        table.add_column(column, overflow="fold", justify="left" if column == "arm" else "right")
    for name in in_order(verdict["arms"]):
        arm = verdict["arms"][name]
        shown = arm[verdict["primary"]]
        table.add_row(
            name + (f" k={arm['k']}" if arm.get("k") else "") + ("*" if name == verdict["incumbent"] else ""),
            f"{shown['mean']:.3f} ({shown['ci_low']:.3f}-{shown['ci_high']:.3f})",
            *([f"{arm['fields_micro']['f1']:.3f}"] if with_fields else []),
            *(f"{arm[metric]['mean']:.3f}" for metric in columns),
            *(f"{arm['corpus'][metric]:.3f}" if metric in arm.get("corpus", {}) else "" for metric in corpus),
            f"{arm['tokens_in']}/{arm['tokens_out']}",
        )
    return table


def _judged(name: str, judged: dict[str, Any]) -> str:
    flips = "none asked" if judged["flip_rate"] is None else f"{judged['flip_rate']:.0%} flip with the order"
    preferred = f"{judged['preferred']:.3f} by {judged['model']}"
    return f"{name}: preferred to the reference {preferred}, of {judged['rows']} rows ({flips}); decides nothing"


def _fields(verdict: dict[str, Any]) -> Table:
    ours, theirs = verdict["arms"]["adapter"], verdict["arms"][verdict["incumbent"]]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("field", "n", "incumbent", "adapter", "adapter precision", "adapter recall"):
        table.add_column(column, overflow="fold", justify="left" if column == "field" else "right")
    none = {"f1": 0.0, "precision": 0.0, "recall": 0.0, "n": 0}
    lines = [(path, a, theirs["fields"].get(path, none)) for path, a in ours["fields"].items() if a["n"]]
    for label, a, b in [*lines, ("all fields", ours["fields_micro"], theirs["fields_micro"])]:
        numbers = [f"{value:.3f}" for value in (b["f1"], a["f1"], a["precision"], a["recall"])]
        table.add_row(label, str(a["n"]), *numbers)
    return table


def _terms(verdict: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("term", "outcome", "estimate", "interval", "n", "what it says"):
        table.add_column(column, overflow="fold")
    for term in verdict["terms"]:
        numbers = ("", "", "")
        if term["estimate"] is not None:
            numbers = (f"{term['estimate']:+.3f}", f"{term['ci_low']:+.3f} to {term['ci_high']:+.3f}", str(term["n"]))
        table.add_row(term["name"], outcome(term), *numbers, term["says"])
    return table


def _rows(ids: list[str], evidence: Evidence, incumbent: str, console: Console) -> None:
    adapter = {row["id"]: row for row in evidence.arms["adapter"].rows}
    other = {row["id"]: row for row in evidence.arms[incumbent].rows}
    for row_id in ids:
        console.print(f"  {_one_line(row_id)}", markup=False)
        for label, text in (
            ("reference", adapter[row_id]["reference"]),
            ("adapter", adapter[row_id]["prediction"]),
            (incumbent, other[row_id]["prediction"]),
        ):
            line = _one_line(text)
            console.print(
                f"    {label:<11} {line[:160]}{' …' if len(line) > 160 else ''}", markup=False, soft_wrap=True
            )


def _one_line(text: str) -> str:
    """Text of a row or a model on one line; what could steer the terminal is shown as a replacement character."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in " ".join(text.split()))
