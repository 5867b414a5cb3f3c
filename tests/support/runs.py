"""Runs in this process, runs that are killed at a chosen call, and what may differ between two of
them.
"""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from ptl_fast.run import subcommands

# Three rounds of a tiny random model.
RUN = {
    "device": "cpu",
    "keep": 0.5,
    "rounds": 3,
    "width_multiple": 8,
    "sequence_length": 64,
    "global_batch": 4,
    "micro_batch": 2,
    "recovery_tokens": 12000,
    "recovery_split": "equal",
    "learning_rate": 1e-3,
    "calibration_tokens": 1000,
    "checkpoint_minutes": 0.0,
    "gradient_checkpointing": False,
}
# The random model begins at 6.2 nats: round 1 reaches 5.7 at its first check, and none reaches 5.0
# before round 2's.
UNTIL = {"recovery_split": "until-recovered", "recovery_growth": 1.0, "recovered_within": -0.5}
LATER = {**UNTIL, "recovered_within": -1.2}
# The bundled model, on few tokens.
DEMO = {
    "preset": "demo",
    "recovery_split": "growing",
    "recovery_tokens": 6000,
    "sequence_length": 128,
    "calibration_tokens": 2000,
    "eval_tasks": "nll",
    "eval_limit": 4,
    "device": "cpu",
}
# Reinforcement learning on the bundled problems.
SHORT = {"grpo_prompt_tokens": 64, "grpo_response_tokens": 32}


class Killed(Exception):
    """Ends a run as abruptly as a signal would."""


def main(arguments: list[str]) -> Any:
    """``python -m ptl_fast.compress ARGUMENTS`` in this process; returns the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ptl_fast.compress", *arguments])
        patch.setattr(subcommands, "leave", sys.exit)  # it would end this process
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("ptl_fast.compress", run_name="__main__")
    return ended.value.code


def as_flags(settings: dict[str, Any]) -> list[str]:
    """The same settings as flags."""
    values = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in settings.items()
        if value is not None
    }
    return [
        part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", value)
    ]


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


def plans(folder: Path) -> list[dict]:
    """The pruning plans of a run's rounds, in order."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("round-*/plan.json"))]
