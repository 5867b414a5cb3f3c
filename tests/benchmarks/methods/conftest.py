"""What all cells of the tests' grids have in common."""

from pathlib import Path

import pytest

from benchmarks.methods.setup import Setup, demo_base


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(
        base=demo_base("test"),
        english_text=tmp_path / "english.txt",
        budgets=(50_000, 100_000),
    )
