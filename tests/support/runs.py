"""Runs in this process, runs that are killed at a chosen call, and what may differ between two of
them.
"""

import runpy
import sys
from typing import Any

import pytest


def main(arguments: list[str]) -> Any:
    """``python -m ptl_fast.compress ARGUMENTS`` in this process; returns the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ptl_fast.compress", *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("ptl_fast.compress", run_name="__main__")
    return ended.value.code


def without_seconds(report: dict) -> dict:
    return {
        "dense": report["dense"],
        "final": report["final"],
        "rounds": [
            {key: value for key, value in record.items() if key != "seconds"}
            for record in report["rounds"]
        ],
    }


def kill_at(attribute: str, owner: Any, call: int, flags: list[str]) -> None:
    """Run until the function is called for the ``call``-th time; nothing is cleaned up but what the
    system would.
    """
    original, count = getattr(owner, attribute), 0

    def die(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, attribute, die)
        assert main(flags) == 130
