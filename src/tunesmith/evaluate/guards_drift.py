"""How far a model has moved from its base, token by token, over answers that the base gave.

Kullback-Leibler divergence from base to model, exact: over the whole vocabulary, at every token of the base's answer
(teacher-forced). On task prompts it predicts forgetting, on unrelated ones it shows it (Shenfeld et al. 2025,
arXiv:2509.04259).
"""

from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

import torch
from transformers import PreTrainedModel

Given = tuple[list[int], list[int]]
"""The tokens of a prompt, and of the base's answer to it."""


def logprobs(model: PreTrainedModel, given: Sequence[Given]) -> list[torch.Tensor]:
    """Log-probabilities of every token of the vocabulary at each place of each answer, (places, vocabulary) each."""
    model.eval()
    return [_of_answer(model, *each).cpu() for each in given]


def drift(model: PreTrainedModel, given: Sequence[Given], base: Sequence[torch.Tensor]) -> dict[str, Any]:
    """How far a model is from its base; `base` is what `logprobs` gave for it on the same answers.

    `kl` is the mean over tokens in nats, `by_row` over each answer's; `same_top` the share of tokens at which both have
    the same likeliest token; `first_other` at which place the median answer goes another way (its length, if never).
    """
    model.eval()
    by_row, weights, same, first = [], [], 0, []
    for each, theirs in zip(given, base, strict=True):
        ours = _of_answer(model, *each).cpu()
        by_token = (theirs.exp() * (theirs - ours)).sum(-1)
        by_row.append(max(0.0, float(by_token.mean())))
        agree = ours.argmax(-1) == theirs.argmax(-1)
        weights.append(len(agree))
        same += int(agree.sum())
        first.append(next((place for place, is_same in enumerate(agree.tolist()) if not is_same), len(agree)))
    tokens = sum(weights)
    return {
        "rows": len(by_row),
        "tokens": tokens,
        "kl": sum(kl * weight for kl, weight in zip(by_row, weights, strict=True)) / tokens,
        "by_row": [round(kl, 6) for kl in by_row],
        "same_top": same / tokens,
        "first_other": median(first),
        "answer_tokens": fmean(weights),
    }


def _of_answer(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    ids = torch.tensor([prompt + answer], device=model.device)
    with torch.inference_mode():
        # The last token of the prompt predicts the first of the answer; the last of the answer predicts nothing here.
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1]
        told: torch.Tensor = logits.float().log_softmax(-1)
    return told
