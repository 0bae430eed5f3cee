"""Rendered rows on disk: what `check` turned into token ids, `train` reads instead of doing it again.

A file is bound by its key to everything that decides the ids; one with another key is as good as none.
"""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tunesmith.files import sha256_json
from tunesmith.prompt import Rendered, Renderer
from tunesmith.rows import Dataset, Split
from tunesmith.runs import versions

Pair = tuple[Rendered, Rendered | None]
"""A row with its completion, and with its rejected answer if it has one."""


def key_of(renderer: Renderer, dataset: Dataset, split: Split) -> str:
    """Hash of rows, tokenizer, template, how rows are rendered, and the versions that do it."""
    prompt = renderer.digest(dataset.manifest()["systems"])
    return sha256_json({"rows": dataset.digest(split), "prompt": prompt, "versions": versions()})


def write_tokens(path: Path, rows: Sequence[Rendered], key: str) -> None:
    """Write the rows' token ids, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "ids": np.array([token for row in rows for token in row.input_ids], dtype=np.int32),
        "prompt_tokens": np.array([len(row.prompt_ids) for row in rows], dtype=np.int32),
        "completion_tokens": np.array([len(row.completion_ids) for row in rows], dtype=np.int32),
        "ends": np.array([row.ends for row in rows], dtype=np.bool_),
    }
    save_file(tensors, path, metadata={"key": key})


def read_tokens(path: Path, key: str) -> list[Rendered] | None:
    """The rows as they were written; none where there is no such file, or not of this key."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            ids, prompts, completions, ends = (
                file.get_tensor(name).tolist() for name in ("ids", "prompt_tokens", "completion_tokens", "ends")
            )
    except SafetensorError:
        return None
    starts = accumulate((p + c for p, c in zip(prompts, completions, strict=True)), initial=0)
    return [
        Rendered(ids[start : start + p], ids[start + p : start + p + c], end)
        for start, p, c, end in zip(starts, prompts, completions, ends, strict=False)
    ]


def rendered_rows(renderer: Renderer, dataset: Dataset, split: Split, path: Path) -> list[Rendered]:
    """A split's rows as token ids: read from `path` if they lie there, else rendered."""
    found = read_tokens(path, key_of(renderer, dataset, split))
    return found if found is not None else _rendered(renderer, dataset, split)


def rendered_pairs(renderer: Renderer, dataset: Dataset, split: Split, directory: Path) -> list[Pair]:
    """A split's rows as token ids with their rejected answers; read from `directory` if they lie there."""
    better = rendered_rows(renderer, dataset, split, directory / f"{split}.safetensors")
    turns = [turn.with_rejected() for row in dataset.rows(split) for turn in row.turns()]
    found = read_tokens(directory / rejected_file(split), key_of(renderer, dataset, split))
    worse = iter(found if found is not None else [renderer.render(turn) for turn in turns if turn])
    return [(row, next(worse) if turn else None) for row, turn in zip(better, turns, strict=True)]


def rejected_file(split: Split) -> str:
    """The file of a split's rejected answers, in the order of the rows that have one."""
    return f"{split}-rejected.safetensors"


def _rendered(renderer: Renderer, dataset: Dataset, split: Split) -> list[Rendered]:
    return [renderer.render(turn) for row in dataset.rows(split) for turn in row.turns()]
