"""What a model thinks of each option of a question, by log-probability: no answer is written, none is parsed.

As plain text, `Question: …`, `Answer: <option>`, not as a conversation: what a base knows shows better there, and a
new habit of its answers is another guard's. Questions are read in batches, each once, and every option is read behind
its question's keys and values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp
from typing import Any

import torch
from transformers import PreTrainedModel

from tunesmith.evaluate.generate import Settings, batches, read_beginning, read_prompts, shared_prefix
from tunesmith.evaluate.probes import Question
from tunesmith.progress import bar
from tunesmith.prompt import Renderer

OPTION_TOKENS = 1024
"""Most tokens of options in one pass: their logits over the whole vocabulary are laid out."""


@dataclass(frozen=True)
class Chosen:
    """What a model thinks of a question's options."""

    logprobs: list[float]
    """Of each option's tokens behind the question, summed, in nats."""
    right: int
    lengths: list[int]
    """Of each option, in bytes."""

    @property
    def weights(self) -> list[float]:
        """Each option's share, were all as long as their mean: softmax over log-probabilities a byte, times that."""
        mean = sum(self.lengths) / len(self.lengths)
        scaled = [mean * each / length for each, length in zip(self.logprobs, self.lengths, strict=True)]
        parts = [exp(each - max(scaled)) for each in scaled]
        return [part / sum(parts) for part in parts]

    @property
    def correct(self) -> float:
        """1.0 if the right option has the highest log-probability a byte, the first of equals."""
        weights = self.weights
        return float(weights.index(max(weights)) == self.right)


def choose(
    model: PreTrainedModel, renderer: Renderer, questions: Sequence[Question], settings: Settings, label: str
) -> list[Chosen]:
    """What a model thinks of the options of each question, in their order.

    Normalised by bytes, so that no option wins by being short and tokenizers can be compared: `acc_norm` of
    EleutherAI's lm-evaluation-harness.
    """
    prompts: list[list[int]] = [renderer.tokenizer(q.asked)["input_ids"] for q in questions]
    options = [[_tokens(renderer, f" {text}") for text in q.options] for q in questions]
    prefix = shared_prefix(prompts)
    sums: dict[int, list[float]] = {}
    model.eval()
    with torch.inference_mode(), bar(label, len(prompts)) as progress:
        shared = read_beginning(model, prompts[0][:prefix]) if prefix else None
        for batch in _cut(prompts, options, settings):
            width = max(len(ids) for index in batch for ids in options[index])
            slots = read_prompts(
                model, [prompts[index] for index in batch], shared, replace(settings, max_new_tokens=width)
            )
            with slots.in_use(model):
                found = _read_options(model, slots, [options[index] for index in batch], settings.pad_id)
            sums |= dict(zip(batch, found, strict=True))
            progress.advance(len(batch))
    return [
        Chosen(sums[index], q.right, [len(text.encode()) for text in q.options]) for index, q in enumerate(questions)
    ]


def _tokens(renderer: Renderer, text: str) -> list[int]:
    ids: list[int] = renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _cut(prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]], settings: Settings) -> list[list[int]]:
    """Batches of like prompts whose options, padded, stay within a pass."""
    cut: list[list[int]] = []
    for batch in batches(prompts, settings):
        cut.append([])
        for index in batch:
            held = [*cut[-1], index]
            width = max(len(ids) for each in held for ids in options[each])
            if cut[-1] and sum(len(options[each]) for each in held) * width > OPTION_TOKENS:
                cut.append([index])
            else:
                cut[-1].append(index)
    return [batch for batch in cut if batch]


def _read_options(model: Any, slots: Any, options: Sequence[Sequence[list[int]]], pad_id: int) -> list[list[float]]:
    """The log-probability of each option of each question of a batch, whose prompts are read up to the last token."""
    flat = [ids for each in options for ids in each]
    owner = torch.tensor([row for row, each in enumerate(options) for _ in each], device=slots.ids.device)
    width = max(map(len, flat))
    slots.cache.batch_select_indices(owner)
    ids = torch.tensor([each + [pad_id] * (width - len(each)) for each in flat], device=slots.ids.device)
    # The last token of the prompt predicts the first of the option; padding behind an option is seen by none of it.
    inputs = torch.cat([slots.ids[owner], ids[:, :-1]], dim=1)
    steps = torch.arange(width, device=ids.device)
    logits = model(
        input_ids=inputs,
        attention_mask=torch.cat([slots.mask[owner], slots.mask.new_ones((len(flat), width - 1))], dim=1),
        position_ids=slots.positions[owner] + steps,
        past_key_values=slots.cache,
        use_cache=True,
    ).logits.float()
    told = logits.gather(-1, ids[..., None]).squeeze(-1) - logits.logsumexp(-1)
    lengths = torch.tensor([len(each) for each in flat], device=ids.device)
    each = (told * (steps < lengths[:, None])).sum(-1).tolist()
    found, start = [], 0
    for of_question in options:
        found.append(each[start : start + len(of_question)])
        start += len(of_question)
    return found
