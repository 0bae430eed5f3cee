"""Time training as we do it beside trl: the same rows, the same steps, in turns; print and write JSON.

    python scripts/bench_train.py --recipe json-extract --out build/bench_train.json
    python scripts/bench_train.py --recipe json-extract --shares 0 25 50 70 90 --ways tuned ours
    python scripts/bench_train.py --recipe json-extract --shape llama-1b --shares 25 50 80 --peak-tflops 989

Ways, each a whole `train()` on a fresh model with the same seed:
    default  trl's SFTTrainer with its own defaults (bfloat16 autocast and gradient checkpointing, on a CPU too)
    tuned    SFTTrainer as we would tune it: the hardware profile's dtype, no checkpointing, rows of like length in a
             batch, and padded or padding-free batches, whichever a trial finds faster
    ours     AdapterTrainer as `tunesmith train` uses it

`--shares` makes rows of which a percentage of the tokens is one shared beginning: the recipe's rows without what they
share, behind a text of the length that it takes. Without it the rows are the recipe's own. The first step of each run
warms up and is not counted. Peak memory is that of a process of its own for each way.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.line import Line, quiet_libraries

quiet_libraries()

import torch  # noqa: E402 - after the environment is set
from llama_shapes import SHAPES, llama  # noqa: E402
from torch.utils.data import SequentialSampler  # noqa: E402
from transformers import PrinterCallback, TrainerCallback  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

from tunesmith import hardware  # noqa: E402
from tunesmith.files import write_json  # noqa: E402
from tunesmith.probes import general_documents  # noqa: E402
from tunesmith.prompt import Rendered, Renderer, common_prefix  # noqa: E402
from tunesmith.runs import versions  # noqa: E402
from tunesmith.train.opening import lora_config, sft_config  # noqa: E402
from tunesmith.train.sampler import FamilySampler  # noqa: E402
from tunesmith.train.trainer import AdapterTrainer, features  # noqa: E402
from tunesmith.train.tree import limits_for, shareable  # noqa: E402

WAYS = ("default", "tuned", "ours")


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds of each optimizer step, data and logging included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.began = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.began = self._now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the time that has passed."""
        self.seconds.append(self._now() - self.began)

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


class InOrder(AdapterTrainer):
    """Takes rows in the order given, as the peers do."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.rows)

    def rows_of_step(self, step: int) -> list[int]:
        """The next rows."""
        size = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        start = step % self.steps_per_epoch * size
        return list(range(start, min(start + size, len(self.rows))))


def peak_gib() -> float:
    """Most memory that this process has held: of the GPU if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    # Not getrusage: its maximum is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20


class Bench:
    """One recipe on one shape: makes rows and models, and trains them each way."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        line = Line(options.recipe, base=options.base)
        line.curate()
        self.line = line
        self.renderer = Renderer(line.base.tokenizer(), line.base.end_ids())
        self.own = [self.renderer.render(row) for row in line.dataset.rows("train")]
        self.found = hardware.look()
        self.size = options.rows or line.recipe.trainer["per_device_train_batch_size"]

    def rows(self, share: int | None) -> tuple[list[Rendered], int]:
        """The rows of all steps, in order, and how many first tokens they share."""
        rows, shared = self.own, common_prefix([shareable(row) for row in self.own])
        if share is not None:
            bare = [Rendered(row.prompt_ids[shared:], row.completion_ids, row.ends) for row in rows]
            mean = statistics.mean(len(row.input_ids) for row in bare)
            shared = round(mean * share / (100 - share))
            text = self.renderer.tokenizer(" ".join(general_documents()) * 4)["input_ids"][:shared]
            if len(text) < shared:
                raise SystemExit(f"the general text has {len(text)} tokens, {share} % of these rows needs {shared}")
            rows = [Rendered(text + row.prompt_ids, row.completion_ids, row.ends) for row in bare]
        batches = FamilySampler(rows, self.size, self.line.recipe.seed, None).batches()
        return [rows[i] for batch in batches[: self.options.steps] for i in batch], shared

    def model(self) -> Any:
        """A fresh model in the dtype of the hardware profile."""
        dtype = self.profile().torch_dtype
        if not self.options.shape:
            return self.line.base.model(dtype=dtype)
        return llama(self.options.shape, dtype, self.found.device)

    def profile(self) -> hardware.Profile:
        """What the toolkit picks here, with the whole batch in one pass and no checkpointing for all ways alike."""
        return hardware.choose(
            self.found,
            self.line.recipe.model_copy(
                update={
                    "trainer": self.line.recipe.trainer
                    | {"per_device_train_batch_size": self.size, "gradient_checkpointing": False},
                    "hardware": self.line.recipe.hardware.model_copy(update={"batch_tokens": 10**9}),
                }
            ),
            longest_row=1,
            base_gib_fp32=0.0,
        )

    def trainer(self, way: str, rows: Sequence[Rendered], steps: int, scratch: str) -> Any:
        """A trainer that is ready to take `steps` steps of `size` rows."""
        ours = {"max_steps": steps, "logging_steps": 1000, "train_sampling_strategy": "sequential"}
        if way == "default":
            config = SFTConfig(
                output_dir=scratch,
                use_cpu=self.found.device == "cpu",
                learning_rate=self.line.recipe.trainer["learning_rate"],
                per_device_train_batch_size=self.size,
                max_length=None,
                dataset_kwargs={"skip_prepare_dataset": True},
                save_strategy="no",
                disable_tqdm=True,
                seed=self.line.recipe.seed,
                **ours,
            )
        else:
            config = sft_config(self.line.recipe, self.profile(), scratch)
            for key, value in (ours | {"padding_free": way == "padding-free"}).items():
                setattr(config, key, value)
        model = self.model()
        common = {
            "model": model,
            "args": config,
            "processing_class": self.line.base.tokenizer(),
            "peft_config": lora_config(self.line.recipe),
        }
        if way != "ours":
            return SFTTrainer(train_dataset=features(rows), **common)
        limits = limits_for(model.config.get_text_config(), self.found.device)
        return InOrder(rows=rows, limits=limits, **common)

    def run(self, way: str, rows: Sequence[Rendered], steps: int) -> tuple[list[float], Any]:
        """Seconds of each step, and the trained model."""
        clock = Clock()
        with tempfile.TemporaryDirectory() as scratch:
            trainer = self.trainer(way, rows[: steps * self.size], steps, scratch)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(clock)
            trainer.train()
        return clock.seconds, trainer

    def tune(self, rows: Sequence[Rendered]) -> str:
        """Whether padded or padding-free batches are faster for trl on these rows, by three steps of each."""
        trial = {way: min(self.run(way, rows, 3)[0][1:]) for way in ("padded", "padding-free")}
        return min(trial, key=trial.__getitem__)

    def measure(self, share: int | None) -> dict[str, Any]:
        """All ways in turns on one kind of rows."""
        rows, shared = self.rows(share)
        tuned = self.tune(rows)
        actual = {way: tuned if way == "tuned" else way for way in self.options.ways}
        seconds: dict[str, list[list[float]]] = {way: [] for way in actual}
        losses: dict[str, float] = {}
        for _ in range(self.options.rounds):
            for way, name in actual.items():
                took, trainer = self.run(name, rows, self.options.steps)
                seconds[way].append(took[1:])
                losses[way] = self.final_loss(trainer, rows)
                del trainer
        tokens = sum(len(row.input_ids) for row in rows[self.size :])
        loss_tokens = sum(len(row.completion_ids) for row in rows[self.size :])
        result: dict[str, Any] = {
            "shared_tokens": shared,
            "shared_percent": round(100 * shared * len(rows) / sum(len(row.input_ids) for row in rows), 1),
            "mean_row_tokens": round(tokens / (len(rows) - self.size), 1),
            "trl_tuned_is": tuned,
        }
        medians = {way: [statistics.median(step) for step in zip(*runs, strict=True)] for way, runs in seconds.items()}
        for way in actual:
            total = sum(medians[way])
            result[way] = {
                "step_s": round(statistics.median(medians[way]), 3),
                "tokens_per_s": round(tokens / total, 1),
                "loss_tokens_per_s": round(loss_tokens / total, 1),
                "final_loss": round(losses[way], 6),
                "peak_gib": self.peak(way, actual[way], share) if self.options.memory else None,
            }
            if self.options.peak_tflops:
                # Frozen weights need a forward pass and the gradient of their input: 4 N operations a token.
                done = 4 * self.parameters() * tokens / total
                result[way]["mfu_4n"] = round(done / (self.options.peak_tflops * 1e12), 3)
        if {"tuned", "ours"} <= actual.keys():
            ratios = [b / c for b, c in zip(medians["tuned"], medians["ours"], strict=True)]
            result["ratio_ours_to_tuned"] = round(statistics.median(ratios), 2)
            result["loss_difference"] = abs(losses["tuned"] - losses["ours"])
        return result

    def final_loss(self, trainer: Any, rows: Sequence[Rendered]) -> float:
        """The trained model's loss per token on the rows it was trained on, computed one way for all."""
        judge = trainer if isinstance(trainer, AdapterTrainer) else None
        if judge is None:
            with tempfile.TemporaryDirectory() as scratch:
                judge = self.trainer("ours", rows[: self.size], 1, scratch)
            weights = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
            for name, parameter in judge.model.named_parameters():
                if parameter.requires_grad:
                    parameter.data = weights[name].data.to(parameter)
        return float(judge.token_nll(rows))

    def parameters(self) -> int:
        """Weights of the base, embeddings left out: they are looked up."""
        model = self.model()
        return sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()

    def peak(self, way: str, name: str, share: int | None) -> float:
        """Peak memory of three steps in a process of its own, GiB."""
        command = [sys.executable, __file__, "--recipe", self.options.recipe, "--peak-of", name]
        for key in ("base", "shape", "rows"):
            if (value := getattr(self.options, key)) is not None:
                command += [f"--{key}", str(value)]
        if share is not None:
            command += ["--shares", str(share)]
        done = subprocess.run([*command, "--steps", "3"], capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="json-extract")
    parser.add_argument("--base")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--shares", type=int, nargs="+", choices=range(100), metavar="PERCENT")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rows", type=int, help="rows of a step; the recipe's if not given")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--peak-tflops", type=float, help="the device's, dense, in the dtype used: gives MFU")
    parser.add_argument("--at-least", type=float, help="fail if any ratio of ours to tuned is below this")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    bench = Bench(options)
    if options.peak_of:
        rows, _ = bench.rows(options.shares[0] if options.shares else None)
        bench.run(options.peak_of, rows, options.steps)
        print(f"{peak_gib():.2f}")
        return
    result: dict[str, Any] = {
        "recipe": options.recipe,
        "shape": options.shape or bench.line.recipe.base,
        "device": bench.found.name,
        "cores": bench.found.cores,
        "dtype": bench.profile().dtype,
        "rows_a_step": bench.size,
        "steps": options.steps,
        "rounds": options.rounds,
        "versions": versions(),
        "rows": {},
    }
    for share in options.shares or [None]:
        name = "as the recipe's" if share is None else f"{share} % shared"
        result["rows"][name] = bench.measure(share)
        print(json.dumps({name: result["rows"][name]}, indent=2), flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.out, result)
    if not options.shares and "ratio_ours_to_tuned" in result["rows"][name]:
        result["ratio_ours_to_tuned"] = result["rows"][name]["ratio_ours_to_tuned"]
        if options.out:
            write_json(options.out, result)
    ratios = [kind["ratio_ours_to_tuned"] for kind in result["rows"].values() if "ratio_ours_to_tuned" in kind]
    if options.at_least and (not ratios or min(ratios) < options.at_least):
        raise SystemExit(f"ours is {ratios} times trl tuned, less than {options.at_least}")


if __name__ == "__main__":
    main()
