"""A finished dataset: split files, what was left out, manifest and card. Whole or absent; the manifest last."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.curate.pile import Numbers, Pile
from tunesmith.curate.split import NOWHERE, Cut
from tunesmith.files import publish, sha256_file, write_atomic, write_json
from tunesmith.rows import SPLITS, Dataset
from tunesmith.templates import fill


def write_splits(pile: Pile, cut: Cut, out: Path) -> dict[str, Any]:
    """Write each split's rows in the order of their content, so that the order of the sources is not in them.

    Returns the manifest's `files`.
    """
    files: dict[str, Any] = {}
    names = group_names(pile, cut)
    for number, split in enumerate(SPLITS):
        rows = np.flatnonzero(cut.splits == number)
        rows = rows[np.argsort(pile.columns["exact"][rows], kind="stable")]
        digest = _write(pile, rows, cut, names, out / f"{split}.jsonl")
        files[f"{split}.jsonl"] = {"rows": len(rows), "groups": len(np.unique(cut.groups[rows])), "sha256": digest}
    return files


def write_subsets(pile: Pile, order: Numbers, cut: Cut, out: Path) -> dict[str, Any]:
    """Write nested subsets of the training rows, 1/8, 1/4, 1/2 and all of them, for a curve over the size of data."""
    files: dict[str, Any] = {}
    names = group_names(pile, cut)
    (out / "curve").mkdir()
    for parts in (8, 4, 2, 1):
        rows = order[: max(1, round(len(order) / parts))]
        name = f"curve/train-1-{parts}.jsonl"
        files[name] = {"rows": len(rows), "sha256": _write(pile, rows, cut, names, out / name)}
    return files


def _write(pile: Pile, rows: Numbers, cut: Cut, names: Mapping[int, str], path: Path) -> str:
    """Write some rows, each with the name of its group; returns the file's digest."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for row, value in zip(rows.tolist(), pile.values(rows.tolist()), strict=True):
            value["group"] = names.get(int(cut.groups[row]), value["group"])
            stream.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
    return sha256_file(path)


def group_names(pile: Pile, cut: Cut) -> dict[int, str]:
    """The names of the groups that were joined of several: that of the row with the smallest key."""
    rows = np.flatnonzero(cut.splits != NOWHERE)
    order = rows[np.lexsort([pile.columns["group"][rows], cut.groups[rows]])]
    labels, names = cut.groups[order], pile.columns["group"][order]
    begins = np.flatnonzero(np.concatenate([[True], labels[1:] != labels[:-1]])) if len(order) else order
    ends = np.concatenate([begins[1:], [len(order)]]) - 1 if len(order) else order
    joined = begins[names[begins] != names[ends]]
    return dict(zip(labels[joined].tolist(), (v["group"] for v in pile.values(order[joined].tolist())), strict=True))


def write_card(out: Path, about: str, manifest: Mapping[str, Any], recipe: str, lock: Mapping[str, Any]) -> None:
    """Write CARD.md: what these rows are, where they come from, what was left out."""
    told = {"about": about.strip(), "manifest": manifest, "recipe": recipe, "lock": lock}
    write_atomic(out / "CARD.md", fill("tunesmith.curate", "card.md.jinja", told))


def publish_dataset(out: Path, directory: Path, manifest: Mapping[str, Any]) -> None:
    """Move the finished files into their place, the manifest last.

    An interruption leaves splits that differ from the manifest, which no stage reads; the next curation still knows
    where every row lies, since the manifest to be is there already.
    """
    dataset = Dataset(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(dataset.next_manifest_path, manifest)
    if not (out / "curve").exists():
        # Subsets of a train split that is no more.
        shutil.rmtree(directory / "curve", ignore_errors=True)
    for path in sorted(out.iterdir()):
        publish(path, directory / path.name)
    os.replace(dataset.next_manifest_path, dataset.manifest_path)
