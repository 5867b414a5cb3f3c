"""A limit of this process' memory, and how much it has used. Imports nothing heavy."""

import re
import resource
from pathlib import Path


def limit_memory(num_bytes: int) -> None:
    """Limit this process' memory, for good, and make sure that it is limited.

    Raises:
        RuntimeError: the system gives more all the same.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, num_bytes))
    try:
        bytearray(num_bytes)
    except MemoryError:
        return
    raise RuntimeError("RLIMIT_DATA does not hold on this system")


def peak_gib() -> float:
    """The most resident memory that this process has had."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 2**20
