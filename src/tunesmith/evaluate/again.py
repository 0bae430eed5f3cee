"""Have an arm answer its rows again in batches of another size.

Greedy answers are the same in theory; in other company a model rounds otherwise, and a token that was as likely as
another falls the other way. How often that changes a score is the noise floor under every comparison.
"""

from copy import copy
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from tunesmith.evaluate.arena import Arena
from tunesmith.evaluate.cache import Predictions
from tunesmith.evaluate.ways import Way
from tunesmith.rows import Split

BATCH_ROWS = {1: 7, 2: 13}
"""Rows of a batch, by turn: no divisors of what arms are answered in."""


def answer_again(arena: Arena, model: PreTrainedModel, way: Way, split: Split, out: Path, turn: int) -> None:
    """Answer a split as `way` does, in other batches; writes the arm's two files under `out`."""
    other = copy(arena)
    other.settings = replace(arena.settings, batch_rows=BATCH_ROWS[turn])
    # What was kept of the first time is not an answer to this one.
    other.predictions = Predictions(arena.predictions.store, arena.prompt_digest, turn)
    engine = other.engine(model, {"base": arena.base.digest})
    free = None
    if way.free:
        other.run(engine, way.free, split, out / "free")
        free = out / "free" / f"{way.free.file(split)}.jsonl"
    other.run(engine, way, split, out, free=free)
