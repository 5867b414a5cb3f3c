"""A report names the machine and the versions that its numbers belong to."""

import importlib.metadata
import platform

import pytest
import torch

from ptl_fast.run.environment import environment


def test_versions_are_the_installed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without_deepspeed(package: str) -> str:
        if package == "deepspeed":
            raise importlib.metadata.PackageNotFoundError
        return version(package)

    monkeypatch.setattr(importlib.metadata, "version", without_deepspeed)
    found = environment("cpu")
    assert found["torch"] == torch.__version__
    assert found["transformers"] == version("transformers")
    assert found["deepspeed"] == "not installed"
    assert found["python"] == platform.python_version()
    assert found["threads"] == str(torch.get_num_threads())
    assert found["device"]
