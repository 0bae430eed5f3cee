"""Time a training pass with our loss head and with trl's, on the same rows, interleaved; print JSON.

    python scripts/bench_head.py --recipe json-extract --rounds 7

Forward and backward of one batch of the recipe's rows, LoRA on all linears, as the recipe trains. The peer is
trl's own `SFTTrainer.compute_loss` on the same trainer object, so model, batch, dtype and threads are the same; only
the head differs. Ratios are of medians; the first round of each warms up and is not counted.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tunesmith.line import Line, quiet_libraries

quiet_libraries()

import torch  # noqa: E402 - after the environment is set
from trl import SFTTrainer  # noqa: E402

from tunesmith import hardware  # noqa: E402
from tunesmith.prompt import Renderer  # noqa: E402
from tunesmith.runs import versions  # noqa: E402
from tunesmith.train.stage import lora_config, sft_config  # noqa: E402
from tunesmith.train.trainer import AdapterTrainer, features  # noqa: E402


def timed(trainer: Any, compute_loss: Any, batch: dict[str, torch.Tensor], items: int) -> tuple[float, float]:
    """Seconds of one forward and backward pass, and the loss."""
    trainer.model.zero_grad()
    began = time.perf_counter()
    loss = compute_loss(trainer.model, dict(batch), num_items_in_batch=items)
    loss.backward()
    return time.perf_counter() - began, loss.item()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="json-extract")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    line = Line(options.recipe)
    line.curate()
    renderer = Renderer(line.base.tokenizer(), line.base.end_ids())
    rows = [renderer.render(row) for row in line.dataset.rows("train")]
    longest = max(len(row.input_ids) for row in rows)
    found = hardware.look()
    profile = hardware.choose(found, line.recipe, longest_row=longest, base_gib_fp32=0.5)
    size = profile.rows_per_pass
    with tempfile.TemporaryDirectory() as scratch:
        trainer = AdapterTrainer(
            model=line.base.model(dtype=profile.torch_dtype),
            args=sft_config(line.recipe, profile, scratch),
            train_dataset=features(rows),
            processing_class=renderer.tokenizer,
            peft_config=lora_config(line.recipe),
            lengths=[len(row.input_ids) for row in rows],
            effective_batch=size,
        )
    chosen = rows[:size]
    batch = trainer._prepare_inputs(
        trainer.data_collator([{"input_ids": row.input_ids, "labels": row.labels} for row in chosen])
    )
    items = sum(len(row.completion_ids) for row in chosen)
    ways = {
        "ours": trainer.compute_loss,
        "trl": lambda *args, **kwargs: SFTTrainer.compute_loss(trainer, *args, **kwargs),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, float] = {}
    for number in range(options.rounds + 1):
        for name, way in ways.items():
            took, losses[name] = timed(trainer, way, batch, items)
            if number:
                seconds[name].append(took)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    result = {
        "recipe": options.recipe,
        "device": found.name,
        "cores": found.cores,
        "dtype": profile.dtype,
        "rows": size,
        "tokens": int(batch["attention_mask"].sum()),
        "loss_tokens": items,
        "median_s": {name: round(value, 3) for name, value in medians.items()},
        "ratio_trl_to_ours": round(medians["trl"] / medians["ours"], 2),
        "loss_difference": abs(losses["ours"] - losses["trl"]),
        "versions": versions(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
