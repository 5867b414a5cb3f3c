"""Rounds are split into smaller steps where they stand, and share their round's tokens."""

from collections.abc import Sequence

import pytest

from ptl_fast.config.prune import PruneSettings
from ptl_fast.pruning.schedule import Round, make_schedule
from ptl_fast.pruning.smaller_steps import split
from support.plans import growing, neuron_round


def sizes(schedule: Sequence[Round]) -> list[tuple[str, int, int]]:
    return [(step.kind, step.width, step.num_layers) for step in schedule]


def test_halved_step_splits_the_rounds_to_come_where_they_stand() -> None:
    prune = PruneSettings(
        keep=0.5,
        rounds=2,
        drop_layers=4,
        layers_per_round=2,
        order="alternate",
        width_multiple=32,
        steps="equal",
    )
    schedule = make_schedule(prune, growing, 768, 8)
    assert sizes(schedule) == [
        ("neurons", 576, 8),
        ("layers", 576, 6),
        ("neurons", 384, 6),
        ("layers", 384, 4),
    ]
    groups = split(schedule, 3, 96, "width", original=768, multiple=32)
    assert [len(group) for group in groups] == [1, 1, 2, 1], (
        "what came before, and the other kind, stay"
    )
    assert sizes(groups[2]) == [("neurons", 480, 6), ("neurons", 384, 6)]
    groups = split(schedule, 1, 64, "width", original=768, multiple=32)
    smaller = [step for group in groups for step in group]
    assert sizes(groups[0]) == [("neurons", 704, 8), ("neurons", 640, 8), ("neurons", 576, 8)]
    assert sizes(groups[2]) == [("neurons", 512, 6), ("neurons", 448, 6), ("neurons", 384, 6)]
    assert [step.number for step in smaller] == list(range(1, 9))
    assert sum(step.recovery_share for step in smaller) == pytest.approx(1)
    for group, whole in zip(groups, schedule, strict=True):
        assert sum(step.recovery_share for step in group) == pytest.approx(whole.recovery_share)
    groups = split(smaller, 4, 1, "num_layers", original=8, multiple=1)
    assert [sizes(group) for group in groups if group[0].kind == "layers"] == [
        [("layers", 576, 7), ("layers", 576, 6)],
        [("layers", 384, 5), ("layers", 384, 4)],
    ]


def test_uneven_step_leaves_widths_that_are_multiples() -> None:
    """50 -> 32 removed 18 neurons; at most 16 at once leads over 48, the next multiple of 16."""
    schedule = [neuron_round(32, 4, share=0.3)]
    (group,) = split(schedule, 1, 16, "width", original=50, multiple=16)
    assert [step.width for step in group] == [48, 32]
    assert [step.recovery_share for step in group] == pytest.approx([0.3 * 2 / 18, 0.3 * 16 / 18])
