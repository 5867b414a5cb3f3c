"""Schedules of models of any size, and pruning plans without scores."""

from types import SimpleNamespace

import torch
from transformers import PreTrainedModel

from ptl_fast.model.families import feed_forwards, find_family
from ptl_fast.pruning.plan import PruningPlan, plan_neurons
from ptl_fast.pruning.schedule import Round, token_shares
from ptl_fast.run.rounds import make_schedule
from support.models import NUM_LAYERS, WIDTH
from support.settings import settings


def rounds(width: int, num_layers: int, **values: object) -> list[Round]:
    """The schedule of a model of this size, with settings by their flat names."""
    size = SimpleNamespace(intermediate_size=width, num_hidden_layers=num_layers)
    return make_schedule(settings(**values), size)  # type: ignore[arg-type]


def growing(num_rounds: int) -> list[float]:
    """Shares of the tokens: each round has twice that of the one before."""
    return token_shares(num_rounds, growth=2.0, num_tokens=None, smallest_tokens=0)


def neuron_round(width: int, num_layers: int, number: int = 1, share: float = 1.0) -> Round:
    """A round that leaves FFNs of this width."""
    return Round(
        number=number, kind="neurons", width=width, num_layers=num_layers, recovery_share=share
    )


def layer_round(width: int, num_layers: int, number: int = 1, share: float = 1.0) -> Round:
    """A round that leaves so many layers."""
    return Round(
        number=number, kind="layers", width=width, num_layers=num_layers, recovery_share=share
    )


def random_plan(model: PreTrainedModel, width: int = 32) -> PruningPlan:
    """A neuron round's plan of random scores."""
    ffns = feed_forwards(model, find_family(model))
    scores = torch.rand(len(ffns), ffns["0"].width, generator=torch.Generator().manual_seed(3))
    return plan_neurons(neuron_round(width, len(ffns)), scores, None, "random")


def neuron_plan(kept: list[list[int]]) -> PruningPlan:
    return PruningPlan(
        round=1,
        kind="neurons",
        scorer="test",
        width=len(kept[0]),
        num_layers=len(kept),
        kept_neurons=kept,
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
