"""Scorers of whole experts: functions from statistics to the importance of each.

What scores lowest goes first. g[t, e] is the weight that the router gives expert e at token t,
and f_e(x[t]) what the expert computes; T_e are the tokens that the router sends to it.

Shape suffixes: U FFNs (all experts of all layers, and what is pruned beside them), M layers with
experts, E experts of each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptl_fast.model.families import Family, feed_forwards

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ptl_fast.scoring.statistics import Statistics


def router_weighted(statistics: "Statistics", seed: int) -> "Tensor":
    """score[e] = mean over T_e of g[t, e] ||f_e(x[t])||: REAP, arXiv 2510.13999.

    What the layer's output loses at a token that went to the expert. 0 where no token did.
    """
    tokens_U, output_U = _counted(statistics)
    return output_U / tokens_U.clamp_min(1)


def output(statistics: "Statistics", seed: int) -> "Tensor":
    """score[e] = sum over T_e of g[t, e] ||f_e(x[t])||: what the layer's output loses in all.

    The score above times the number of tokens, so that what is rarely chosen counts less.
    """
    return _counted(statistics)[1]


def frequency(statistics: "Statistics", seed: int) -> "Tensor":
    """score[e] = |T_e|, the number of tokens that the router sends to the expert."""
    return _counted(statistics)[0].double()


def random(statistics: "Statistics", seed: int) -> "Tensor":
    """score[e] ~ uniform in [0, 1): the baseline that every scorer must beat."""
    import torch

    # a generator of its own, on the CPU: the same scores on any device and after a resume
    generator = torch.Generator().manual_seed(seed)
    shape = _counted(statistics)[0].shape
    return torch.rand(shape, dtype=torch.float64, generator=generator)


@dataclass(frozen=True, kw_only=True)
class ExpertScorer:
    """A way of scoring experts."""

    compute: "Callable[[Statistics, int], Tensor]"
    """(statistics, seed of scorers that draw random numbers) -> (num_ffns,) fp64; the lowest scores
    are removed first.
    """


# the names are the values of --expert-scorer; nothing else compares them
EXPERT_SCORERS = {
    "reap": ExpertScorer(compute=router_weighted),
    "output": ExpertScorer(compute=output),
    "frequency": ExpertScorer(compute=frequency),
    "random": ExpertScorer(compute=random),
}


def by_layer(model: "PreTrainedModel", family: Family, values_U: "Tensor") -> "Tensor":
    """Of values of all FFNs, those of the experts that a router chooses from, (M, E)."""
    import torch

    from ptl_fast.model.experts import layout

    of_stack: dict[int, list[int]] = {}
    for place, ffn in enumerate(feed_forwards(model, family).values()):
        if layout(ffn.module) is not None:
            of_stack.setdefault(id(ffn.module), []).append(place)
    return torch.stack([values_U[places] for places in of_stack.values()])


def _counted(statistics: "Statistics") -> "tuple[Tensor, Tensor]":
    assert statistics.tokens_U is not None
    assert statistics.output_U is not None
    return statistics.tokens_U, statistics.output_U
