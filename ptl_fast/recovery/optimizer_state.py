"""Adam's running means of a model's parameters, by name: out of one round's optimizer, to disk, and
into the next round's.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.optim import Optimizer

Moments = dict[str, dict[str, Tensor]]
"""{parameter: {exp_avg, exp_avg_sq, step}}; the first two have the parameter's shape."""


def take(optimizer: "Optimizer", model: nn.Module) -> Moments:
    """Copy the optimizer's state to the CPU."""
    return {
        name: {
            key: value.detach().to("cpu", copy=True)
            for key, value in optimizer.state[parameter].items()
        }
        for name, parameter in model.named_parameters()
        if optimizer.state.get(parameter)
    }


def give(optimizer: "Optimizer", model: nn.Module, moments: Moments) -> None:
    """Let the optimizer go on from ``moments``, which become its own; a parameter without any
    starts afresh.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    content = optimizer.state_dict()
    for group, numbered in zip(optimizer.param_groups, content["param_groups"], strict=True):
        for parameter, number in zip(group["params"], numbered["params"], strict=True):
            if names[id(parameter)] in moments:
                content["state"][number] = moments[names[id(parameter)]]
    optimizer.load_state_dict(content)


def to_tensors(moments: Moments) -> dict[str, Tensor]:
    """One flat dictionary, for a file: PARAMETER/KEY."""
    return {
        f"{name}/{key}": value for name, state in moments.items() for key, value in state.items()
    }


def from_tensors(tensors: dict[str, Tensor]) -> Moments:
    """The inverse of ``to_tensors``."""
    moments: Moments = {}
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        # memory of its own: a mapped file's may be aligned otherwise, and C++ code that vectorises
        # may then round otherwise
        moments.setdefault(name, {})[key] = value.clone(memory_format=torch.contiguous_format)
    return moments
