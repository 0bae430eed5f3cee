"""What the report says of a curation, gathered once as plain data: the page only lays it out."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.curate.alarms import triggers
from tunesmith.curate.duplicates import Duplicates
from tunesmith.curate.manifest import read_split
from tunesmith.curate.pile import Pile
from tunesmith.curate.split import NOWHERE, Cut
from tunesmith.errors import UserError
from tunesmith.leaks import KINDS, Leak, Text, find_leaks, row_texts, trained_texts
from tunesmith.probes import probe_texts
from tunesmith.prompt import Rendered, Renderer
from tunesmith.recipe import LoadedRecipe
from tunesmith.rows import SPLITS, Row, loads

SHOWN_ROWS = 20
SHOWN_PAIRS = 8
SHOWN_LEAKS = 5
SHOWN_VALUES = 40
RENDERED = 5000
"""Rows of a split that are rendered for the token lengths; more say nothing new."""
BINS = 24
ALARMED = 10_000
"""Training rows in which triggers are looked for."""
HELD = 20_000
"""Rows of a held-out split that the leak table compares; of a larger one, its first."""


def gather(
    loaded: LoadedRecipe,
    pile: Pile,
    duplicates: Duplicates,
    cut: Cut,
    out: Path,
    manifest: Mapping[str, Any],
    renderer: Renderer | None,
) -> dict[str, Any]:
    """Everything that the report shows, from the splits in `out` and from what curation noted on its way."""
    recipe = loaded.recipe
    return {
        "recipe": recipe.name,
        "description": recipe.description,
        "base": recipe.base,
        "manifest": dict(manifest),
        "funnel": funnel(pile, manifest),
        "changes": [
            {"step": step, "rows": count, "shown": pile.shown.get(step, [])} for step, count in pile.changed.items()
        ],
        "drops": [
            {
                "step": step,
                "reason": reason,
                "rows": count,
                "shown": [[d.id, d.place, d.detail] for d in pile.dropped_shown[step, reason]],
            }
            for (step, reason), count in pile.dropped.items()
        ],
        "lengths": lengths(out, renderer) if renderer else None,
        "balance": balance(pile, cut),
        "fields": fields(out),
        "near": near_pairs(pile, duplicates, cut),
        "leaks": leak_table(loaded, out),
        "privacy": private(pile),
        "alarms": [vars(alarm) for alarm in triggers(prompts_and_completions(out))],
        "rows": rendered_rows(out, renderer) if renderer else None,
    }


def funnel(pile: Pile, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """From what was read to what each split holds: rows left after each step that leaves rows out."""
    stages: list[dict[str, Any]] = [{"name": "lines read", "rows": sum(pile.read.values())}]
    left = sum(pile.made.values())
    stages.append({"name": "rows made of them", "rows": left})
    for step, reasons in manifest["dropped"].items():
        if step in ("read", "script"):
            continue
        left -= sum(reasons.values())
        stages.append({"name": f"after {step}", "rows": left})
    return stages


def lengths(out: Path, renderer: Renderer) -> dict[str, Any]:
    """Tokens of prompts and completions as the base's template renders them: quantiles by split, and train's bars."""
    table: dict[str, Any] = {}
    trained: list[tuple[int, int]] = []
    for split in SPLITS:
        rendered = [r for row in islice(read_split(out, split), RENDERED) if (r := _rendered(renderer, row))]
        numbers = [(len(r.prompt_ids), len(r.completion_ids)) for r in rendered]
        trained = numbers if split == "train" else trained
        table[split] = {
            name: _quantiles([sum(n) if which is None else n[which] for n in numbers])
            for name, which in (("prompt", 0), ("completion", 1), ("whole", None))
        }
    bars = {name: _histogram([n[which] for n in trained]) for name, which in (("prompt", 0), ("completion", 1))}
    return {"quantiles": table, "bars": bars, "rendered": RENDERED}


def _rendered(renderer: Renderer, row: Row) -> Rendered | None:
    """A row as the base's template writes it; none where the template refuses it, which `check` tells of."""
    try:
        return renderer.render(row)
    except UserError:
        return None


def _quantiles(numbers: Sequence[int]) -> dict[str, int]:
    if not numbers:
        return {"p50": 0, "p95": 0, "max": 0}
    p50, p95 = np.quantile(numbers, [0.5, 0.95], method="higher").tolist()
    return {"p50": int(p50), "p95": int(p95), "max": max(numbers)}


def _histogram(numbers: Sequence[int]) -> list[dict[str, int]]:
    if not numbers:
        return []
    edges = np.unique(np.linspace(min(numbers), max(numbers) + 1, BINS + 1).astype(int))
    counts, _ = np.histogram(numbers, bins=edges)
    bins = zip(pairwise(edges.tolist()), counts.tolist(), strict=True)
    return [{"low": low, "high": high - 1, "rows": rows} for (low, high), rows in bins]


def balance(pile: Pile, cut: Cut) -> list[dict[str, Any]]:
    """Rows of each stratum in each split, the largest first; one stratum is no balance to speak of."""
    strata = pile.columns["stratum"]
    counts = {split: Counter(strata[cut.splits == number].tolist()) for number, split in enumerate(SPLITS)}
    whole: Counter[int] = sum(counts.values(), Counter())
    if len(whole) < 2:
        return []
    table: list[dict[str, Any]] = [
        {"value": pile.strata[key], "rows": total, "splits": {split: counts[split][key] for split in SPLITS}}
        for key, total in sorted(whole.items(), key=lambda pair: (-pair[1], pile.strata[pair[0]]))
    ]
    rest = table[SHOWN_VALUES:]
    if rest:
        splits = {split: sum(entry["splits"][split] for entry in rest) for split in SPLITS}
        table[SHOWN_VALUES:] = [{"value": f"{len(rest)} more", "rows": sum(splits.values()), "splits": splits}]
    return table


def fields(out: Path) -> list[dict[str, Any]]:
    """How often each key stands in the completions that are JSON objects, by split, and what stands there most."""
    held: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    totals: Counter[str] = Counter()
    values: dict[str, Counter[str]] = {}
    for split in SPLITS:
        for row in read_split(out, split):
            try:
                completion = loads(row.reference)
            except ValueError:
                continue
            if not isinstance(completion, dict):
                continue
            totals[split] += 1
            for key, value in completion.items():
                held[split][key] += 1
                values.setdefault(key, Counter())[json.dumps(value, ensure_ascii=False)[:60]] += 1
    keys = sorted(values, key=lambda key: -sum(values[key].values()))[:SHOWN_VALUES]
    return [
        {
            "key": key,
            "shares": {split: held[split][key] / totals[split] if totals[split] else 0.0 for split in SPLITS},
            "different": len(values[key]),
            "most": values[key].most_common(3),
        }
        for key in keys
    ]


def near_pairs(pile: Pile, duplicates: Duplicates, cut: Cut) -> dict[str, Any]:
    """How many rows are near another, the largest clusters, and some pairs side by side from most to least alike."""
    alive = (cut.splits[duplicates.near] != NOWHERE).all(axis=1) if len(duplicates.near) else np.zeros(0, dtype=bool)
    pairs, alike = duplicates.near[alive], duplicates.similarity[alive]
    order = np.argsort(-alike, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, SHOWN_PAIRS).astype(int))] if len(order) else order
    shown = []
    for index in chosen.tolist():
        left, right = pile.values(pairs[index].tolist())
        shown.append({"alike": float(alike[index]), "left": _side(left), "right": _side(right)})
    placed = cut.splits != NOWHERE
    sizes = Counter(Counter(cut.groups[placed].tolist()).values())
    return {
        "pairs": len(pairs),
        "rows": len(np.unique(pairs)),
        "sizes": sorted(sizes.items()),
        "shown": shown,
    }


def _side(value: Mapping[str, Any]) -> list[str]:
    row = Row.model_validate(value)
    return [row.id, row.prompt_text, row.reference]


def leak_table(loaded: LoadedRecipe, out: Path) -> list[dict[str, Any]]:
    """Leaks from each side to the other, by kind, with some of them."""
    near = loaded.recipe.curate.duplicates.near
    held = {split: list(row_texts(islice(read_split(out, split), HELD))) for split in ("dev", "gate", "confirm")}
    others: dict[str, list[Text]] = dict(held)
    for name, texts in probe_texts(loaded.recipe.curate.probes, loaded.root).items():
        others[name] = [Text(f"{name}#{i}", text) for i, text in enumerate(texts, start=1)]

    def trained(name: str) -> Iterator[Text]:
        rows = read_split(out, "train")
        return row_texts(rows) if name in held else trained_texts((row.id, row) for row in rows)

    table = [_leaks("train", name, find_leaks(trained(name), other, near)) for name, other in others.items()]
    pairs = (("dev", "gate"), ("dev", "confirm"), ("gate", "confirm"))
    return [*table, *(_leaks(a, b, find_leaks(held[a], held[b], near)) for a, b in pairs)]


def _leaks(left: str, right: str, leaks: Sequence[Leak]) -> dict[str, Any]:
    # A row may leak in several ways: it counts once, by the surest.
    surest: dict[str, Leak] = {}
    for leak in sorted(leaks, key=lambda leak: KINDS.index(leak.kind)):
        surest.setdefault(leak.left, leak)
    leaks = list(surest.values())
    counts = Counter(leak.kind for leak in leaks)
    return {
        "left": left,
        "right": right,
        "kinds": {kind: counts[kind] for kind in KINDS},
        "shown": [[leak.kind, leak.left, leak.right, leak.says] for leak in leaks[:SHOWN_LEAKS]],
    }


def private(pile: Pile) -> list[dict[str, Any]]:
    """Findings by rule and by what was done, with some row ids; the values stand nowhere."""
    ids: dict[tuple[str, str], list[str]] = {}
    for row, rule, action in pile.findings:
        ids.setdefault((rule, action), []).append(row)
    return [
        {"rule": rule, "action": action, "rows": len(rows), "shown": rows[:SHOWN_ROWS]}
        for (rule, action), rows in sorted(ids.items())
    ]


def prompts_and_completions(out: Path) -> list[tuple[str, str]]:
    """What training rows ask and answer."""
    return [(row.source, row.reference) for row in islice(read_split(out, "train"), ALARMED)]


def rendered_rows(out: Path, renderer: Renderer) -> list[dict[str, Any]]:
    """Training rows as the model will see them, chosen by the hash of their ids: pieces of text and control tokens."""
    ids = sorted((hashlib.sha256(row.id.encode()).hexdigest(), row.id) for row in read_split(out, "train"))
    chosen = {row_id for _, row_id in ids[:SHOWN_ROWS]}
    shown = []
    for row in read_split(out, "train"):
        for turn in row.turns() if row.id in chosen else ():
            if (rendered := _rendered(renderer, turn)) is None:
                continue
            shown.append(
                {
                    "id": turn.id,
                    "group": turn.group,
                    "tokens": len(rendered.input_ids),
                    "prompt": renderer.pieces(rendered.prompt_ids),
                    "completion": renderer.pieces(rendered.completion_ids),
                }
            )
    return shown
