"""Judge a run: read its evidence, write verdict.json and a line in the ledger."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.files import read_json, sha256_json, write_atomic, write_json
from tunesmith.gate import ledger
from tunesmith.gate.cost import priced
from tunesmith.gate.evidence import read_evidence
from tunesmith.gate.junit import junit
from tunesmith.gate.page import PAGE, write_page
from tunesmith.gate.summary import summary
from tunesmith.gate.verdict import judge
from tunesmith.leaks import find_leaks, row_texts
from tunesmith.recipe import LoadedRecipe
from tunesmith.rows import Dataset
from tunesmith.runs import Run, versions


def gate(loaded: LoadedRecipe, run: Run, ledger_path: Path, out: Path) -> None:
    """Weigh a run's evidence and write `verdict.json` into `out`, and beside it the same as page, JUnit and Markdown.

    Raises:
        UserError: evidence is missing.
    """
    recipe = loaded.recipe
    evidence = replace(read_evidence(run.directory), leaks=leaks(loaded))
    manifest = read_json(run.path("adapter/manifest.json"))
    gate_digest = evidence.arms["adapter"].about["split_digest"]
    candidate = manifest["files"]["adapter_model.safetensors"]
    about: dict[str, Any] = {
        "name": recipe.name,
        "run": run.directory.name,
        "set": loaded.overrides(),
        "recipe": recipe.as_dict(),
        "look": ledger.look_number(ledger_path, gate_digest, candidate),
        "digests": {
            "base": manifest["base"]["digest"],
            "adapter": candidate,
            "merged": evidence.arms["merged"].about["weights"]["merged"],
            "prompt": manifest["prompt_digest"],
            "recipe": sha256_json(recipe.as_dict()),
            "train": manifest["train_digest"],
            "gate": gate_digest,
        },
        "versions": versions(),
    }
    verdict = judge(evidence, recipe, about)
    for name, arm in evidence.arms.items():
        if name in verdict["arms"]:
            verdict["arms"][name] |= {"shots": arm.about["shots"], "k": arm.about["k"]}
    verdict["cost"] = priced(verdict["cost"], evidence, loaded)
    write_json(out / "verdict.json", verdict)
    sources = {row.id: row.source for row in Dataset(loaded.data_directory).rows("gate")}
    write_page(out / PAGE, verdict, evidence, sources, loaded.label)
    write_atomic(out / "junit.xml", junit(verdict))
    write_atomic(out / "verdict.md", summary(verdict))
    ledger.enter(
        ledger_path,
        {
            "name": recipe.name,
            "run": run.directory.name,
            "candidate": candidate,
            "gate_digest": gate_digest,
            "look": about["look"],
            "verdict": verdict["verdict"],
            "verdict_digest": sha256_json({k: v for k, v in verdict.items() if k != "cost"}),
        },
    )


def leaks(loaded: LoadedRecipe) -> dict[str, int]:
    """Gate rows that stand in train too, by kind of leak, after checking that both files are as they were written."""
    dataset = Dataset(loaded.data_directory)
    dataset.manifest()
    train = list(row_texts(dataset.rows("train")))
    found = find_leaks(row_texts(dataset.rows("gate")), train, loaded.recipe.curate.duplicates.near)
    return dict(Counter(leak.kind for leak in found))
