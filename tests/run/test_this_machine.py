"""Predictions for this machine: known GPUs by the driver's names, or the CPU by a trial."""

import time

import pytest

from ptl_fast.run import this_machine
from ptl_fast.run.gpus import GPUS, THIS


@pytest.mark.parametrize(
    ("listed", "name", "count"),
    [
        (["NVIDIA A100-SXM4-80GB, 81920"], "A100-80GB", 1),
        (["NVIDIA A100-PCIE-40GB, 40960"] * 4, "A100-40GB", 4),
        (["NVIDIA H100 80GB HBM3, 81559"] * 8, "H100-80GB", 8),
        (["NVIDIA H200, 143771"] * 2, "H200", 2),
    ],
)
def test_gpus_by_the_names_of_the_driver(listed: list[str], name: str, count: int) -> None:
    found = this_machine.known_gpus(listed)
    assert found is not None
    assert found[0] == count
    assert found[1].tflops == GPUS[name].tflops
    assert name in found[1].name


@pytest.mark.parametrize(
    "listed",
    [
        [],
        ["NVIDIA GeForce RTX 3060, 12288"],
        ["NVIDIA A100-SXM4-40GB MIG 1g.5gb, 4864"],
        ["NVIDIA H200, 143771", "NVIDIA A100-SXM4-80GB, 81920"],
        ["No devices were found"],
        ["NVIDIA H200, [N/A]"],
    ],
)
def test_what_is_not_known_is_no_gpu(listed: list[str]) -> None:
    assert this_machine.known_gpus(listed) is None


def test_the_cpu_is_tried_in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    this_machine.cpu.cache_clear()
    start = time.process_time()
    cpu = this_machine.cpu()
    assert time.process_time() - start < 3
    assert 1e-4 < cpu.tflops < 100
    assert cpu.memory_gib >= 1
    assert cpu.name.startswith(f"CPU, 1 thread, {1000 * cpu.tflops:.0f} GFLOP/s")
    this_machine.cpu.cache_clear()


def test_a_machine_without_a_driver_is_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_machine, "_listed_gpus", list)
    this_machine.found.cache_clear()
    assert this_machine.chosen(THIS) == (1, this_machine.cpu())
    assert this_machine.named(THIS) == f"this machine ({this_machine.cpu().name})"
    assert this_machine.named("2xH200") == "2xH200"
    this_machine.found.cache_clear()
    monkeypatch.setattr(this_machine, "_listed_gpus", lambda: ["NVIDIA GeForce RTX 3060, 12288"])
    assert this_machine.named(THIS).endswith("its GPU is none of those that --dry-run-gpus names)")
    assert this_machine.of_device("cuda:0") is None
    assert this_machine.of_device("cpu") == (1, this_machine.cpu())
    this_machine.found.cache_clear()
