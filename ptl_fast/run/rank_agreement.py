"""Make sure that all ranks have the same run before them: on several nodes, each reads its own copy
of the files and has its own installation.
"""

import socket
from typing import Any

from ptl_fast.base import distributed
from ptl_fast.run.folder import different


def check(run: dict[str, Any]) -> None:
    """Raise ValueError, on all ranks, if one has another run before it than the main rank.
    Collective.

    Args:
        run: what makes a run: its settings, the fingerprints of its inputs, its plan.
    """
    if distributed.world_size() == 1:
        return
    (main_host, first), *others = distributed.gathered((socket.gethostname(), run))
    for rank, (host, own) in enumerate(others, start=1):
        if names := different(first, own):
            raise ValueError(
                f"rank {rank} on {host} and rank 0 on {main_host} differ in {', '.join(names)}: all"
                " ranks must run the same command, with the same version, on the same files"
            )
