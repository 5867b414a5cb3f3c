"""Schedules of models of any size, and pruning plans without scores."""

from types import SimpleNamespace

import torch

from ptl_fast.config.config import Config
from ptl_fast.pruning.plan import PruningPlan
from ptl_fast.pruning.schedule import Round
from ptl_fast.run.rounds import make_schedule
from support.models import NUM_LAYERS, WIDTH


def rounds(width: int, num_layers: int, **settings: object) -> list[Round]:
    """The schedule of a model of this size, with settings by their flat names."""
    size = SimpleNamespace(intermediate_size=width, num_hidden_layers=num_layers)
    return make_schedule(Config.from_flat(**settings), size)  # type: ignore[arg-type]


def neuron_plan(kept: list[list[int]]) -> PruningPlan:
    return PruningPlan(
        round=1,
        kind="neurons",
        scorer="test",
        width=len(kept[0]),
        num_layers=len(kept),
        kept_neurons=kept,
        dropped_layers=[],
        num_rescued=0,
        layer_scores=None,
    )


def layer_plan(dropped: list[int]) -> PruningPlan:
    return PruningPlan(
        round=1,
        kind="layers",
        scorer="test",
        width=WIDTH,
        num_layers=NUM_LAYERS - len(dropped),
        kept_neurons=None,
        dropped_layers=dropped,
        num_rescued=0,
        layer_scores=None,
    )


def random_kept(width: int, seed: int = 3) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randperm(WIDTH, generator=generator)[:width].sort().values.tolist()
        for _ in range(NUM_LAYERS)
    ]
