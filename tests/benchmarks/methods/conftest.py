"""What all cells of the tests' grids have in common."""

from pathlib import Path

import pytest

from benchmarks.methods.reasoning_rehearsal import write_world
from benchmarks.methods.setup import Setup, demo_base
from support.reasoning import write_traces


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(
        base=demo_base("test"),
        english_text=tmp_path / "english.txt",
        budgets=(50_000, 100_000),
    )


@pytest.fixture(scope="session")
def reasoning_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ and a chat model in model/."""
    folder = tmp_path_factory.mktemp("reasoning")
    write_world(folder)
    return folder


@pytest.fixture
def traces(tmp_path: Path) -> list[str]:
    """The flag --traces, with files."""
    return write_traces(tmp_path)
