"""Harm done on purpose: a base with a random adapter, by which a probe shows that it would see forgetting at all.

A probe that reads the same on a base that was damaged cannot vouch for an adapter.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from tunesmith.stats import paired_interval

RANK = 8


@contextmanager
def noise(model: PreTrainedModel, strength: float, seed: int = 0) -> Iterator[int]:
    """Add a random adapter to every linear module but the head while the block runs; gives how many there are.

    Each is Gaussian, of rank 8, its norm `strength` times that of the module's weights. Nothing of the model is
    written to.
    """
    random = torch.Generator().manual_seed(seed)
    head = model.get_output_embeddings()
    handles = []
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            down = torch.randn(RANK, module.in_features, generator=random)
            up = torch.randn(module.out_features, RANK, generator=random)
            norm = float(((up.T @ up) * (down @ down.T)).sum().sqrt())
            up *= strength * float(module.weight.detach().float().norm()) / norm
            handles.append(
                module.register_forward_hook(_adding(down.to(module.weight.detach()), up.to(module.weight.detach())))
            )
    try:
        yield len(handles)
    finally:
        for handle in handles:
            handle.remove()


def _adding(down: torch.Tensor, up: torch.Tensor) -> Any:
    def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + (inputs[0] @ down.T) @ up.T

    return hook


def sensitivity(
    probes: Sequence[str], base: Sequence[float], planted: Mapping[str, Sequence[float]], alpha: float
) -> dict[str, dict[str, Any]]:
    """Which probes can see harm: those whose mean is shown to fall under the strongest noise.

    `probes` names the probe of each question; `base` and `planted`, by strength, are the shares of the right option.
    """
    found: dict[str, dict[str, Any]] = {}
    strengths = sorted(planted, key=float)
    for probe in dict.fromkeys(probes):
        own = [place for place, name in enumerate(probes) if name == probe]
        whole = [base[place] for place in own]
        falls = {}
        for strength in strengths:
            harmed = [planted[strength][place] for place in own]
            interval = paired_interval(harmed, whole, [str(place) for place in own], alpha)
            falls[strength] = {"estimate": interval.estimate, "low": interval.low, "high": interval.high}
        last = falls[strengths[-1]] if strengths else None
        found[probe] = {
            "moves": last is not None and last["high"] < 0,
            "base": sum(whole) / len(whole),
            "noise": falls,
            "says": f"under noise of {strengths[-1]} it goes by {last['estimate']:+.3f} "
            f"({last['low']:+.3f} to {last['high']:+.3f}, n {len(own)})"
            if last
            else "guards.noise is empty, so nothing shows that it can move",
        }
    return found
