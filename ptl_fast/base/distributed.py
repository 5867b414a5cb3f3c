"""Several processes as one: who is the main rank, waiting for all, and agreeing on the main rank's
answer.
"""

import datetime
import os
from typing import TypeVar

import torch

T = TypeVar("T")

# One rank evaluates while the others wait, which can take hours.
TIMEOUT = datetime.timedelta(hours=24)


def join(device: str) -> None:
    """Join the process group that the deepspeed or torchrun launcher announced; nothing without a
    launcher.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", timeout=TIMEOUT
        )


def world_size() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def agree(value: T) -> T:
    """The main rank's value, on every rank."""
    if not torch.distributed.is_initialized():
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def summed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of the tensors, each added up over all ranks."""
    totals = {name: tensor.clone() for name, tensor in tensors.items()}
    if world_size() > 1:
        for total in totals.values():
            torch.distributed.all_reduce(total)
    return totals


def largest(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of the tensor with the largest of all ranks' values."""
    maximum = tensor.clone()
    if world_size() > 1:
        torch.distributed.all_reduce(maximum, torch.distributed.ReduceOp.MAX)
    return maximum
