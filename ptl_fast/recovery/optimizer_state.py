"""Adam's running means of a model's parameters, by name: out of one round's optimizer, to disk, and
into the next round's.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ptl_fast.recovery.task import OptimizerState

if TYPE_CHECKING:
    from torch.optim import Optimizer


def take(optimizer: "Optimizer", model: nn.Module) -> OptimizerState:
    """Copy the optimizer's state to the CPU."""
    return {
        name: {
            key: value.detach().to("cpu", copy=True)
            for key, value in optimizer.state[parameter].items()
        }
        for name, parameter in model.named_parameters()
        if optimizer.state.get(parameter)
    }


def give(optimizer: "Optimizer", model: nn.Module, state: OptimizerState) -> None:
    """Let the optimizer go on from ``state``, which become its own; a parameter without any
    starts afresh.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    content = optimizer.state_dict()
    for group, numbered in zip(optimizer.param_groups, content["param_groups"], strict=True):
        for parameter, number in zip(group["params"], numbered["params"], strict=True):
            if names[id(parameter)] in state:
                content["state"][number] = state[names[id(parameter)]]
    optimizer.load_state_dict(content)


def to_tensors(state: OptimizerState) -> dict[str, Tensor]:
    """One flat dictionary, for a file: PARAMETER/KEY."""
    return {f"{name}/{key}": value for name, own in state.items() for key, value in own.items()}


def from_tensors(tensors: dict[str, Tensor]) -> OptimizerState:
    """The inverse of ``to_tensors``."""
    state: OptimizerState = {}
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        # memory of its own: a mapped file's may be aligned otherwise, and C++ code that vectorises
        # may then round otherwise
        state.setdefault(name, {})[key] = value.clone(memory_format=torch.contiguous_format)
    return state
