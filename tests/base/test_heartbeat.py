"""A rank that is silent is lost; one that is finished is not, nor while this process slept."""

import subprocess
import sys

import pytest
from torch.distributed import TCPStore

from ptl_fast.base import heartbeat
from ptl_fast.base.heartbeat import LOST, Heartbeat


class Shared:
    """A store in memory, which can be gone."""

    def __init__(self) -> None:
        self.signs: dict[str, str] = {}
        self.is_gone = False

    def set(self, key: str, value: str) -> None:
        self._look()
        self.signs[key] = value

    def get(self, key: str) -> bytes:
        self._look()
        return self.signs[key].encode()

    def check(self, keys: list[str]) -> bool:
        self._look()
        return all(key in self.signs for key in keys)

    def _look(self) -> None:
        if self.is_gone:
            raise RuntimeError("Broken pipe")


@pytest.fixture
def shared() -> Shared:
    return Shared()


def test_a_silent_rank_is_lost_with_its_host(shared: Shared) -> None:
    zero, one = (Heartbeat(shared, rank, 2) for rank in (0, 1))
    assert zero.lost(0) is None, "the other may not have begun"
    assert one.lost(1) is None
    assert zero.lost(2) is None
    assert zero.lost(2 + LOST) is None
    gone = zero.lost(3 + LOST)
    assert gone is not None
    assert gone.startswith("rank 1 (")
    assert "never" not in gone
    assert one.lost(3 + LOST) is None, "it hears the first"


def test_a_rank_that_never_came_is_lost(shared: Shared) -> None:
    zero = Heartbeat(shared, 0, 3)
    assert zero.lost(0) is None
    assert zero.lost(1 + LOST) == "rank 1 (which was never heard)"


def test_a_finished_rank_is_not_lost(shared: Shared) -> None:
    zero, one = (Heartbeat(shared, rank, 2) for rank in (0, 1))
    one.start()
    one.leave()
    assert not one.thread.is_alive()
    for now in (0, 1, 10 * LOST, 20 * LOST):
        assert zero.lost(now) is None


def test_when_the_store_is_gone_its_rank_is_lost_in_time(shared: Shared) -> None:
    """Not at once: at the end of a run the rank that holds it may end first."""
    one = Heartbeat(shared, 1, 2)
    Heartbeat(shared, 0, 2).lost(0)
    assert one.lost(0) is None
    shared.is_gone = True
    assert one.lost(LOST / 2) is None
    assert one.lost(1 + LOST) is not None


def test_after_its_own_sleep_a_rank_waits_anew(shared: Shared) -> None:
    zero, one = (Heartbeat(shared, rank, 2) for rank in (0, 1))
    one.lost(0)
    zero.lost(0)
    zero.forgive(10 * LOST)
    assert zero.lost(10 * LOST + 1) is None


def test_one_process_has_none() -> None:
    heartbeat.start(0, 1)
    heartbeat.leave()
    assert heartbeat._own is None


ALONE = """
import os, sys, time
from ptl_fast.base import heartbeat
heartbeat.INTERVAL, heartbeat.LOST = 0.05, 0.3
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[1]}
heartbeat.start(0, 2)
time.sleep(60)
"""


def test_a_process_whose_peer_is_gone_ends_in_one_line() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    result = subprocess.run(
        [sys.executable, "-c", ALONE, str(store.port)], capture_output=True, text=True, timeout=50
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: rank 1 (which was never heard) gave no sign of life")
    assert "the same command continues from here" in result.stderr
