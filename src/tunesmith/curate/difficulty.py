"""How likely the base finds each row's completion already: one forward pass, before any training.

A completion that is near certain teaches little; one that the base finds absurd is, more often than others, a wrong
label. Source: the ranking by loss of Swayamdipta et al. 2020 (arXiv:2009.10795), read off the base instead of a run.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith import bases
from tunesmith.progress import bar
from tunesmith.prompt import IGNORE, Renderer
from tunesmith.rows import Row

BATCH_TOKENS = 4096


def difficulty(rows: Sequence[Row], base: str, root: Path) -> NDArray[np.float64]:
    """Mean negative log-likelihood of each row's completion under the base, in nats per token."""
    import torch
    import torch.nn.functional as F

    found = bases.resolve(base, root)
    renderer = Renderer(found.tokenizer(), found.end_ids())
    model = found.model(dtype=torch.float32).eval()
    rendered = [renderer.render(row) for row in rows]
    losses = np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rendered[i].input_ids))
    with bar("loss of the base", len(rows)) as progress, torch.inference_mode():
        for batch in _batches(order, [len(r.input_ids) for r in rendered]):
            longest = max(len(rendered[i].input_ids) for i in batch)
            ids = torch.full((len(batch), longest), renderer.pad_id)
            labels = torch.full((len(batch), longest), IGNORE)
            for place, i in enumerate(batch):
                ids[place, : len(rendered[i].input_ids)] = torch.tensor(rendered[i].input_ids)
                labels[place, : len(rendered[i].input_ids)] = torch.tensor(rendered[i].labels)
            mask = torch.arange(longest) < torch.tensor([[len(rendered[i].input_ids)] for i in batch])
            device = model.device
            logits = model(ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
            nll = F.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten().to(device), reduction="none"
            ).view(len(batch), -1)
            losses[batch] = (nll.sum(1) / (labels[:, 1:] != IGNORE).sum(1).to(device)).cpu().numpy()
            progress.advance(len(batch))
    return losses


def _batches(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Runs of the order whose padded tokens stay within BATCH_TOKENS; the order is by length."""
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * lengths[i] <= BATCH_TOKENS:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
