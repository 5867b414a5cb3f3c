"""kernels/ is a project that Hugging Face's kernels package understands and loads."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kernels" / "torch-ext" / "ptl_kernels"

LOAD = """
import sys, torch
from pathlib import Path
from kernels import get_local_kernel
sys.modules["ptl_kernels"] = None  # a kernel must not need to be on the path
ptl = get_local_kernel(Path(sys.argv[1]))
sums, gate, up = ptl.NeuronSums.zeros(8, "cpu"), torch.randn(5, 8), torch.randn(5, 8)
out = ptl.gated_activation(gate, up, sums=sums)
torch.testing.assert_close(sums.square, out.double().square().sum(0), rtol=1e-5, atol=1e-6)
print(ptl.__file__)
"""


def test_build_file_is_valid() -> None:
    kernels = pytest.importorskip(
        "kernels", reason="Hugging Face's kernels package is not installed"
    )
    rust = pytest.importorskip(
        "kernels._rust", reason=f"kernels {kernels.__version__} cannot read a build.toml"
    )
    rust.Build.open(ROOT / "kernels")  # raises ValueError where it is not


def test_loads_as_a_hugging_face_kernel(tmp_path: Path, environment: dict[str, str]) -> None:
    """Laid out as kernel-builder lays out a kernel of pure Python, loaded by get_local_kernel."""
    kernels = pytest.importorskip(
        "kernels", reason="Hugging Face's kernels package is not installed"
    )
    if not hasattr(kernels, "get_local_kernel"):
        pytest.skip(f"kernels {kernels.__version__} has no get_local_kernel")
    build = tmp_path / "build" / "torch-cpu"
    shutil.copytree(PACKAGE, build, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    metadata = {
        "name": "ptl-kernels",
        "id": "_ptl_kernels_1",
        "version": 1,
        "license": "apache-2.0",
        "python-depends": [],
        "backend": {"type": "cpu"},
    }
    (build / "metadata.json").write_text(json.dumps(metadata))
    result = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert str(build) in result.stdout


def test_readme_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ten lines of kernels/README.md, on the bundled model."""
    (example,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "kernels" / "README.md").read_text(), re.DOTALL
    )
    assert len(example.strip().splitlines()) == 10
    names = {"name": ROOT / "ptl_fast" / "demo" / "model", "texts": ["47+8=55;", "12+3="]}
    exec(example, names)
    assert names["scores"].shape == (4, 768)
    assert (names["scores"] > 0).all()
