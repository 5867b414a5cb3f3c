"""Kinds of rounds: what they plan from scores, and the half of a step."""

from typing import Any

import pytest
import torch

from ptl_fast.baselines import ROUND_KINDS
from ptl_fast.pruning.round_kinds import Scores
from support.plans import neuron_round


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
        ("experts", 7, 1, 3),
        ("experts", 12, 4, 4),
        ("experts", 4, 4, None),
        ("experts", 1, 1, None),
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


@pytest.mark.parametrize(
    ("redundant_only", "width"),
    [(False, 8), (True, 12)],
    ids=["the schedule decides", "the scores decide"],
)
def test_only_with_a_threshold_scores_decide_how_many_neurons_go(
    redundant_only: bool, width: int
) -> None:
    """Of 16 neurons 5 are redundant in one layer and 7 in the other: 11 stay, rounded up to 12."""
    scores = torch.rand(2, 16, dtype=torch.float64)
    ranks = scores.argsort(1).argsort(1)
    given = Scores(
        scorer="test",
        values=scores,
        kept={},
        redundant_LI=ranks < torch.tensor([[5], [7]]),
        redundant_only=redundant_only,
        width_multiple=4,
    )
    plan = ROUND_KINDS["neurons"].plan(neuron_round(8, 2), given)
    assert plan.width == width
    assert plan.num_redundant == [5, 7]
    kept = (ranks >= 16 - width).nonzero()[:, 1].view(2, width)
    assert plan.kept_neurons == kept.tolist()
