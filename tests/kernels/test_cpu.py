"""The binding of csrc's kernels: when it takes a tensor, and what happens without the library.

That the kernels compute the right thing is tested with each operation.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ptl_kernels
from ptl_kernels import cpu

PACKAGE = Path(ptl_kernels.__file__).parent
FALLBACK = """
import torch, ptl_kernels
for _ in range(2):
    sums, gate = ptl_kernels.NeuronSums.zeros(8, "cpu"), torch.randn(5, 8)
    out = ptl_kernels.gated_activation(gate, gate, sums=sums)
    torch.testing.assert_close(sums.square, out.double().square().sum(0), rtol=1e-5, atol=1e-6)
print(ptl_kernels.__file__)
"""
OPENMP_LIBRARIES = """
import torch
from pathlib import Path
from ptl_kernels import cpu

def loaded():
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[-1] for line in lines if "/" in line}
    return {path for path in paths if any(name in Path(path).name for name in ("gomp", "omp5"))}

before = loaded()
assert cpu.available()
assert before and loaded() == before, (before, loaded())
"""
needs_library = pytest.mark.skipif(not cpu.available(), reason="csrc was not built")


def run(program: str, folder: Path, packages: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(packages), "TRITON_INTERPRET": "0"}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@needs_library
def test_kernels_that_compute_take_fp32_and_bf16_in_ordinary_memory() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert cpu.takes(torch.ones(2, dtype=dtype), torch.nn.Parameter(torch.ones(2, dtype=dtype)))
    for dtype in (torch.float16, torch.float64):
        assert not cpu.takes(torch.ones(2, dtype=dtype))
    assert not cpu.takes(torch.ones(2), torch.ones(2, device="meta"))


def test_subclasses_of_tensors_are_not_ordinary_memory() -> None:
    """Their address may not lead to their values."""

    class Wrapped(torch.Tensor):
        pass

    assert cpu.holds_memory(torch.ones(2))
    assert not cpu.holds_memory(torch.ones(2).as_subclass(Wrapped))
    assert not cpu.holds_memory(torch.ones(2, device="meta"))


@needs_library
def test_instruction_sets_change_by_name_and_unknown_ones_change_nothing() -> None:
    best = cpu.instruction_set()
    try:
        assert cpu.use_instruction_set("baseline")
        assert cpu.instruction_set() == "baseline"
        assert not cpu.use_instruction_set("sse9")
        assert cpu.instruction_set() == "baseline"
    finally:
        assert cpu.use_instruction_set("")
    assert cpu.instruction_set() == best


@needs_library
def test_hole_filling_reports_bad_indices_instead_of_reading_past_the_end() -> None:
    assert cpu.hole_filling(torch.tensor([[0, 3]]), 4) is not None
    for kept in ([[0, 4]], [[-1, 0]], [[1, 1]]):
        assert cpu.hole_filling(torch.tensor(kept), 4) is None


@needs_library
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="/proc lists no libraries here")
def test_torch_and_the_kernels_share_one_openmp_library(tmp_path: Path) -> None:
    result = run(OPENMP_LIBRARIES, tmp_path, PACKAGE.parent)
    assert result.returncode == 0, result.stderr


def test_without_the_library_one_warning_comes_and_plain_pytorch_does_the_work(
    tmp_path: Path,
) -> None:
    """A copy of the package, as an installation without a compiler leaves it."""
    copy = tmp_path / "ptl_kernels"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    result = run(FALLBACK, tmp_path, tmp_path)
    assert result.returncode == 0, result.stderr
    assert str(tmp_path) in result.stdout
    assert result.stderr.count("the CPU kernels are not in use") == 1


def test_a_library_that_cannot_be_loaded_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "_cpu.abi3.so").write_bytes(b"not a library")
    monkeypatch.setattr(cpu, "__file__", str(tmp_path / "cpu.py"))
    load_again = cpu._library.__wrapped__  # without the cache
    with pytest.warns(UserWarning, match=r"not in use.*_cpu\.abi3\.so: .*; install again"):
        assert load_again() is None


@needs_library
def test_a_library_of_an_older_source_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lacks a function that this Python calls."""
    monkeypatch.setitem(cpu._SIGNATURES, "ptl_function_of_tomorrow", [])
    load_again = cpu._library.__wrapped__
    with pytest.warns(UserWarning, match="ptl_function_of_tomorrow; install again"):
        assert load_again() is None
