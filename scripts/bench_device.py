"""Train llama-shaped bases of random weights for fifty steps, and hold what that takes against its plan.

    python scripts/bench_device.py --shapes llama-1b llama-8b --peak-tflops 989

For each shape, with LoRA and with NF4 QLoRA: tokens a second without padding, the model's FLOPs used (four a weight and
token: frozen weights want no gradient of their own; six, as if they did), the peak of memory beside the plan's, and how
far the adapter of a run that was killed at its middle and gone on with is from the uninterrupted one's.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from llama_shapes import SHAPES, llama
from safetensors.torch import load_file

from tunesmith import hardware
from tunesmith.files import read_json, read_jsonl, write_json
from tunesmith.runs import versions

ROOT = Path(__file__).parent.parent
STEPS = 50
HALF = STEPS // 2


def make_base(directory: Path, shape: str, dtype: torch.dtype, device: str) -> int:
    """Write a base of random weights with the tiny base's tokenizer; returns how many weights it has."""
    tiny = directory.with_name("tiny-base")
    subprocess.run([sys.executable, str(ROOT / "scripts" / "make_tiny_base.py"), "--out", str(tiny)], check=True)
    model = llama(shape, dtype, device)
    model.save_pretrained(directory)
    for path in tiny.iterdir():
        if path.name not in {"config.json", "model.safetensors", "manifest.json"}:
            shutil.copy(path, directory / path.name)
    return sum(parameter.numel() for parameter in model.parameters())


class Bench:
    """A project, and the commands that are timed in it."""

    def __init__(self, root: Path, base: Path, quantization: str, rows: int) -> None:
        self.root = root
        settings = [
            f"quantization={quantization}",
            f"trainer.per_device_train_batch_size={rows}",
            f"trainer.max_steps={STEPS}",
            "trainer.num_train_epochs=1000",
            "trainer.logging_steps=5",
            "trainer.learning_rate=1e-4",
            f"checkpoints.every_steps={HALF}",
        ]
        self.options = ["smoke", "--base", f"./{base.name}", *(p for text in settings for p in ("--set", text))]

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """Start a tunesmith command there."""
        return subprocess.Popen([sys.executable, "-m", "tunesmith.cli", *arguments], cwd=self.root)

    def run(self, *arguments: str) -> None:
        """Run one to its end."""
        if code := self.start(*arguments).wait():
            sys.exit(f"tunesmith {' '.join(arguments)}: exit {code}")

    def train(self, runs: str, *, killed: bool = False) -> Path:
        """Train; `killed` kills the run once its middle is saved, and goes on with it. Returns the run."""
        asked = ["train", *self.options, "--runs", runs]
        if killed:
            process = self.start(*asked)
            while process.poll() is None and not list((self.root / runs).glob(f"*/checkpoints/step-{HALF:08d}")):
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            process.wait()
        self.run(*asked)
        (run,) = (path.parent for path in (self.root / runs).glob("*/adapter"))
        return run


def apart(one: Path, other: Path) -> float:
    """The norm of the difference of two runs' adapters over the norm of the first."""
    a, b = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (one, other))
    difference = sum(float((a[name].double() - b[name].double()).square().sum()) for name in a)
    return (difference / sum(float(tensor.double().square().sum()) for tensor in a.values())) ** 0.5


def measured(bench: Bench, weights: int, peak_flops: float | None) -> dict[str, Any]:
    """What one way of training took."""
    bench.run("plan", "--memory", *bench.options, "--runs", "whole")
    whole = bench.train("whole")
    pace = [line for line in read_jsonl(whole / "pace.jsonl") if "tokens_per_second" in line][1:]
    computed = median(line["computed_tokens_per_second"] for line in pace)
    plan, probe = read_json(whole / "plan.json"), read_json(whole / "probe.json")
    peak = max((line.get("peak_memory_gib", 0.0) for line in pace), default=0.0)
    # What torch has allocated does not hold the context, which the plan counts.
    planned = plan["gib"]["total"] - (plan["gib"]["libraries"] if plan["profile"]["device"] == "cuda" else 0.0)
    found = {
        "tokens_per_second": median(line["tokens_per_second"] for line in pace),
        "computed_tokens_per_second": computed,
        "peak_gib": round(peak, 3),
        "planned_gib": round(planned, 3),
        "planned_to_peak": round(planned / peak, 3) if peak else None,
        "probe": probe,
        "resumed_apart": apart(whole, bench.train("killed", killed=True)),
    }
    if peak_flops:
        found |= {f"mfu_{n}n": round(n * weights * computed / peak_flops, 3) for n in (4, 6)}
    return found


def main() -> None:
    """Bench every shape and way, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["llama-1b", "llama-8b"])
    parser.add_argument("--rows", type=int, default=64, help="rows of a step, of about 95 tokens")
    parser.add_argument("--peak-tflops", type=float, help="the device's, dense, in the dtype used: gives MFU")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found = hardware.look()
    told: dict[str, Any] = {"device": found.name, "versions": versions(), "ways": {}}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name in ("recipes", "scripts"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        (root / "data" / "smoke").mkdir(parents=True)
        shutil.copy(ROOT / "data" / "smoke" / "schema.json", root / "data" / "smoke")
        for shape in options.shapes:
            dtype = torch.bfloat16 if found.device == "cuda" else torch.float32
            weights = make_base(root / shape, shape, dtype, found.device)
            for quantization in ("none", "nf4"):
                bench = Bench(root, root / shape, quantization, options.rows)
                bench.run("curate", "smoke", "--base", f"./{shape}")
                flops = options.peak_tflops * 1e12 if options.peak_tflops else None
                told["ways"][f"{shape}, {quantization}"] = measured(bench, weights, flops)
                for runs in ("whole", "killed"):
                    shutil.rmtree(root / runs)
            shutil.rmtree(root / shape)
    for way, numbers in told["ways"].items():
        print(f"{way}: " + ", ".join(f"{key} {value}" for key, value in numbers.items() if key != "probe"))
    if options.out:
        write_json(options.out, told)
    else:
        print(json.dumps(told["versions"]))


if __name__ == "__main__":
    main()
