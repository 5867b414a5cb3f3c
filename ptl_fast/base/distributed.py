"""Ranks of a distributed run: the main rank, barriers, and values that all ranks agree on.

Rank 0 is the main rank, which alone writes files and prints. Without a process group, every
function answers for a single process and torch is not imported, so that commands which only print
start quickly. join, barrier, agree, gathered, divided, summed and largest are collective: every
rank must call them.
"""

import datetime
import os
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from ptl_fast.base.errors import NotJoined

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")

# Of a collective: the other ranks wait while one judges answers, which can take hours. PyTorch's
# default, at most half an hour, would end the run.
TIMEOUT = datetime.timedelta(hours=24)


def join(device: str) -> None:
    """Join the process group of the deepspeed or torchrun launcher; without one, do nothing.

    Args:
        device: "cpu", or the rank's CUDA device.
    """
    if of_launcher("WORLD_SIZE", 1) > 1 and _group() is None:
        import torch

        # gloo on GPUs too: Python objects and CPU tensors are exchanged without the device
        backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
        try:
            torch.distributed.init_process_group(backend, timeout=TIMEOUT)
        except (ValueError, RuntimeError) as error:
            raise NotJoined(
                f"RANK {os.environ.get('RANK')} cannot join the {os.environ['WORLD_SIZE']}"
                f" processes that the environment names ({' '.join(str(error).split())}); start it"
                " by torchrun, or unset RANK and WORLD_SIZE"
            ) from error


def of_launcher(name: str, otherwise: int) -> int:
    """A number that a launcher hands its processes in the environment.

    Raises:
        ValueError: it is none.
    """
    value = os.environ.get(name, "")
    if value and not value.isdecimal():
        raise ValueError(f"{name} is {value!r} in the environment, and no number; unset it")
    return int(value) if value else otherwise


def launched_rank() -> int:
    """The rank that a launcher gave this process, which need not have joined its group yet; 0
    without one, also where something else has set RANK alone.
    """
    try:
        return of_launcher("RANK", 0) if of_launcher("WORLD_SIZE", 1) > 1 else 0
    except ValueError:  # whoever joins is told
        return 0


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    group = _group()
    return group.get_world_size() if group is not None else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    group = _group()
    return group.get_rank() if group is not None else 0


def is_main() -> bool:
    """Whether this is the main rank, which writes files and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait until all ranks have come here."""
    group = _group()
    if group is not None:
        group.barrier()


def agree(value: T) -> T:
    """Return the main rank's value on every rank; the values of the other ranks are ignored.

    The value is pickled. Ranks that branch on it take the same branch, and so never wait for each
    other in different collectives.
    """
    group = _group()
    if group is None:
        return value
    values = [value]
    group.broadcast_object_list(values, src=0)
    return values[0]


def gathered(value: T) -> list[T]:
    """Return every rank's value on every rank, in the order of ranks; the values are pickled."""
    group = _group()
    if group is None:
        return [value]
    values: list[Any] = [None] * group.get_world_size()
    group.all_gather_object(values, value)
    return values


def divided(compute: "Callable[[Sequence[T]], Sequence[R]]", items: "Sequence[T]") -> "list[R]":
    """Return every item's result on every rank, in the items' order; each rank computes those of
    every world_size-th item. The results are pickled.

    Args:
        compute: some items to their results, one each.
    """
    num_ranks = world_size()
    results: list[Any] = [None] * len(items)
    for each, part in enumerate(gathered(compute(items[rank() :: num_ranks]))):
        results[each::num_ranks] = part
    return results


def summed(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Return copies of the tensors, each summed over all ranks.

    All ranks must have the same names, in the same order.
    """
    # all_reduce works in place
    totals = {name: tensor.clone() for name, tensor in tensors.items()}
    group = _group()
    if group is not None:
        for total in totals.values():
            group.all_reduce(total)
    return totals


def largest(tensor: "Tensor") -> "Tensor":
    """Return a copy of the tensor that holds the elementwise maximum over all ranks."""
    maximum, group = tensor.clone(), _group()
    if group is not None:
        group.all_reduce(maximum, group.ReduceOp.MAX)
    return maximum


def _group() -> Any:
    """The module torch.distributed if a process group was joined, else None."""
    # a process that has not imported torch cannot have joined one
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_initialized():
        return None
    return torch.distributed
