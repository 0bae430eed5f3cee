"""Negative log-likelihood of a batch's loss tokens, through a tree of shared beginnings.

Each level of a `Layout` is one pass through the model over the key/value cache of the level above, expanded to the
children. The cache is part of the autograd graph, so gradients of all rows flow back into the shared tokens: loss and
gradients are those of every row on its own. The head, by far the widest matrix of a small model, is applied to the
positions before loss tokens and no others.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from transformers import DynamicCache

from tunesmith.prompt import Rendered
from tunesmith.train.tree import Level, Limits, lay_out

MAX_LOGITS = 64 * 2**20
"""Most logits held at once: 64 Mi float32, 256 MiB."""


def nll_sum(model: Any, levels: Sequence[Level], targets: torch.Tensor) -> torch.Tensor:
    """Summed negative log-likelihood, in nats, of `targets`: the loss tokens of a `Layout` on the model's device."""
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    hidden = _hidden_before_loss(causal.base_model, levels)
    head = causal.get_output_embeddings()
    chunk = max(1, MAX_LOGITS // head.weight.shape[0])
    if type(head) is nn.Linear and head.bias is None and not head.weight.requires_grad:
        total: torch.Tensor = _FrozenHeadNLL.apply(hidden, head.weight, targets, chunk)
        return total
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(targets), chunk):
        logits = head(hidden[start : start + chunk]).float()
        total = total + F.cross_entropy(logits, targets[start : start + chunk], reduction="sum")
    return total


def row_nll(model: Any, row: Rendered) -> torch.Tensor:
    """Summed negative log-likelihood of one row's completion by the model's own logits, however its head makes them."""
    ids = torch.tensor([row.input_ids], device=next(model.parameters()).device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(row.prompt_ids) - 1 : -1]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, ids[0, len(row.prompt_ids) :], reduction="sum")


def _hidden_before_loss(backbone: Any, levels: Sequence[Level]) -> torch.Tensor:
    """Last hidden states of shape (loss tokens, width) at the positions that predict them."""
    gathered = []
    cache: DynamicCache | None = DynamicCache() if len(levels) > 1 else None
    for level in levels:
        if cache is not None and level["children"] is not None:
            _descend(cache, level["children"])
        hidden = backbone(
            input_ids=level["input_ids"],
            attention_mask=level["attention_mask"],
            position_ids=level["position_ids"],
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        gathered.append(hidden.flatten(0, 1)[level["loss_at"]])
    return torch.cat(gathered)


def _descend(cache: DynamicCache, children: Sequence[int]) -> None:
    """Give every child its parent's keys and values, (children, heads, tokens, width), within the autograd graph.

    By views and not by an index, whose gradient would be added up in no fixed order.
    """
    for layer in cache.layers:
        for name in ("keys", "values"):
            parents = getattr(layer, name).split(1)
            views = [one.expand(count, -1, -1, -1) for one, count in zip(parents, children, strict=True) if count]
            setattr(layer, name, views[0] if len(views) == 1 else torch.cat(views))


class _FrozenHeadNLL(torch.autograd.Function):
    """Cross-entropy behind a frozen head, its gradient computed along with it: no logits wait for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk: int
    ) -> torch.Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        # Kept wide: in float16 small gradients would be lost before the loss scale reaches them.
        gradient = torch.empty_like(hidden, dtype=wide) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            logits = F.linear(hidden[part].to(weight.dtype), weight).to(wide)
            target = targets[part, None]
            log_total = logits.logsumexp(-1, keepdim=True)
            total += (log_total - logits.gather(-1, target)).sum()
            if gradient is not None:
                # The gradient of cross-entropy: probabilities, less one at the target.
                probabilities = logits.sub_(log_total).exp_()
                probabilities.scatter_add_(-1, target, probabilities.new_full(target.shape, -1))
                gradient[part] = (probabilities.to(weight.dtype) @ weight).to(wide)
        ctx.save_for_backward(gradient)
        ctx.dtype = hidden.dtype
        return total

    @staticmethod
    def backward(ctx: Any, output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * output).to(ctx.dtype), None, None, None


def gradient_error(model: Any, rows: Sequence[Rendered], limits: Limits | None) -> float:
    """How far the gradients of `nll_sum` are from those of each row alone: the norm of the difference over the norm.

    A head that does more than multiply, a cache that carries no gradient, a mask that a model reads otherwise: all show
    here. Adapters start at zero, which hides half of their gradients; what reaches the other half has the same path.
    """
    was_training = model.training
    model.eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def flat(loss: torch.Tensor) -> torch.Tensor:
        found = torch.autograd.grad(loss, trained, allow_unused=True)
        parts = zip(found, trained, strict=True)
        return torch.cat([(torch.zeros_like(p) if part is None else part).flatten().double() for part, p in parts])

    try:
        alone = sum((flat(row_nll(model, row)) for row in rows if row.completion_ids), torch.zeros(()))
        layout = lay_out(rows, limits)
        levels = [to_device(level, trained[0].device) for level in layout.levels]
        ours = flat(nll_sum(model, levels, layout.targets.to(trained[0].device)))
    finally:
        model.train(was_training)
    return float((ours - alone).norm() / alone.norm().clamp(min=1e-12))


def to_device(level: Level, device: torch.device) -> Level:
    """A level's tensors on the model's device."""
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in level.items()}  # type: ignore[return-value]
