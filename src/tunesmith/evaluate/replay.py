"""Have a model repeat answers that it gave before, to the letter.

Whole batches are replayed in the company they had, so that on one machine not a bit differs. Run as
`python -m tunesmith.evaluate.replay`, it reloads an exported model in a fresh process, with the tokenizer and template
that lie beside it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from tunesmith.bases import load_model
from tunesmith.evaluate.generate import Settings, batches, generate
from tunesmith.files import read_json, read_jsonl, write_json
from tunesmith.prompt import Renderer
from tunesmith.rows import Dataset, Row

FEWEST_ROWS = 32


def asked_again(cut: Sequence[list[int]]) -> list[list[int]]:
    """Which of all batches are answered a second time: the last ones, of the shortest prompts."""
    chosen: list[list[int]] = []
    for batch in reversed(cut):
        chosen.append(batch)
        if sum(map(len, chosen)) >= FEWEST_ROWS:
            break
    return chosen


def replay(model: PreTrainedModel, renderer: Renderer, rows: Sequence[Row], arm: Path) -> dict[str, Any]:
    """Answer some gate rows again, as their messages stand, and compare with the arm's stored answers.

    `arm` is the arm's path without suffix. Returns how many rows were replayed and the ids of those that differ.
    """
    about = read_json(arm.with_suffix(".json"))
    settings = Settings(**about["settings"])
    prompts = [renderer.prompt_ids(row.messages, row.tools) for row in rows]
    answers = generate(
        model,
        renderer,
        prompts,
        settings,
        prefix=about["prefix_tokens"],
        label=f"replaying {arm.name}",
        only=asked_again(batches(prompts, settings)),
    )
    stored = {row["id"]: row["prediction"] for row in read_jsonl(arm.with_suffix(".jsonl"))}
    differing = [rows[i].id for i, answer in sorted(answers.items()) if answer.text != stored[rows[i].id]]
    return {"rows": len(answers), "same": not differing, "differing": differing}


def main() -> None:
    """Replay a merged model from its files alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--arm", type=Path, required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    about = read_json(options.arm.with_suffix(".json"))
    end_ids = about["settings"]["end_ids"]
    renderer = Renderer(AutoTokenizer.from_pretrained(options.model, local_files_only=True), end_ids)
    dataset = Dataset(options.dataset)
    model = load_model(options.model, dtype=getattr(torch, options.dtype))
    result = replay(model, renderer, dataset.rows("gate"), options.arm)
    result["same_prompt"] = renderer.digest(dataset.manifest()["systems"]) == about["prompt_digest"]
    write_json(options.out, result)


if __name__ == "__main__":
    main()
