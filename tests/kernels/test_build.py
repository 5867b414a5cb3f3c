"""csrc compiles where there is a compiler, and the installation goes on where there is none."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ptl_kernels import cpu

ROOT = Path(__file__).parents[2]


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    command = [
        sys.executable,
        "setup.py",
        "build_ext",
        "--build-lib",
        folder / "lib",
        "--build-temp",
        folder / "temp",
    ]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_sources_compile_to_a_library_without_python_or_torch(tmp_path: Path) -> None:
    result = build(tmp_path)
    assert result.returncode == 0, result.stderr
    assert "warning:" not in result.stderr
    (library,) = (tmp_path / "lib").rglob("_cpu*.so")
    needed = subprocess.run(["objdump", "-p", library], capture_output=True, text=True).stdout
    assert not any(
        name in line
        for line in needed.splitlines()
        if "NEEDED" in line
        for name in ("torch", "python", "omp")
    )
    assert cpu.available(), (
        "this environment was installed with a compiler present, so its own build must load"
    )
    loaded = ctypes.CDLL(str(library))
    assert all(hasattr(loaded, name) for name in cpu._SIGNATURES)


def test_installation_goes_on_without_a_compiler(tmp_path: Path) -> None:
    result = build(tmp_path, CC="/bin/false", CXX="/bin/false")
    assert result.returncode == 0, result.stderr
    assert (result.stdout + result.stderr).count(
        'building extension "ptl_kernels._cpu" failed'
    ) == 1
    assert not list((tmp_path / "lib").rglob("*.so"))
