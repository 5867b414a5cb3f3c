"""Adam's optimizer state by parameter name: carried from one round to the next, and to disk.

By name, as every round trains new parameter objects. Shapes are those of the parameters.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ptl_fast.recovery.task import OptimizerState

if TYPE_CHECKING:
    from torch.optim import Optimizer


def take(optimizer: "Optimizer", model: nn.Module) -> OptimizerState:
    """Return a copy of the optimizer's state on the CPU; parameters without state are left out."""
    return {
        name: {
            key: value.detach().to("cpu", copy=True)
            for key, value in optimizer.state[parameter].items()
        }
        for name, parameter in model.named_parameters()
        if optimizer.state.get(parameter)
    }


def give(optimizer: "Optimizer", model: nn.Module, state: OptimizerState) -> None:
    """Load ``state`` into the optimizer; parameters without an entry start from zero.

    The optimizer may keep the given tensors: do not use them afterwards.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    # through load_state_dict, which moves each tensor to its parameter's device and type; a state
    # dict numbers the parameters, in the order of the parameter groups
    content = optimizer.state_dict()
    for group, numbered in zip(optimizer.param_groups, content["param_groups"], strict=True):
        for parameter, number in zip(group["params"], numbered["params"], strict=True):
            if names[id(parameter)] in state:
                content["state"][number] = state[names[id(parameter)]]
    optimizer.load_state_dict(content)


def to_tensors(state: OptimizerState) -> dict[str, Tensor]:
    """Flatten to {"PARAMETER/KEY": tensor}, as safetensors files need it."""
    return {f"{name}/{key}": value for name, own in state.items() for key, value in own.items()}


def from_tensors(tensors: dict[str, Tensor]) -> OptimizerState:
    """The inverse of ``to_tensors``."""
    state: OptimizerState = {}
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        # a copy: tensors of a memory-mapped file may be aligned differently, which makes
        # vectorised kernels round differently
        state.setdefault(name, {})[key] = value.clone(memory_format=torch.contiguous_format)
    return state
