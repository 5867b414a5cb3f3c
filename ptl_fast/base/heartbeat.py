"""Ranks tell one another that they live, so that the loss of one ends the others in minutes.

Collectives have a time limit of hours, as ranks wait while one evaluates. A rank that was killed,
is frozen or cut off would hold the others for as long.
"""

import os
import socket
import sys
import threading
import time
from typing import Protocol

from ptl_fast.base.interruption import GO_ON

INTERVAL = 10.0
"""Seconds between two signs of life."""
LOST = 100.0
"""Seconds without one after which a rank counts as lost."""
FINISHED = "finished"
KEY = "ptl_fast/alive"


class Store(Protocol):
    """What a heartbeat needs of torch.distributed's TCPStore."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


class Heartbeat:
    """A thread that gives signs of life, and ends this process where another rank gives none.

    Args:
        store: shared by all ranks, and used by nobody else: another's waiting would hold up ours.
    """

    def __init__(self, store: Store, rank: int, num_ranks: int) -> None:
        self.store, self.rank, self.count = store, rank, 0
        self.others = [each for each in range(num_ranks) if each != rank]
        self.heard: dict[int, tuple[str, float]] = {}
        """Of each other rank: its last sign, and when it was new here."""
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True, name="heartbeat")

    def start(self) -> None:
        self.thread.start()

    def leave(self) -> None:
        """Tell the others that this rank is finished and will be silent."""
        self.stopped.set()
        self.thread.join()
        self._tell(FINISHED)

    def lost(self, now: float) -> str | None:
        """Give a sign of life, and look for those of the others; the rank that is lost, in words.

        A rank that was not heard at all, such as one whose store is gone, is lost like any other.
        """
        self.count += 1
        self._tell(f"{self.count} {socket.gethostname()}")
        for other in self.others:
            sign = self._sign(other)
            before, since = self.heard.get(other, ("", now))
            if sign == FINISHED:
                self.heard[other] = (sign, now)
            elif sign not in (None, before):
                self.heard[other] = (str(sign), now)
            elif other not in self.heard:
                self.heard[other] = ("", now)
            elif now - since > LOST:
                host = before.partition(" ")[2] or "which was never heard"
                return f"rank {other} ({host})"
        return None

    def forgive(self, now: float) -> None:
        """Begin to count again: this process itself was asleep."""
        self.heard = {other: (sign, now) for other, (sign, _) in self.heard.items()}

    def _run(self) -> None:
        last = time.monotonic()
        while not self.stopped.wait(INTERVAL):
            now = time.monotonic()
            if now - last > 3 * INTERVAL:
                self.forgive(now)
            last, gone = now, self.lost(now)
            if gone is not None and not self.stopped.is_set():
                _end(gone)

    def _tell(self, sign: str) -> None:
        try:
            self.store.set(f"{KEY}-{self.rank}", sign)
        except Exception:  # the rank that holds the store is gone, and is found lost
            return

    def _sign(self, rank: int) -> str | None:
        key = f"{KEY}-{rank}"
        try:
            # get would wait for a rank that has not begun
            return self.store.get(key).decode() if self.store.check([key]) else None
        except Exception:
            return None


_own: Heartbeat | None = None


def start(rank: int, num_ranks: int) -> None:
    """Begin, in a process that a launcher started as one of several; else do nothing."""
    global _own
    if num_ranks == 1 or _own is not None:
        return
    import datetime

    from torch.distributed import TCPStore

    # a connection of its own to the launcher's store: the process group may wait in another
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    limit = datetime.timedelta(seconds=LOST)
    store = TCPStore(address, port, is_master=False, timeout=limit)
    _own = Heartbeat(store, rank, num_ranks)
    _own.start()


def leave() -> None:
    """End this rank's signs of life: it is finished, and the others may go on without it."""
    global _own
    if _own is not None:
        _own.leave()
        _own = None


def _end(gone: str) -> None:
    """End the process at once: its main thread waits for the rank that is gone."""
    print(
        f"error: {gone} gave no sign of life for {LOST:.0f} seconds: it was killed, is frozen, or"
        f" cut off; {GO_ON}, once all ranks can run",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
