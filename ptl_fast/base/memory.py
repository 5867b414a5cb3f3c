"""How much memory work may take: what is free on its device, or less (--memory).

Free memory is measured, as it depends on other processes, on the card and on the limits of a
container. What is sized by it gives the same results in whatever pieces it is done.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ptl_fast.base import distributed
from ptl_fast.base.console import first_line
from ptl_fast.base.errors import OutOfMemory

if TYPE_CHECKING:
    import torch

GIB = 2**30
SHARE = 0.85
"""Of the free memory, the part that sizes may rely on: batches and the allocator take some too."""
NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
    "bad_alloc",
)
CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 2**60
_limit = UNLIMITED


def set_limit(num_bytes: int | None) -> None:
    """Let this process use at most so much of its device's memory (None: all that is free)."""
    global _limit
    _limit = UNLIMITED if num_bytes is None else num_bytes


def free(device: "torch.device | str") -> int:
    """Bytes that this process can still get on a device, --memory included.

    On a CPU that is the least of what the system, the process's control group and its resource
    limits leave; several ranks on one machine divide the first two.
    """
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        used = torch.cuda.memory_allocated(device)
        # what torch holds and does not use is free for torch alone
        left = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - used
    else:
        num_ranks = distributed.of_launcher("LOCAL_WORLD_SIZE", 1)
        used = _resident()
        left = min(min(_available(), _left_in_cgroup()) // num_ranks, _left_of_limits())
    return max(0, min(left, _limit - used))


def budget(device: "torch.device | str") -> int:
    """Bytes that something may be sized to on a device."""
    return int(SHARE * free(device))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, CUDA, cuBLAS or torch's allocator for the CPU could not get memory: they have
    no error in common.
    """
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY)


@contextlib.contextmanager
def allocating(
    what: str, num_bytes: int, device: "torch.device | str", remedy: str
) -> Iterator[None]:
    """Name what needs memory, and what helps, where there is too little.

    Args:
        what: the subject of the sentence, such as "a Gram matrix of width 14336".
        num_bytes: what it needs on ``device``; checked first, as a CPU's system grants more than it
            has and later kills the process.
        remedy: the flags that help.

    Raises:
        OutOfMemory: there is less, before or while the body runs.
    """
    left = free(device)
    needs = f"{what} needs {in_words(num_bytes)} on {device}"
    if num_bytes > left:
        bound = "" if _limit == UNLIMITED else f" of --memory {in_words(_limit)}"
        raise OutOfMemory(f"{needs}, and {in_words(left)}{bound} are free; {remedy}")
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"{needs}, which it did not get: {first_line(error)}; {remedy}"
        ) from error


def in_words(num_bytes: int) -> str:
    """In GiB, or in MiB below one."""
    small = num_bytes < GIB
    return f"{num_bytes / 2**20:,.0f} MiB" if small else f"{num_bytes / GIB:,.1f} GiB"


def _available() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _left_in_cgroup() -> int:
    """What the process's control group leaves, and each above it; pages of files count as free."""
    group = _cgroup()
    # version 2, then version 1's names
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file "),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
    ):
        lefts = [
            _number(each / limit) - _number(each / used) + _of_statistics(each, cache)
            for each in (group, *group.parents)
            if each.is_relative_to(CGROUPS) and (each / limit).is_file()
        ]
        if lefts:
            return min(lefts)
    return UNLIMITED


def _cgroup() -> Path:
    """The folder of this process's control group; the root where a container hides it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                return _existing(CGROUPS / "memory", path)
            if not controllers:
                return _existing(CGROUPS, path)
    return CGROUPS


def _existing(root: Path, path: str) -> Path:
    own = root / path.lstrip("/")
    return own if own.is_dir() and ".." not in own.parts else root


def _number(file: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return min(int(file.read_text()), UNLIMITED)
    return UNLIMITED  # "max", or unreadable


def _of_statistics(group: Path, name: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in (group / "memory.stat").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1])
    return 0


def _left_of_limits() -> int:
    """What the soft limits of address space and data leave (ulimit -v, -d)."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        sizes = Path("/proc/self/statm").read_text().split()
        page = os.sysconf("SC_PAGE_SIZE")
        used = {resource.RLIMIT_AS: sizes[0], resource.RLIMIT_DATA: sizes[5]}
        return min(
            (
                resource.getrlimit(kind)[0] - int(pages) * page
                for kind, pages in used.items()
                if resource.getrlimit(kind)[0] != resource.RLIM_INFINITY
            ),
            default=UNLIMITED,
        )
    return UNLIMITED
