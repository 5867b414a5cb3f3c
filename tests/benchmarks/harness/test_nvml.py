"""NVIDIA's management library: asked where it is, and not missed where it is not."""

import ctypes
from typing import Any

import pytest

from benchmarks.harness import nvml


def test_without_the_library_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert nvml.driver_version() is None
    assert nvml.energy_reader() is None


def test_driver_version_is_what_the_library_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        code = 0

        def nvmlInit_v2(self) -> int:
            return 0

        def nvmlSystemGetDriverVersion(self, text: Any, length: int) -> int:
            text.value = b"550.1"
            return self.code

    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert nvml.driver_version() == "550.1"
    library.code = 1
    assert nvml.driver_version() is None
