"""What goes out with a release: licence, changes, metadata, types, examples in the docs."""

import hashlib
import importlib
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_licence_is_apaches_own_text() -> None:
    """https://www.apache.org/licenses/LICENSE-2.0.txt, byte for byte."""
    text = (ROOT / "LICENSE").read_bytes()
    assert hashlib.md5(text).hexdigest() == "3b83ef96387f14655fc854ddc3c6bd57"
    assert PROJECT["license"] == "Apache-2.0"
    assert "license: apache-2.0" in (ROOT / "kernels" / "CARD.md").read_text()


def test_the_version_has_its_changes() -> None:
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_command_is_the_module() -> None:
    module, _, function = PROJECT["scripts"]["ptl-fast"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_types_are_shipped() -> None:
    assert (ROOT / "ptl_fast" / "py.typed").is_file()
    assert '"py.typed"' in (ROOT / "setup.py").read_text()
