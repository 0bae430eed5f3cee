"""Greedy answers to many prompts, the same for every arm.

Prompts are sorted by length and answered in batches, padded on the left. What all prompts of an arm begin with (the
system message, fixed shots) is computed once and its key/value cache is shared. Nothing is read from a model's own
generation config: sampling, penalties and limits in its files cannot change an arm.
"""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from transformers import DynamicCache, PreTrainedModel

from tunesmith.progress import bar
from tunesmith.prompt import Renderer, common_prefix

BATCH_ROWS = 64


@dataclass(frozen=True)
class Settings:
    """How answers are generated; part of an arm's identity."""

    max_new_tokens: int
    end_ids: list[int]
    pad_id: int
    batch_rows: int = BATCH_ROWS
    decoding: str = "greedy"

    def as_dict(self) -> dict[str, Any]:
        """As an arm's file holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Answer:
    """One generated answer."""

    text: str
    ended: bool
    tokens_in: int
    tokens_out: int
    seconds: float
    """Wall time of the batch that this row was answered in."""


class Constraint(Protocol):
    """What forbids tokens while one batch is answered."""

    def mask(self, scores: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """Forbid tokens in scores of shape (len(rows), vocabulary); `rows` are places in the batch."""

    def accept(self, row: int, token: int) -> None:
        """Take note of a token that was written."""


MakeConstraint = Callable[[int], Constraint]
"""Makes the constraint of one batch, given its number of rows."""


def settings_for(renderer: Renderer, max_new_tokens: int) -> Settings:
    """The one way in which every arm of a run generates."""
    return Settings(max_new_tokens, renderer.end_ids, renderer.pad_id)


def shared_prefix(prompts: Sequence[list[int]]) -> int:
    """How many first tokens of the prompts are computed once, leaving at least one of each to be read on its own."""
    if len(prompts) < 2:
        return 0
    return min(common_prefix(prompts), min(map(len, prompts)) - 1)


def batches(prompts: Sequence[Sequence[int]], rows: int) -> list[list[int]]:
    """Indices of prompts in batches of like length, longest first: the bar's time left then errs on the long side."""
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    return [order[start : start + rows] for start in range(0, len(order), rows)]


def generate(
    model: PreTrainedModel,
    renderer: Renderer,
    prompts: Sequence[list[int]],
    settings: Settings,
    *,
    prefix: int,
    label: str,
    constraint: MakeConstraint | None = None,
    only: list[list[int]] | None = None,
) -> dict[int, Answer]:
    """Answer every prompt; returns answers by the prompts' index.

    `prefix` is how many first tokens all prompts share and are computed once; `shared_prefix` finds the most.
    `only` names some of the batches that `batches` would cut, to answer those alone, in the same company as before.
    """
    model.eval()
    answers: dict[int, Answer] = {}
    cut = batches(prompts, settings.batch_rows) if only is None else only
    with torch.inference_mode(), bar(label, sum(map(len, cut))) as progress:
        shared = _read_prefix(model, prompts[0][:prefix]) if prefix else None
        for batch in cut:
            began = time.perf_counter()
            ids, mask = pad_left([prompts[i] for i in batch], prefix, settings.pad_id)
            bound = constraint(len(batch)) if constraint else None
            written = _write(model, ids, mask, _for_batch(shared, len(batch)), settings, bound)
            seconds = round(time.perf_counter() - began, 3)
            for index, new in zip(batch, written, strict=True):
                ended = new[-1] in settings.end_ids
                answers[index] = Answer(renderer.decode(new), ended, len(prompts[index]), len(new), seconds)
            progress.advance(len(batch))
    return answers


def _write(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    cache: DynamicCache,
    settings: Settings,
    constraint: Constraint | None,
) -> list[list[int]]:
    """Write the likeliest next token of each row until its end token; returns the new tokens, end token included.

    Rows that have ended leave the batch as soon as they are an eighth of it: transformers' `generate` would carry them,
    and their cache, along to the last row's end.
    """
    ids, mask = ids.to(model.device), mask.to(model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    own = cache.get_seq_length()
    ids, positions = ids[:, own:], positions[:, own:]
    end_ids = set(settings.end_ids)
    written: list[list[int]] = [[] for _ in range(len(ids))]
    rows = list(range(len(ids)))
    done: set[int] = set()
    for _ in range(settings.max_new_tokens):
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        scores = constraint.mask(logits, rows) if constraint else logits
        tokens: list[int] = scores.argmax(-1).tolist()
        for row, token in zip(rows, tokens, strict=True):
            if row in done:
                continue
            written[row].append(token)
            if constraint:
                constraint.accept(row, token)
            if token in end_ids:
                done.add(row)
        if len(done) == len(written):
            break
        ids = torch.tensor(tokens, device=model.device)[:, None]
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones((len(mask), 1))], dim=-1)
        going = [place for place, row in enumerate(rows) if row not in done]
        if len(going) <= len(rows) * 7 // 8:
            keep = torch.tensor(going, device=model.device)
            cache.batch_select_indices(keep)
            ids, positions, mask = ids[keep], positions[keep], mask[keep]
            rows = [rows[place] for place in going]
    return written


def pad_left(prompts: Sequence[list[int]], prefix: int, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, (rows, tokens) each, padded between the shared prefix and each row's own part."""
    width = max(map(len, prompts))
    ids = [p[:prefix] + [pad_id] * (width - len(p)) + p[prefix:] for p in prompts]
    mask = [[1] * prefix + [0] * (width - len(p)) + [1] * (len(p) - prefix) for p in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def _read_prefix(model: PreTrainedModel, prefix: list[int]) -> DynamicCache:
    ids = torch.tensor([prefix], device=model.device)
    cache: DynamicCache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    return cache


def _for_batch(shared: DynamicCache | None, rows: int) -> DynamicCache:
    if shared is None:
        return DynamicCache()
    copied = deepcopy(shared)
    copied.batch_repeat_interleave(rows)
    return copied
