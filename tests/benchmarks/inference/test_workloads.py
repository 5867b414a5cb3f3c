"""What is timed of a model."""

from benchmarks.inference import workloads
from benchmarks.inference.workloads import Times, Workload


def test_generation_times_by_hand() -> None:
    """Two sequences; new tokens are ready 1, 1.5, 2 and 2.5 seconds after the start."""
    ready = [11.0, 11.5, 12.0, 12.5]
    assert workloads.generation_times(Workload("decode", 2, 8, 4), 10.0, ready) == Times(
        500.0, 1000.0, 4.0
    )
    assert workloads.generation_times(Workload("paper", 2, 8, 4), 10.0, ready) == Times(
        2500.0, 1000.0, 2 * 4 / 2.5
    )
