"""Free memory is the least of what the system, the control group and the limits leave."""

from pathlib import Path

import pytest
import torch

from ptl_fast.base import memory
from ptl_fast.base.errors import OutOfMemory

GIB = memory.GIB


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A system with 100 GiB free, and a process of 4 GiB, without limits."""
    monkeypatch.setattr(memory, "_available", lambda: 100 * GIB)
    monkeypatch.setattr(memory, "_left_in_cgroup", lambda: memory.UNLIMITED)
    monkeypatch.setattr(memory, "_left_of_limits", lambda: memory.UNLIMITED)
    monkeypatch.setattr(memory, "_resident", lambda: 4 * GIB)
    monkeypatch.setattr(memory, "_limit", memory.UNLIMITED)
    return monkeypatch


def test_the_least_of_all_counts(sizes: pytest.MonkeyPatch) -> None:
    assert memory.free("cpu") == 100 * GIB
    memory.set_limit(20 * GIB)
    assert memory.free("cpu") == 16 * GIB, "--memory is of the whole process"
    sizes.setattr(memory, "_left_in_cgroup", lambda: 8 * GIB)
    assert memory.free("cpu") == 8 * GIB
    sizes.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.free("cpu") == 2 * GIB, "ranks of one machine share it"
    sizes.setattr(memory, "_left_of_limits", lambda: GIB)
    assert memory.free("cpu") == GIB
    assert memory.budget("cpu") == int(memory.SHARE * GIB)
    memory.set_limit(GIB)
    assert memory.free("cpu") == 0, "never negative"
    memory.set_limit(None)
    assert memory.free("cpu") == GIB


def test_this_system_can_be_asked() -> None:
    assert 0 < memory.free("cpu") <= memory.UNLIMITED


@pytest.mark.parametrize(
    ("limit", "used", "cache"),
    [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_control_groups_of_both_versions_and_those_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, used: str, cache: str
) -> None:
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    inner = tmp_path / "jobs" / "mine"
    inner.mkdir(parents=True)
    monkeypatch.setattr(memory, "_cgroup", lambda: inner)
    assert memory._left_in_cgroup() == memory.UNLIMITED
    for group, most, current in ((inner, "max", 10), (inner.parent, 1000, 600)):
        (group / limit).write_text(f"{most}\n")
        (group / used).write_text(f"{current}\n")
    (inner.parent / "memory.stat").write_text(f"anon 500\n{cache} 50\n")
    assert memory._left_in_cgroup() == 450, "the limit of the group above, without files' pages"


def test_resource_limits_count(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: unlimited)
    assert memory._left_of_limits() == memory.UNLIMITED
    monkeypatch.setattr(
        resource,
        "getrlimit",
        lambda kind: (2**50, 2**50) if kind == resource.RLIMIT_DATA else unlimited,
    )
    assert 0 < 2**50 - memory._left_of_limits() < 2**40


def test_what_does_not_fit_is_named_before_and_while_it_is_allocated(
    sizes: pytest.MonkeyPatch,
) -> None:
    with (
        pytest.raises(
            OutOfMemory, match=r"a matrix needs 200.0 GiB on cpu, and 100.0 GiB are free"
        ),
        memory.allocating("a matrix", 200 * GIB, "cpu", "use --less"),
    ):
        raise AssertionError("not reached")
    failed = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    with (
        pytest.raises(OutOfMemory, match="a matrix needs 512 MiB on cpu, which it did not get"),
        memory.allocating("a matrix", GIB // 2, "cpu", "use --less"),
    ):
        raise failed
    with pytest.raises(ZeroDivisionError), memory.allocating("a", 1, "cpu", ""):
        1 / 0  # noqa: B018


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError(), RuntimeError("bad_alloc")],
)
def test_errors_of_all_allocators_are_known(error: Exception) -> None:
    assert memory.is_out_of_memory(error)
    assert not memory.is_out_of_memory(ValueError("another"))
