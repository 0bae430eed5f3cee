"""Break the seal of confirm: it becomes the gate split, and the gate split that was used up joins dev.

Rows that were looked at still serve to choose by, so they go to dev; every row stays in one of the four files, and a
later curation finds each where it lies. confirm is empty then, until new rows are curated. The manifest records digests
before and after.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.files import publish, sha256_file, write_atomic, write_json
from tunesmith.rows import Dataset, Row, read_rows

CHANGED = ("dev.jsonl", "gate.jsonl", "confirm.jsonl")
CARD = "CARD.md"


def unfinished(dataset: Dataset) -> bool:
    """Whether a promotion was killed when all of it was written, and not all of it in its place."""
    return dataset.next_manifest_path.is_file() and _scratch(dataset).is_dir()


def promote(dataset: Dataset, **facts: Any) -> dict[str, Any]:
    """Promote a dataset's confirm split; returns what the manifest holds of it. `facts` are recorded with it.

    The manifest is the last to be moved into its place, as at curation. One that was killed is finished.

    Raises:
        UserError: the dataset is not whole, or confirm is empty.
    """
    scratch = _scratch(dataset)
    if unfinished(dataset):
        return _move(dataset, scratch)
    manifest = dataset.manifest()
    if not manifest["files"]["confirm.jsonl"]["rows"]:
        raise UserError(
            f"{dataset.directory / 'confirm.jsonl'}: holds no rows; there is nothing left to promote",
            hint="curate new rows: those that are cut to gate make another gate split, those to confirm the next one",
        )
    text = {name: (dataset.directory / name).read_text(encoding="utf-8") for name in CHANGED}
    after = {
        "dev.jsonl": text["dev.jsonl"] + text["gate.jsonl"],
        "gate.jsonl": text["confirm.jsonl"],
        "confirm.jsonl": "",
    }
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    files = dict(manifest["files"])
    for name in CHANGED:
        write_atomic(scratch / name, after[name])
        rows = read_rows(scratch / name) if after[name] else []
        files[name] = _entry(scratch / name, rows)
    promotion = {
        "before": {name: manifest["files"][name]["sha256"] for name in CHANGED},
        "after": {name: files[name]["sha256"] for name in CHANGED},
        **facts,
    }
    told = {**manifest, "files": files, "promotions": [*manifest.get("promotions", []), promotion]}
    write_atomic(scratch / CARD, _card(dataset.directory / CARD, files))
    # As at curation: what the next manifest says is known before the first file moves.
    write_json(dataset.next_manifest_path, told)
    return _move(dataset, scratch)


def _scratch(dataset: Dataset) -> Path:
    return dataset.directory / ".promotion"


def _move(dataset: Dataset, scratch: Path) -> dict[str, Any]:
    """Move what is written into its place, the manifest last."""
    for name in (*CHANGED, CARD):
        if (scratch / name).exists():
            publish(scratch / name, dataset.directory / name)
    os.replace(dataset.next_manifest_path, dataset.manifest_path)
    scratch.rmdir()
    promotion: dict[str, Any] = dataset.manifest()["promotions"][-1]
    return promotion


def _card(path: Path, files: dict[str, Any]) -> str:
    """The card as it stands, and what the splits hold from now on."""
    card = path.read_text(encoding="utf-8") if path.is_file() else ""
    now = ", ".join(f"{name.removesuffix('.jsonl')} {files[name]['rows']}" for name in CHANGED)
    return f"{card}\nSince then confirm became the gate split, and the gate split joined dev. Rows now: {now}.\n"


def _entry(path: Path, rows: list[Row]) -> dict[str, Any]:
    return {"rows": len(rows), "groups": len({row.group for row in rows}), "sha256": sha256_file(path)}
