"""Loss on general text: what an adapter costs outside its task.

Negative log-likelihood per token by document, so that the gate can pair documents: PEFT's forgetting metric, on text
that nobody has to download.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from tunesmith.probes import general_documents
from tunesmith.prompt import Renderer


def nll_by_document(model: PreTrainedModel, renderer: Renderer) -> list[float | None]:
    """Mean negative log-likelihood per token of each document, in nats, given its first token; None if not finite."""
    model.eval()
    losses: list[float | None] = []
    for document in general_documents():
        ids = torch.tensor([renderer.tokenizer(document, add_special_tokens=False)["input_ids"]], device=model.device)
        with torch.inference_mode():
            logits: Any = model(input_ids=ids, use_cache=False).logits
        loss = float(F.cross_entropy(logits[0, :-1].float(), ids[0, 1:]))
        losses.append(loss if math.isfinite(loss) else None)
    return losses
