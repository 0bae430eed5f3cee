"""Train the smoke recipes for thirty steps and write their losses with the environment they were computed in.

    make golden

tests/golden/losses.json is what `tests/test_golden.py` holds later runs against: a change of any loss, by us or by an
upgrade upstream, must be seen, read and recorded on purpose. So a tree with changes that are not committed is refused.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tunesmith.files import read_json, read_jsonl, write_json
from tunesmith.line import Line, quiet_libraries

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "losses.json"
RECIPES = ("smoke", "smoke-qlora")
SETTINGS = ("trainer.max_steps=30", "trainer.logging_steps=1", "lora.lora_dropout=0.1")


def losses(recipe: str, root: Path, scratch: Path) -> dict[str, list[float]]:
    """Train a recipe of the project at `root`; its losses, by step and by epoch, in nats a token."""
    line = Line(recipe, sets=SETTINGS, root=root, runs=scratch / "runs")
    line.curate()
    line.check()
    line.train()
    lines = list(read_jsonl(line.run.path("train.jsonl")))
    return {key: [one[key] for one in lines if key in one] for key in ("loss", "grad_norm", "dev_nll")}


def environment() -> dict[str, Any]:
    """What decides the last bits of a loss on a CPU."""
    import torch

    from tunesmith.runs import versions

    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def refuse_changes() -> None:
    """Leave where the tree has changes that no commit holds: golden losses belong to a commit."""
    changed = subprocess.run(
        ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    if changed:
        sys.exit(f"golden: the tree has changes that are not committed: {', '.join(c[3:] for c in changed[:5])}")


def main() -> None:
    """Record."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    refuse_changes()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as scratch:
        recorded = {name: losses(name, ROOT, Path(scratch)) for name in RECIPES}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    before = read_json(GOLDEN) if GOLDEN.is_file() else {}
    write_json(GOLDEN, {"commit": commit.stdout.strip(), "environment": environment(), "losses": recorded})
    for name, values in recorded.items():
        old = before.get("losses", {}).get(name, values)["loss"]
        most = max(abs(a - b) for a, b in zip(old, values["loss"], strict=True))
        print(f"{name}: {values['loss'][0]:.4f} to {values['loss'][-1]:.4f}; largest change of a loss {most:.2e}")
    print(GOLDEN.relative_to(ROOT))


if __name__ == "__main__":
    main()
