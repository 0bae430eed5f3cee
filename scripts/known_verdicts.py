"""Give the gate candidates of which the right verdict is known, and say whether it found it.

    python scripts/known_verdicts.py json-extract                       # all of them; hours on two cores
    python scripts/known_verdicts.py json-extract --only honest zero --set arms.few_shot=[3]
    python scripts/known_verdicts.py smoke --out build/known            # a minute on the tiny base

Nothing is made up: every candidate goes through the stages of `tunesmith run` on the recipe's own base and rows. Its
run, with report.html, stays under --out, with a ledger of its own; zero is the second look of honest's. Spoiled are:

- honest: nothing. Any verdict may be right; it is told.
- one_step: training ends after one step. It must not ship.
- shuffled: train rows hold each other's completions. BLOCK.
- leaked: half of the gate rows stand in train. INVALID. `check` refuses to train on such rows, so it is not asked.
- zero: the honest adapter with every B set to zero: a copy of the base. INVALID. It is put where training puts its own.
- overtrained: a high learning rate, kept to the end. BLOCK, by a guard among others.

Exit 1 if a verdict is not the right one.
"""

import argparse
import multiprocessing
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tunesmith.ending import guarded
from tunesmith.errors import UserError
from tunesmith.files import read_json, sha256_file, write_json, write_jsonl
from tunesmith.line import Line, quiet_libraries
from tunesmith.rows import Dataset, Row

NOT_GUARDS = ("gain_", "beats_trivial", "merged_no_worse")
"""How terms are called that weigh the task, and no guard."""


@dataclass(frozen=True)
class Case:
    """A candidate and what the gate must say of it."""

    right: frozenset[str]
    sets: tuple[str, ...] = ()
    spoil: Callable[[list[Row], list[Row]], list[Row]] | None = None
    """Makes other training rows, of those of train and of gate."""
    needs: Callable[[dict[str, Any]], bool] = lambda verdict: True
    """What the verdict must give for its reason."""


def unmet(verdict: dict[str, Any]) -> list[str]:
    """The terms that are shown to be unmet."""
    return [term["name"] for term in verdict["terms"] if not term["pass"] and not term["undecided"]]


def guards(verdict: dict[str, Any]) -> list[str]:
    """The guards that are shown to be unmet."""
    return [name for name in unmet(verdict) if not name.startswith(NOT_GUARDS)]


def shuffled(train: list[Row], gate: list[Row]) -> list[Row]:
    """Each row with the completion of the next in a random order, so that none keeps its own."""
    order = random.Random(0).sample(range(len(train)), len(train))
    spoiled = list(train)
    for here, there in zip(order, [*order[1:], order[0]], strict=True):
        spoiled[here] = train[here].model_copy(update={"completion": train[there].completion})
    return spoiled


def leaked(train: list[Row], gate: list[Row]) -> list[Row]:
    """Half of the gate rows, in the place of as many training rows."""
    taken = random.Random(0).sample(gate, len(gate) // 2)
    return [*train[: len(train) - len(taken)], *taken]


CASES = {
    "honest": Case(frozenset({"SHIP", "BLOCK", "INCONCLUSIVE"})),
    "one_step": Case(frozenset({"BLOCK", "INCONCLUSIVE"}), sets=("trainer.max_steps=1", "trainer.warmup_steps=0")),
    "shuffled": Case(frozenset({"BLOCK"}), spoil=shuffled),
    "leaked": Case(frozenset({"INVALID"}), spoil=leaked, needs=lambda v: "no_leaks" in unmet(v)),
    "zero": Case(frozenset({"INVALID"}), needs=lambda v: "adapter_at_work" in unmet(v)),
    "overtrained": Case(
        frozenset({"BLOCK"}),
        sets=("trainer.learning_rate=3e-3", "trainer.lr_scheduler_type=constant_with_warmup"),
        needs=lambda verdict: bool(guards(verdict)),
    ),
}


def judged(*asked: Any) -> None:
    """Take a candidate through the line in a process of its own, and end it as a command ends."""
    quiet_libraries()
    sys.exit(guarded(lambda: judge(*asked)))


def judge(name: str, recipe: str, sets: list[str], out: Path) -> None:
    """Take a candidate through the line; leaves its verdict in `out`."""
    case, runs, asked = CASES[name], out / "runs", [*sets, *CASES[name].sets]
    if name == "zero":
        shutil.copytree(out.parent / "honest" / "runs", runs, dirs_exist_ok=True)
    if case.spoil:
        asked.append(f"data.directory={with_other_rows(Line(recipe, sets=sets), case.spoil, out / 'data')}")
    line = Line(recipe, sets=asked, runs=runs)
    if not case.spoil:
        line.curate()
    with line.run.locked():
        if name != "leaked":
            line.check()
        line.baseline()
        line.plan()
        if name == "zero":
            erase(line)
        line.train()
        line.evaluate()
        write_json(out / "verdict.json", line.gate())


def with_other_rows(line: Line, spoil: Callable[[list[Row], list[Row]], list[Row]], to: Path) -> Path:
    """A copy of a recipe's dataset with other training rows."""
    line.curate()
    shutil.copytree(line.dataset.directory, to, dirs_exist_ok=True)
    copy = Dataset(to.resolve())
    rows = spoil(line.dataset.rows("train"), line.dataset.rows("gate"))
    train, manifest = to / copy.file("train"), read_json(copy.manifest_path)
    write_jsonl(train, [row.as_dict() for row in rows])
    manifest["files"][train.name] |= {"sha256": sha256_file(train), "rows": len(rows)}
    write_json(copy.manifest_path, manifest)
    return copy.directory


def erase(line: Line) -> None:
    """Put the run's adapter, with every B at zero, where training puts what it has trained."""
    adapter = line.run.path("adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.zero_()
    manifest = read_json(adapter / "manifest.json")
    with line.run.stage("train", line._trained_on()) as scratch:
        shutil.copytree(adapter, scratch / "adapter")
        save_file(tensors, scratch / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
        manifest["files"]["adapter_model.safetensors"] = sha256_file(scratch / "adapter/adapter_model.safetensors")
        write_json(scratch / "adapter" / "manifest.json", manifest)


def main() -> None:
    """Judge the candidates that are asked for, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=Path("build/known-verdicts"))
    parser.add_argument("--set", action="append", default=[], dest="sets")
    asked = parser.parse_args()
    if "zero" in asked.only and "honest" not in asked.only and not (asked.out / "honest" / "verdict.json").is_file():
        raise UserError("zero is made of the honest adapter: --only honest zero")
    found: dict[str, dict[str, Any]] = {}
    for name in (case for case in CASES if case in asked.only):
        out = asked.out / name
        out.mkdir(parents=True, exist_ok=True)
        # What a process leaves in memory is not the next one's.
        process = multiprocessing.get_context("spawn").Process(
            target=judged, args=(name, asked.recipe, asked.sets, out)
        )
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"{name}: ended with exit code {process.exitcode} before its verdict")
        found[name] = read_json(out / "verdict.json")
    right = [tell(name, verdict) for name, verdict in found.items()]
    sys.exit(0 if all(right) else 1)


def tell(name: str, verdict: dict[str, Any]) -> bool:
    """Print what was made of a candidate; returns whether that was right."""
    case = CASES[name]
    right = verdict["verdict"] in case.right and case.needs(verdict)
    gains = [term for term in verdict["terms"] if term["name"] == "gain_merged"]
    gained = "".join(f" gain {t['estimate']:+.3f} ({t['ci_low']:+.3f} to {t['ci_high']:+.3f})" for t in gains)
    by = f" unmet: {', '.join(unmet(verdict))}" if unmet(verdict) else ""
    print(f"{name:<12} {'right' if right else 'WRONG':<6} {verdict['verdict']}{gained}{by}", flush=True)
    return right


if __name__ == "__main__":
    sys.exit(guarded(main))
