"""Kinds of rounds: the half of a step."""

from typing import Any

import pytest

from ptl_fast.baselines import ROUND_KINDS


@pytest.mark.parametrize(
    ("kind", "removed", "multiple", "expected"),
    [
        ("neurons", 384, 32, 192),
        ("neurons", 160, 32, 64),
        ("neurons", 96, 64, 64),
        ("neurons", 64, 32, 32),
        ("neurons", 32, 32, None),
        ("neurons", 18, 16, 16),
        ("layers", 5, 32, 2),
        ("layers", 2, 32, 1),
        ("layers", 1, 32, None),
        ("hidden", 0, 32, None),
        ("none", 0, 32, None),
    ],
)
def test_half_a_step_is_whole_multiples_or_layers(
    kind: Any, removed: int, multiple: int, expected: int | None
) -> None:
    step, reason = ROUND_KINDS[kind].halve(removed, multiple)
    assert step == expected
    assert (reason is None) == (expected is not None)
