"""Attention of a batch's rows to a beginning that all of them share, held once.

While answers are written, a token a row, keys and values are what is read from memory. Copied to every row, a beginning
of some hundred tokens is most of them; here its scores are one product of all rows' queries with one set of keys,
beside each row's own, under one softmax. Registered with transformers' `AttentionInterface`, as any attention function.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

NAME = "shared_beginning"
KeysValues = tuple[torch.Tensor, torch.Tensor]
_shared: ContextVar[Sequence[KeysValues]] = ContextVar("shared")


def holds_once(model: Any, shared: Sequence[KeysValues]) -> bool:
    """Whether a model's attention is the plain one that this module computes: torch's own kernel, no window, no cap.

    `shared` are keys and values as the model caches them: some models cache another form of them.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if not model._can_set_attn_implementation() or {states.shape[1::2] for pair in shared for states in pair} != {
        (heads, width)
    }:
        return False
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    capped = getattr(config, "attn_logit_softcapping", None)
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return bool(
        model.config._attn_implementation == "sdpa" and kinds == {"full_attention"} and not capped and not windowed
    )


@contextmanager
def attending(model: PreTrainedModel, shared: Sequence[KeysValues]) -> Iterator[None]:
    """Let every row attend to `shared`: keys and values of each layer, (1, heads, tokens, width), before its own."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise RuntimeError("transformers did not take the attention function; `holds_once` must refuse this model")
    token = _shared.set(shared)
    try:
        yield
    finally:
        _shared.reset(token)
        model.set_attn_implementation(before)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Queries (rows, heads, length, width) over the shared keys and each row's own, (rows, groups, tokens, width)."""
    rows, heads, length, width = query.shape
    groups, own_tokens = key.shape[1:3]
    shared_key, shared_value = (states[0] for states in _shared.get()[module.layer_idx])
    # Scaled before the product, which could overflow in float16.
    query = (query * scaling).reshape(rows, groups, -1, width)
    shared_scores = _by_group(query) @ shared_key.mT
    own_scores = (query @ key.mT).view(rows, heads, length, own_tokens)
    if attention_mask is not None:
        own_scores = own_scores.masked_fill(~attention_mask, float("-inf"))
    elif length > 1:
        # transformers leaves out a mask that is causal and nothing else.
        later = torch.ones(length, own_tokens, dtype=torch.bool, device=query.device).triu(own_tokens - length + 1)
        own_scores = own_scores.masked_fill(later, float("-inf"))
    scores = torch.cat([_by_row(shared_scores, rows), own_scores.view(rows, groups, -1, own_tokens)], dim=-1)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    beginning = shared_key.shape[1]
    from_shared = _by_group(weights[..., :beginning]) @ shared_value
    output = _by_row(from_shared, rows) + weights[..., beginning:] @ value
    return output.reshape(rows, heads, length, width).transpose(1, 2), None


def _by_group(states: torch.Tensor) -> torch.Tensor:
    """(rows, groups, n, x) as (groups, rows times n, x): all rows before one set of keys."""
    return states.transpose(0, 1).flatten(1, 2)


def _by_row(states: torch.Tensor, rows: int) -> torch.Tensor:
    """The inverse of `_by_group`."""
    return states.view(len(states), rows, -1, states.shape[-1]).transpose(0, 1)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
