"""A diagnosis as one page for a terminal, from diagnosis.json alone."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

ACTIONS = {
    "nothing": "change nothing",
    "mend_calls": "mend the calls",
    "fix_labels": "fix the labels",
    "retrieval": "retrieval",
    "prompt": "prompt",
    "constrained_decoding": "decode by the schema, with shots",
    "fine_tuning": "fine-tune",
    "hybrid": "hybrid: retrieval, and fine-tuning on top of its passages",
    "bigger_base": "a bigger base",
}
ANSWERS = {"yes": "fine-tune", "no": "do not fine-tune", "undecided": "not decided whether to fine-tune"}
MOST_LABELS = 8


def show(told: Mapping[str, Any], console: Console) -> None:
    """Print causes, interventions, costs, and what to do."""
    rate = told["fail_rate"]
    console.print(f"\n{told['rows']} rows judged, {told['failing']} fail: {_share(rate)} of the traffic")
    if told.get("without_reference"):
        console.print(f"{told['without_reference']} rows have no reference and are not judged")
    for key, count in told.get("unread", {}).items():
        console.print(f"not read: `{key}`, in {count} rows", markup=False)
    if told["causes"]:
        how = "by what repaired them" if told["measured"] else "by the labels of their answers; nothing was tried"
        console.print(f"\nWhy {told['examined']} of them fail, {how} ({told['level']:.0%} intervals)\n")
        console.print(_causes(told))
        labels = list(told["first_labels"].items())[:MOST_LABELS]
        console.print("\nfirst labels: " + ", ".join(f"{name} {count}" for name, count in labels))
    if told["suspected_labels"]:
        kinds = ", ".join(f"{name} {count}" for name, count in sorted(told["suspected_labels"].items()))
        console.print(f"references that are suspected, right rows among them: {kinds}")
    if told.get("interventions"):
        console.print("\nWhat was tried on failing rows, beside a placebo of equal length\n")
        console.print(_interventions(told))
        if told.get("facts_given"):
            console.print(
                f"\nfacts are given in {told['facts_given']} rows: no source is named that their prompts lack"
            )
        if parts := told["shapley"]:
            gained = parts["right"]["y11"] - parts["right"]["y00"]
            console.print(
                f"\nof {gained:+.3f} on all rows: source {_signed(parts['source'])}, aid {_signed(parts['aid'])}"
            )
    if told.get("cost"):
        console.print(f"\nWhat it costs, in dollars ({told['cost']['about']})\n")
        console.print(_costs(told["cost"]))
    _prescribe(told, console)


def _causes(told: Mapping[str, Any]) -> Table:
    table = Table("cause", "share", "interval", "rows", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    ranked = sorted(told["causes"].items(), key=lambda pair: -pair[1]["estimate"])
    for name, each in ranked:
        rows = round(each["estimate"] * each["n"]) if not told.get("weighted") else ""
        table.add_row(name.replace("_", " "), f"{each['estimate']:.0%}", _bounds(each), f"{rows}")
    return table


def _interventions(told: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("intervention", "repairs", "placebo", "net", "interval", "p", "breaks right rows"):
        table.add_column(column, justify="left" if column == "intervention" else "right")
    for name, each in told["interventions"].items():
        net, broken = each["net"], each["broken"]
        table.add_row(
            f"{name} ({each['cell']}, {net['n']} rows)",
            f"{each['repaired']:.0%}",
            f"{each['repaired_by_placebo']:.0%}",
            f"{net['estimate']:+.0%}",
            f"{net['low']:+.0%} to {net['high']:+.0%}",
            f"{each['mcnemar_p']:.2g}",
            _share(broken) if broken else "none tried",
        )
    return table


def _costs(cost: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("option", "tokens in", "shared", "out", "1000 calls", "1000 right", "pays from, calls a month"):
        table.add_column(column, justify="left" if column == "option" else "right")
    for name, each in cost["options"].items():
        right = each["usd_per_1000_right"]
        pays = each["break_even_calls_a_month"]
        table.add_row(
            name.replace("_", " "),
            f"{each['tokens_in']:.0f}",
            f"{each['tokens_shared']:.0f}",
            f"{each['tokens_out']:.0f}",
            f"{each['usd_per_1000_calls']:.4f}",
            "" if right is None else f"{right:.4f}",
            "" if pays is None else pays if isinstance(pays, str) else f"{pays:.0f}",
        )
    return table


def _prescribe(told: Mapping[str, Any], console: Console) -> None:
    found = told["prescription"]
    console.print()
    for number, step in enumerate(found["steps"], start=1):
        console.print(f"[bold]{number}. {ACTIONS[step['action']]}[/bold]: ", end="")
        console.print(step["because"], markup=False, soft_wrap=True)
    console.print(f"[bold]{ANSWERS[found['fine_tune']]}[/bold]: ", end="")
    console.print(found["because"], markup=False, soft_wrap=True)
    if not found["decided"]:
        failing, rows = found["failing_rows_needed"], found["rows_needed"]
        if failing:
            whole = f", about {rows} rows in all" if rows else ""
            console.print(f"about {failing} failing rows would settle it{whole}, if the shares stay as they are")
        else:
            console.print("no number of rows would settle it while the shares are what they are")


def _share(each: Mapping[str, float]) -> str:
    return f"{each['estimate']:.0%} ({_bounds(each)})"


def _bounds(each: Mapping[str, float]) -> str:
    return f"{each['low']:.0%} to {each['high']:.0%}"


def _signed(each: Mapping[str, float]) -> str:
    return f"{each['estimate']:+.3f} ({each['low']:+.3f} to {each['high']:+.3f})"
