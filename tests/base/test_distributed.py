"""Two processes agree on the main rank's value, add and compare; one process is all of them."""

import subprocess
import sys

import pytest
import torch

from ptl_fast.base import distributed

TWO_RANKS = """
import sys, torch
from ptl_fast.base import distributed as ranks
rank = int(sys.argv[1])
ranks.join("cpu")
ranks.join("cpu")  # a second call finds the group
assert (ranks.rank(), ranks.world_size(), ranks.is_main()) == (rank, 2, rank == 0)
mine = torch.tensor([1.0, 2.0]) * (rank + 1)
assert ranks.agree({"from": rank}) == {"from": 0}
assert ranks.gathered(rank) == [0, 1]
assert ranks.summed({"a": mine})["a"].tolist() == [3.0, 6.0]
assert ranks.largest(mine).tolist() == [2.0, 4.0]
assert mine.tolist() == [rank + 1.0, 2 * (rank + 1.0)], "copies are changed, not the tensor"
ranks.barrier()
torch.distributed.destroy_process_group()
print("rank", rank)
"""
NO_TORCH = """
import sys
from ptl_fast.base import distributed
assert distributed.agree(1) == 1 and distributed.is_main() and distributed.world_size() == 1
distributed.barrier()
assert "torch" not in sys.modules
"""


def test_two_ranks(environment: dict[str, str]) -> None:
    launcher = {**environment, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    port = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False).port
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, str(rank)],
            env={**launcher, "RANK": str(rank), "MASTER_PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(processes):
        out, err = process.communicate(timeout=120)
        assert out == f"rank {rank}\n", err


def test_one_process_needs_no_group() -> None:
    tensor = torch.tensor([1.0])
    distributed.join("cpu")
    assert not torch.distributed.is_initialized()
    assert torch.equal(distributed.summed({"a": tensor})["a"], tensor)
    assert distributed.gathered("own") == ["own"]
    assert distributed.largest(tensor).data_ptr() != tensor.data_ptr()
    subprocess.run([sys.executable, "-c", NO_TORCH], check=True)


def test_a_rank_is_a_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers of jobs set RANK too; nothing would be printed."""
    for size, rank, found in ((None, "5", 0), ("1", "5", 0), ("6", "5", 5), ("x", "5", 0)):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if size is not None:
            monkeypatch.setenv("WORLD_SIZE", size)
        monkeypatch.setenv("RANK", rank)
        assert distributed.launched_rank() == found
    with pytest.raises(ValueError, match="WORLD_SIZE is 'x' in the environment, and no number"):
        distributed.join("cpu")
