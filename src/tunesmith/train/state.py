"""All that a training run remembers between two steps, as safetensors and JSON: nothing that reads it can run code.

Trained weights, optimizer, schedule, loss scale, the random generators, the trainer's own counters, the lines of
train.jsonl, the looks at dev and the best one's weights. Restored, the next step is the one that would have followed,
bit for bit.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load, load_file, save, save_file

from tunesmith.errors import UserError
from tunesmith.team import Team
from tunesmith.train.shards import cut_like, whole, whole_optimizer
from tunesmith.weights import header

if TYPE_CHECKING:
    from tunesmith.train.guarded import Guarded

WEIGHTS, TENSORS, VALUES, TRAINER = "adapter.safetensors", "state.safetensors", "state.json", "trainer_state.json"
BEST = "best.safetensors"
"""The weights of the best look so far, where the recipe keeps the best."""


def write(trainer: "Guarded", directory: Path, weights: dict[str, torch.Tensor], values: Any) -> None:
    """Write a trainer's state, between two steps: its `trained` weights and what it `remembered`."""
    save_file(weights, directory / WEIGHTS)
    if trainer.choice.weights is not None:
        save_file(trainer.choice.weights, directory / BEST)
    tensors: dict[str, torch.Tensor] = {}
    packed = _packed(values, tensors)
    save_file(tensors, directory / TENSORS)
    (directory / VALUES).write_text(json.dumps(packed), encoding="utf-8")
    trainer.state.save_to_json(str(directory / TRAINER))


def trained(model: Any) -> dict[str, torch.Tensor]:
    """The weights that are trained, by name, on the CPU."""
    return {
        name: whole(parameter.detach()).cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def remembered(trainer: "Guarded") -> dict[str, Any]:
    """What else the next step depends on, and what the log of it says."""
    return {
        "optimizer": whole_optimizer(trainer.optimizer),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "scaler": trainer.accelerator.scaler.state_dict() if trainer.accelerator.scaler is not None else None,
        "random": random_states(trainer.team),
        "log": {
            "loss": _losses(trainer),
            "total": trainer._total_loss_scalar,
            "step": trainer._globalstep_last_logged,
            "tokens": trainer._total_train_tokens,
            "lines": trainer.lines,
            "metrics": {mode: dict(values) for mode, values in trainer._metrics.items()},
        },
        "looks": trainer.choice.looks,
        "pace": trainer.pace.remembered(),
        "skipped": trainer.skipped,
    }


def _losses(trainer: "Guarded") -> torch.Tensor:
    """What was lost since the last log; of several processes, what each has of it, by rank."""
    own: torch.Tensor = trainer._tr_loss.detach().cpu()
    if trainer.team.size == 1:
        return own
    return torch.tensor([float(part) for part in trainer.team.gather(repr(own.item()).encode())], dtype=own.dtype)


def restore_weights(model: Any, directory: Path) -> None:
    """Put a checkpoint's weights into a model.

    Raises:
        UserError: the model trains other weights, or of other shapes, or they are no safetensors: nothing is loaded.
    """
    header(directory / WEIGHTS)
    put(model, load_file(directory / WEIGHTS), str(directory / WEIGHTS))


def put(model: Any, stored: Mapping[str, torch.Tensor], where: str) -> None:
    """Put weights that `trained` gave into a model; `where` they are from is for the message.

    Raises:
        UserError: the model trains other weights, or of other shapes: nothing is loaded then.
    """
    held = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if {name: tensor.shape for name, tensor in stored.items()} != {name: held[name].shape for name in held}:
        other = sorted(stored.keys() ^ held.keys())[:3] or [n for n in held if stored[n].shape != held[n].shape][:3]
        raise UserError(f"{where}: holds other weights than are trained now ({', '.join(other)})")
    with torch.no_grad():
        for name, parameter in held.items():
            parameter.copy_(cut_like(parameter, stored[name]))


def read(directory: Path) -> dict[str, Any]:
    """What `remembered` gave when the checkpoint was written.

    Raises:
        UserError: its tensors are no safetensors.
    """
    header(directory / TENSORS)
    values = json.loads((directory / VALUES).read_text(encoding="utf-8"))
    found: dict[str, Any] = _unpacked(values, load_file(directory / TENSORS))
    return found


def best_weights(directory: Path) -> dict[str, torch.Tensor] | None:
    """The weights of the best look at dev when the checkpoint was written, where it held any."""
    if not (directory / BEST).is_file():
        return None
    header(directory / BEST)
    found: dict[str, torch.Tensor] = load_file(directory / BEST)
    return found


def random_states(team: Team) -> Any:
    """The state of every generator; of several processes, all of them, by rank."""
    if team.size == 1:
        return random_state()
    tensors: dict[str, torch.Tensor] = {}
    packed = json.dumps(_packed(random_state(), tensors)).encode()
    found = [load(part) for part in team.gather(save({**tensors, "values": torch.tensor(list(packed)).byte()}))]
    return [_unpacked(json.loads(bytes(part["values"].tolist())), part) for part in found]


def random_state() -> dict[str, Any]:
    """The state of every generator that training draws from."""
    generator = np.random.get_state(legacy=False)
    assert isinstance(generator, dict)
    return {
        "python": random.getstate(),
        "numpy": {**generator, "state": {"key": generator["state"]["key"].tolist(), "pos": generator["state"]["pos"]}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put every generator back where it was."""
    random.setstate(state["python"])
    numpy_state = state["numpy"]
    key = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy_state, "state": {"key": key, "pos": numpy_state["state"]["pos"]}})
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


# JSON knows neither tuples nor keys that are numbers nor tensors: each is written as an object of one key.
def _packed(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = f"t{len(tensors)}"
        # Cloned: safetensors refuses tensors that share memory.
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[_packed(key, tensors), _packed(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_packed(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_packed(item, tensors) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _unpacked(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if isinstance(value, dict):
        ((kind, held),) = value.items()
        if kind == "tensor":
            return tensors[held]
        if kind == "tuple":
            return tuple(_unpacked(item, tensors) for item in held)
        return {_unpacked(key, tensors): _unpacked(item, tensors) for key, item in held}
    return value
