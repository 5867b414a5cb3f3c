"""Make sure that all ranks see the same run folder: on several nodes it lies on a shared disk."""

import socket
import time
import uuid
from pathlib import Path

from ptl_fast.base import distributed
from ptl_fast.base.atomic_files import nearest_folder
from ptl_fast.base.disk import storing

PATIENCE = 30.0
"""Seconds that a network's file system may take to show a new file on other nodes."""


def check(output: Path) -> None:
    """Raise ValueError, on all ranks, if one does not see what the main rank writes beside or in
    ``output``. Collective; leaves nothing behind.
    """
    if distributed.world_size() == 1:
        return
    token = nearest_folder(output.absolute()) / f".ptl-fast-{uuid.uuid4().hex}"
    token = distributed.agree(token)
    if distributed.is_main():
        with storing(token):
            token.touch()
    distributed.barrier()
    blind = distributed.gathered(None if _appears(token) else socket.gethostname())
    if distributed.is_main():
        token.unlink(missing_ok=True)
    blind_ranks = [f"{rank} on {host}" for rank, host in enumerate(blind) if host is not None]
    if blind_ranks:
        raise ValueError(
            f"--output {output}: what rank 0 writes to {token.parent} does not appear to rank"
            f" {', '.join(blind_ranks)}; give a folder on a disk that all nodes share, by the same"
            " absolute path"
        )


def _appears(file: Path) -> bool:
    end = time.monotonic() + PATIENCE
    while not file.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
