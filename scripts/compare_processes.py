"""Train the same recipe in one process, in two by DDP and in two by FSDP2, and print the losses side by side.

The batches, and so the loss at every step, are to be the same, but for the order in which sums are formed.
Works on a tiny random base in a directory of its own, over gloo on a CPU or nccl on GPUs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

WAYS = {
    "1 process": [],
    "2 x DDP": ["launch.processes=2"],
    "2 x FSDP2": ["launch.processes=2", "launch.kind=fsdp2"],
}

# Rows that do not divide, loss tokens that differ, passes that are added up.
SETTINGS = [
    "curate.split.shares={train: 0.12, dev: 0.05, gate: 0.73, confirm: 0.1}",
    "trainer.per_device_train_batch_size=18",
    "trainer.num_train_epochs=5",
    "trainer.logging_steps=1",
    "hardware.batch_tokens=300",
]


def project(directory: Path) -> None:
    """A project with the smoke recipe and the tiny base."""
    for name in ("recipes", "scripts"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "data" / "smoke").mkdir(parents=True)
    shutil.copy(ROOT / "data" / "smoke" / "schema.json", directory / "data" / "smoke")
    base = directory / ".cache" / "tiny-base"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "make_tiny_base.py"), "--out", str(base)], check=True)


def tunesmith(directory: Path, *arguments: str) -> None:
    """Run the command there."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    command = [sys.executable, "-m", "tunesmith.cli", *arguments]
    subprocess.run(command, cwd=directory, env=environment, check=True, stdout=subprocess.DEVNULL)


def losses(directory: Path, name: str, sets: list[str]) -> list[float]:
    """Train in one way; the loss of each step."""
    runs = directory / name.replace(" ", "-")
    pairs = [part for text in (*SETTINGS, *sets) for part in ("--set", text)]
    tunesmith(directory, "train", "smoke", "--runs", str(runs), *pairs)
    (log,) = runs.glob("*/train.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def main() -> int:
    """Print the table; exit 1 where a loss differs by more than `--within`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--within", type=float, default=1e-5, help="largest difference of a step's loss, in nats")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        project(directory)
        tunesmith(directory, "curate", "smoke", "--set", SETTINGS[0])
        found = {name: losses(directory, name, sets) for name, sets in WAYS.items()}
    print(f"| step | {' | '.join(found)} |")
    print(f"|---|{'---|' * len(found)}")
    for step, row in enumerate(zip(*found.values(), strict=True), start=1):
        print(f"| {step} | {' | '.join(f'{loss:.7f}' for loss in row)} |")
    alone, *others = found.values()
    apart = [max(abs(a - b) for a, b in zip(alone, other, strict=True)) for other in others]
    print(f"| largest difference | | {' | '.join(f'{largest:.1e}' for largest in apart)} |")
    return int(max(apart) > options.within)


if __name__ == "__main__":
    sys.exit(main())
