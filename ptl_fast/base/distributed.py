"""Several processes as one: who is the main rank, waiting for all, and agreeing on the main rank's
answer.

Without a process group every function answers for the one process, and torch is not imported: what
only prints may not take seconds to start.
"""

import datetime
import os
import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

# One rank evaluates while the others wait, which can take hours.
TIMEOUT = datetime.timedelta(hours=24)


def join(device: str) -> None:
    """Join the process group that the deepspeed or torchrun launcher announced; nothing without a
    launcher.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and _group() is None:
        import torch

        backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
        torch.distributed.init_process_group(backend, timeout=TIMEOUT)


def world_size() -> int:
    group = _group()
    return group.get_world_size() if group is not None else 1


def rank() -> int:
    group = _group()
    return group.get_rank() if group is not None else 0


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    group = _group()
    if group is not None:
        group.barrier()


def agree(value: T) -> T:
    """The main rank's value, on every rank."""
    group = _group()
    if group is None:
        return value
    values = [value]
    group.broadcast_object_list(values, src=0)
    return values[0]


def summed(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Copies of the tensors, each added up over all ranks."""
    totals = {name: tensor.clone() for name, tensor in tensors.items()}
    group = _group()
    if group is not None:
        for total in totals.values():
            group.all_reduce(total)
    return totals


def largest(tensor: "Tensor") -> "Tensor":
    """A copy of the tensor with the largest of all ranks' values."""
    maximum, group = tensor.clone(), _group()
    if group is not None:
        group.all_reduce(maximum, group.ReduceOp.MAX)
    return maximum


def _group() -> Any:
    """torch.distributed where a process group was joined, else None."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_initialized():
        return None
    return torch.distributed
