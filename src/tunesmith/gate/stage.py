"""Judge a run: read its evidence, write verdict.json and a line in the ledger."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.fields import value_of
from tunesmith.files import read_json, sha256_json, write_atomic, write_json
from tunesmith.gate import lock
from tunesmith.gate.cost import priced
from tunesmith.gate.evidence import Evidence, read_evidence
from tunesmith.gate.junit import junit
from tunesmith.gate.ledger import Ledger
from tunesmith.gate.page import PAGE, write_page
from tunesmith.gate.summary import summary
from tunesmith.gate.terms import Term, fact
from tunesmith.gate.verdict import judge
from tunesmith.leaks import find_leaks, row_texts
from tunesmith.recipe import LoadedRecipe, Recipe
from tunesmith.rows import SPLITS, Dataset
from tunesmith.runs import Run, versions
from tunesmith.stats import spent


def gate(loaded: LoadedRecipe, run: Run, ledger: Ledger, out: Path, *, scorer: str) -> None:
    """Weigh a run's evidence and write `verdict.json` into `out`, and beside it the same as page, JUnit and Markdown.

    `scorer` is the digest of what scored it.

    Raises:
        UserError: evidence is missing.
    """
    recipe = loaded.recipe
    evidence = replace(read_evidence(run.directory), leaks=leaks(loaded), slices=sliced(loaded))
    manifest = read_json(run.path("adapter/manifest.json"))
    gate_digest = evidence.arms["adapter"].about["split_digest"]
    candidate = manifest["files"]["adapter_model.safetensors"]
    held = lock.read_lock(run.path(lock.NAME))
    # Of a broken chain nothing is told, and nothing is added to it: its terms fail.
    problems = ledger.problems()
    known = {"name": recipe.name, "run": run.directory.name, "lock": held["digest"] if held else None}
    if problems:
        look = ledger.look_number(gate_digest, candidate)
    else:
        look = ledger.look(gate_digest, candidate, **known, by="gate")
    about: dict[str, Any] = {
        "name": recipe.name,
        "run": run.directory.name,
        "set": loaded.overrides(),
        "recipe": recipe.as_dict(),
        "look": look,
        "lock": _told(held),
        "ledger": ledger.id,
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
    now = stated(loaded, run, evidence, manifest, scorer)
    bound = [
        *ledger_terms(problems, look, recipe),
        *lock.terms(run.path(lock.NAME), now, manifest, ledger, candidate, gate_digest),
    ]
    verdict = judge(evidence, recipe, about, bound)
    for name, arm in evidence.arms.items():
        if name in verdict["arms"]:
            verdict["arms"][name] |= {"shots": arm.about["shots"], "k": arm.about["k"]}
    if (diagnosed := run.path("diagnosis.json")).is_file():
        found = read_json(diagnosed)
        verdict["diagnosis"] = {key: found[key] for key in ("causes", "prescription", "level", "rows")}
    verdict["cost"] = priced(verdict["cost"], evidence, loaded)
    write_json(out / "verdict.json", verdict)
    sources = {row.id: row.source for row in Dataset(loaded.data_directory).rows("gate")}
    write_page(out / PAGE, verdict, evidence, sources, loaded.label)
    write_atomic(out / "junit.xml", junit(verdict))
    write_atomic(out / "verdict.md", summary(verdict))
    if problems:
        return
    ledger.enter(
        {
            "kind": "verdict",
            **known,
            "candidate": candidate,
            "gate_digest": gate_digest,
            "look": look,
            "alpha": spent(recipe.gate.alpha, look),
            "verdict": verdict["verdict"],
            "verdict_digest": sha256_json({k: v for k, v in verdict.items() if k != "cost"}),
        }
    )


def stated(loaded: LoadedRecipe, run: Run, evidence: Evidence, manifest: dict[str, Any], scorer: str) -> dict[str, Any]:
    """What decides this verdict, to be held against the lock: from the adapter and its answers."""
    dataset = Dataset(loaded.data_directory)
    return lock.stated(
        loaded.recipe,
        evidence.selection,
        evidence.arms["adapter"].about,
        run=run.directory.name,
        base=manifest["base"]["digest"],
        splits={split: dataset.digest(split) for split in SPLITS},
        scorer=scorer,
        started_from=manifest.get("after"),
    )


def ledger_terms(problems: list[str], look: int, recipe: Recipe) -> list[Term]:
    """That the ledger is whole, and that the gate split is not used up."""
    found = f" (found: {'; '.join(problems)})" if problems else ""
    most = recipe.gate.max_looks
    retired = f": it is retired; `tunesmith promote {recipe.name}` makes the confirm rows the new gate split"
    return [
        fact("ledger_whole", not problems, f"every line of the ledger is what was written, in its place{found}"),
        fact(
            "looks_left",
            look <= most,
            f"look {look} of {most} at this gate split" + (retired if look > most else ""),
        ),
    ]


def _told(held: dict[str, Any] | None) -> dict[str, Any] | None:
    if held is None:
        return None
    return {"digest": held["digest"], "written_at": held["written_at"], "plan": held.get("plan")}


def leaks(loaded: LoadedRecipe) -> dict[str, int]:
    """Gate rows that stand in train too, by kind of leak, after checking that both files are as they were written."""
    dataset = Dataset(loaded.data_directory)
    dataset.manifest()
    train = list(row_texts(dataset.rows("train")))
    found = find_leaks(row_texts(dataset.rows("gate")), train, loaded.recipe.curate.duplicates.near)
    return dict(Counter(leak.kind for leak in found))


def sliced(loaded: LoadedRecipe) -> dict[str, dict[str, str]]:
    """Each gate row's value at every path that the recipe slices by."""
    paths = [section.by for section in loaded.recipe.gate.slices]
    rows = Dataset(loaded.data_directory).rows("gate") if paths else []
    return {
        path: {row.id: value for row in rows if (value := value_of(row, path)) is not None} for path in paths
    }  # fmt: skip
