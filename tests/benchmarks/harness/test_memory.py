"""A limited process gets no more memory than its limit."""

import resource
import subprocess
import sys

from benchmarks.harness.memory import peak_gib


def test_the_limit_holds() -> None:
    """In a process of its own, as it is for good."""
    program = (
        "from benchmarks.harness.memory import limit_memory\n"
        "limit_memory(2**28)\n"
        "bytearray(2**26)\n"
        "try:\n    bytearray(2**28)\nexcept MemoryError:\n    print('refused')"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout == "refused\n", found.stderr


def test_the_peak_is_that_of_the_process() -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert abs(peak_gib() * 2**30 - peak) < 2**26
