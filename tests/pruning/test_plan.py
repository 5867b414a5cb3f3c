"""Plans remove the least important and keep the protected."""

import itertools
from typing import Any

import pytest
import torch

from ptl_fast.pruning.plan import (
    LayerLimits,
    PruningPlan,
    plan_experts,
    plan_layers,
    plan_neurons,
    plan_redundant,
    protect,
)
from ptl_fast.pruning.schedule import Round
from support.plans import layer_round, neuron_round

STEP = neuron_round(3, 2)


def test_least_important_neurons_go() -> None:
    scores = torch.tensor([[5.0, 1.0, 4.0, 2.0, 3.0], [0.0, 0.0, 7.0, 8.0, 9.0]])
    assert plan_neurons(STEP, scores, None, "activation").kept_neurons == [[0, 2, 4], [2, 3, 4]]


def test_protected_neurons_stay_and_are_counted() -> None:
    scores = torch.tensor([[5.0, 1.0, 4.0, 2.0, 3.0], [0.0, 0.0, 7.0, 8.0, 9.0]])
    general = torch.tensor([[0.0, 9.0, 0.0, 8.0, 0.0], [9.0, 8.0, 1.0, 2.0, 0.0]])
    protected = protect(general, 0.4)
    decided = plan_neurons(STEP, scores, protected, "activation")
    assert decided.kept_neurons == [[0, 1, 3], [0, 1, 4]]
    assert decided.num_rescued == 2


def expert_round(num_experts: int) -> Round:
    return Round(
        number=1, kind="experts", width=8, num_layers=3, recovery_share=1.0, num_experts=num_experts
    )


def test_least_important_experts_go_from_each_layer() -> None:
    scores = torch.tensor([[5.0, 1.0, 4.0, 2.0], [0.0, 7.0, 0.5, 8.0]])
    plan = plan_experts(expert_round(2), scores, "reap")
    assert plan.kept_experts == [[0, 2], [1, 3]]
    assert plan.expert_scores == scores.tolist()
    assert (plan.highest_removed, plan.lowest_kept) == ([2.0, 0.5], [4.0, 7.0])
    assert (plan.num_experts, plan.width, plan.kept_neurons) == (2, 8, None)


def test_each_group_of_experts_loses_as_many() -> None:
    scores = torch.tensor([[5.0, 6.0, 7.0, 1.0, 3.0, 2.0]])
    assert plan_experts(expert_round(4), scores, "reap", groups=2).kept_experts == [[1, 2, 4, 5]]


def test_least_important_layers_go() -> None:
    step = layer_round(8, 2)
    assert plan_layers(step, torch.tensor([3.0, 1.0, 2.0, 4.0]), "residual").dropped_layers == [
        1,
        2,
    ]


@pytest.mark.parametrize("seed", range(3))
def test_a_pattern_is_kept_at_the_least_cost(seed: int) -> None:
    """Compared with every choice of four among nine layers."""
    kinds = "sfssfsffs"
    scores = torch.rand(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    limits = LayerLimits(kinds=kinds, wanted="sfsfs", staying=(2,))
    decided = plan_layers(layer_round(8, 5), scores, "residual", limits)
    allowed = [
        gone
        for gone in itertools.combinations(range(9), 4)
        if 2 not in gone
        and "".join(kind for layer, kind in enumerate(kinds) if layer not in gone) == "sfsfs"
    ]
    assert tuple(decided.dropped_layers) == min(allowed, key=lambda gone: scores[list(gone)].sum())


def test_layers_that_must_stay_do() -> None:
    limits = LayerLimits(staying=(0, 1))
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert plan_layers(layer_round(8, 3), scores, "last", limits).dropped_layers == [2]
    with pytest.raises(ValueError, match=r"should drop 3 layers.*can do without 2"):
        plan_layers(layer_round(8, 1), scores, "last", limits)


SCORES = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8], [9, 1, 1, 1, 2, 2, 3, 3]])


def plan(
    threshold: float, protected: list[list[int]] | None = None, multiple: int = 1, floor: int = 2
) -> PruningPlan:
    step = neuron_round(floor, 2)
    protected_LK = None if protected is None else torch.tensor(protected)
    return plan_redundant(step, SCORES, protected_LK, "activation", SCORES.le(threshold), multiple)


def test_every_layer_loses_as_many_as_the_one_with_fewest_redundant_neurons() -> None:
    """At most 3: three in the first layer, seven in the second; of those the three lowest."""
    decided = plan(3)
    assert (decided.num_redundant, decided.width) == ([3, 7], 5)
    assert decided.kept_neurons == [[3, 4, 5, 6, 7], [0, 4, 5, 6, 7]]
    assert decided.kept_neurons is not None


@pytest.mark.parametrize(
    ("settings", "width"),
    [
        pytest.param({"threshold": 3, "multiple": 2}, 6, id="width-multiple"),
        pytest.param({"threshold": 3, "multiple": 4}, 8, id="less-than-a-multiple"),
        pytest.param({"threshold": 7, "floor": 2}, 2, id="at-the-floor"),
        pytest.param({"threshold": 7, "floor": 3}, 3, id="below-the-floor"),
        pytest.param({"threshold": 0}, 8, id="none-redundant"),
        pytest.param(
            {"threshold": 3, "multiple": 5}, 5, id="multiple-that-does-not-divide-the-width"
        ),
        pytest.param({"threshold": 2, "multiple": 5}, 8, id="multiple-above-what-stays"),
    ],
)
def test_width_that_stays(settings: dict[str, Any], width: int) -> None:
    decided = plan(**settings)
    assert decided.width == width
    assert (decided.kept_neurons is None) == (width == 8)
    assert decided.kept_neurons is None or [len(kept) for kept in decided.kept_neurons] == [
        width,
        width,
    ]


def test_protected_neurons_are_not_redundant() -> None:
    decided = plan(3, protected=[[0, 7], [1, 2]])
    assert (decided.num_redundant, decided.width) == ([2, 5], 6)
    assert decided.kept_neurons == [[0, 3, 4, 5, 6, 7], [0, 1, 2, 4, 6, 7]], (
        "of two equal scores, the lower index stays"
    )
