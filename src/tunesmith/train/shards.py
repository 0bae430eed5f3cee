"""Tensors that are cut among processes, made whole and cut again.

Under FSDP2 a parameter, its gradient and its optimizer state are DTensors, of which each process holds a part; under
ZeRO-3 a parameter is empty but while its layer computes. Each function here is called by all processes, in one order.
"""

from collections.abc import Mapping
from typing import Any

import torch


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with all its parts, on every process."""
    from torch.distributed.tensor import DTensor

    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    if hasattr(tensor, "ds_id"):
        from deepspeed.zero import GatheredParameters

        with GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor


def cut_like(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A whole tensor cut as a parameter of its shape is; as it is where the parameter is not cut."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)


def whole_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state with whole tensors."""
    held: dict[str, Any] = optimizer.state_dict()
    return {**held, "state": {number: _whole_values(values) for number, values in held["state"].items()}}


def cut_optimizer(optimizer: torch.optim.Optimizer, held: Mapping[str, Any]) -> dict[str, Any]:
    """What `whole_optimizer` gave, cut as the optimizer's parameters are; it numbers them in their order."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        number: {
            key: cut_like(parameters[number], value) if isinstance(value, torch.Tensor) else value
            for key, value in values.items()
        }
        for number, values in held["state"].items()
    }
    return {**held, "state": state}


def _whole_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: whole(value) if isinstance(value, torch.Tensor) else value for key, value in values.items()}
