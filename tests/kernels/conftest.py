"""What several tests of kernels run through."""

from collections.abc import Iterator

import pytest

from ptl_kernels import cpu


@pytest.fixture(params=["", "avx2", "baseline", "twin"])
def cpu_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each instruction set of csrc ("" is the best one here), and plain PyTorch."""
    if request.param == "twin":
        monkeypatch.setattr(cpu, "available", lambda: False)
        yield "twin"
        return
    if not cpu.use_instruction_set(request.param):
        pytest.skip(f"this processor lacks {request.param}, or csrc was not built")
    yield request.param
    cpu.use_instruction_set("")
