"""Harm done on purpose: a base with a random adapter, by which a probe shows that it would see forgetting at all.

A probe that reads the same on a base that was damaged cannot vouch for an adapter.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel

from tunesmith.stats import clustered_t, paired_interval

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


POOLED = "pooled"
"""The name under which the sets that a base knows something of are taken together."""


def known(probes: Sequence[str], chance: Sequence[float], base: Sequence[float], alpha: float) -> list[str]:
    """The sets on which a base is shown to be better than chance: the others have nothing to lose.

    `probes` names the set of each question, `chance` is what guessing gives, `base` the base's share of the right
    option.
    """
    found = []
    for probe in dict.fromkeys(probes):
        own = [place for place, name in enumerate(probes) if name == probe]
        if len(own) < 2:
            continue
        above = clustered_t([base[place] - chance[place] for place in own], [str(place) for place in own], alpha)
        if above.low > 0:
            found.append(probe)
    return found


def sensitivity(
    probes: Sequence[str],
    chance: Sequence[float],
    base: Sequence[float],
    planted: Mapping[str, Sequence[float | None]],
    alpha: float,
) -> dict[str, dict[str, Any]]:
    """Which sets, and all of them together, can see harm: their mean is shown to fall under the strongest noise.

    `planted` are the shares of the right option by strength, for the sets that the base knows something of.
    """
    knows = known(probes, chance, base, alpha)
    found: dict[str, dict[str, Any]] = {}
    for name in (*dict.fromkeys(probes), POOLED):
        sets = [name] if name != POOLED else knows
        own = [place for place, probe in enumerate(probes) if probe in sets]
        if not own:
            continue
        whole = [base[place] for place in own]
        guess = fmean(chance[place] for place in own)
        entry: dict[str, Any] = {"sets": sets, "n": len(own), "base": fmean(whole), "chance": guess}
        at = f"the base is at {entry['base']:.3f}, chance {guess:.3f}"
        if not set(sets) <= set(knows):
            found[name] = entry | {"moves": False, "says": f"nothing to lose: {at} (n {len(own)})"}
            continue
        noises, last = {}, None
        for strength in sorted(planted, key=float):
            harmed = [float(planted[strength][place] or 0.0) for place in own]
            last = paired_interval(harmed, whole, [str(place) for place in own], alpha)
            noises[strength] = {"estimate": last.estimate, "low": last.low, "high": last.high}
        entry["noise"] = noises
        if last is None:
            found[name] = entry | {"moves": False, "says": "guards.noise is empty, so nothing shows that it can move"}
        else:
            fall = (
                f"under planted noise it goes by {last.estimate:+.3f} ({last.low:+.3f} to {last.high:+.3f}, n {last.n})"
            )
            found[name] = entry | {"moves": last.high < 0, "says": f"{fall}; {at}"}
    return found
