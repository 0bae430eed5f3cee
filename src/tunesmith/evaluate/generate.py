"""Greedy answers to many prompts, the same for every arm.

Prompts are sorted by length and answered in batches, padded on the left. What all prompts of an arm begin with (the
system message, fixed shots) is computed once and its key/value cache is shared. One full generation config is forced
and stored, so that no default in a model's files can change an arm.
"""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from tunesmith.progress import bar
from tunesmith.prompt import Renderer

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

    def config(self) -> GenerationConfig:
        """transformers' config with everything that would change greedy decoding set to do nothing."""
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            length_penalty=1.0,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=self.end_ids,
            pad_token_id=self.pad_id,
            use_cache=True,
        )


@dataclass(frozen=True)
class Answer:
    """One generated answer."""

    text: str
    ended: bool
    tokens_in: int
    tokens_out: int
    seconds: float
    """Wall time of the batch that this row was answered in."""


Constraint = Callable[[int], LogitsProcessor]
"""Makes the logits processor of one batch, given its number of rows."""


def settings_for(renderer: Renderer, max_new_tokens: int) -> Settings:
    """The one way in which every arm of a run generates."""
    return Settings(max_new_tokens, renderer.end_ids, renderer.pad_id)


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, leaving at least one of each to be read on its own."""
    if len(prompts) < 2:
        return 0
    shortest = min(map(len, prompts))
    same = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False)))
    return min(same, shortest - 1)


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
    constraint: Constraint | None = None,
    only: list[list[int]] | None = None,
) -> dict[int, Answer]:
    """Answer every prompt; returns answers by the prompts' index.

    `prefix` is how many first tokens all prompts share and are computed once; `common_prefix` finds the most.
    `only` names some of the batches that `batches` would cut, to answer those alone, in the same company as before.
    """
    model.eval()
    config = settings.config()
    answers: dict[int, Answer] = {}
    cut = batches(prompts, settings.batch_rows) if only is None else only
    with torch.inference_mode(), bar(label, sum(map(len, cut))) as progress:
        shared = _read_prefix(model, prompts[0][:prefix]) if prefix else None
        for batch in cut:
            began = time.perf_counter()
            ids, mask = pad_left([prompts[i] for i in batch], prefix, settings.pad_id)
            processors = LogitsProcessorList([constraint(len(batch))] if constraint else [])
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                past_key_values=_for_batch(shared, len(batch)),
                generation_config=config,
                logits_processor=processors,
            )
            seconds = time.perf_counter() - began
            for index, new in zip(batch, output[:, ids.shape[1] :].tolist(), strict=True):
                length = next((i + 1 for i, token in enumerate(new) if token in settings.end_ids), len(new))
                ended = length > 0 and new[length - 1] in settings.end_ids
                text = renderer.decode(new[:length])
                answers[index] = Answer(text, ended, len(prompts[index]), length, round(seconds, 3))
            progress.advance(len(batch))
    return answers


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


def _for_batch(shared: DynamicCache | None, rows: int) -> DynamicCache | None:
    if shared is None:
        return None
    copied = deepcopy(shared)
    copied.batch_repeat_interleave(rows)
    return copied
