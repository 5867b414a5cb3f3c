"""A teacher on disk."""

from pathlib import Path

import pytest

from support.models import make_model


@pytest.fixture
def original(tmp_path: Path) -> str:
    """A saved random model with other weights and another width than ``llama``."""
    folder = tmp_path / "original"
    make_model("llama", intermediate_size=64).save_pretrained(folder)
    return str(folder)
