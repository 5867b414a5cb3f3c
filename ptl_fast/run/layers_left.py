"""Which layers a round's model has, for its size: layers can be unlike each other, such as dense
ones among mixtures of experts, or those of a hybrid.

Before a run, --layers says which go. Where scores will choose, sizes are those of the choice that
leaves the most parameters, among those that keep the attention pattern; ``note`` says how much
smaller the model may become.
"""

import types
from typing import TYPE_CHECKING

from ptl_fast.model import flops, layers
from ptl_fast.pruning.plan import LayerLimits, plan_layers
from ptl_fast.pruning.schedule import Round
from ptl_fast.run.folder import read_plan

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ptl_fast.config.prune import PruneSettings
    from ptl_fast.pruning.plan import PruningPlan
    from ptl_fast.run.context import RunContext


def planned(
    prune: "PruneSettings", original: "PretrainedConfig", step: Round, *, most: bool = True
) -> list[int]:
    """The layers that stay in a round's model, as far as settings say it.

    Args:
        most: where scores will choose, whether the choice that leaves the most parameters counts;
            else that which leaves the fewest.
    """
    number = original.num_hidden_layers
    if prune.named_layers:
        gone = prune.named_layers[: number - step.num_layers]
        return [layer for layer in range(number) if layer not in gone]
    # all families that are counted by a formula have layers of one size
    alike = isinstance(original, types.SimpleNamespace) or original.model_type in flops.EXTRAS
    if step.num_layers == number or alike:
        return list(range(step.num_layers))
    # with the round's width and experts, which not all layers have
    smaller = flops.resized(original, step.width, range(number), step.num_experts)
    return _by_size(prune, original, step, flops.layer_sizes(smaller), most)


def _by_size(
    prune: "PruneSettings", original: "PretrainedConfig", step: Round, sizes: list[int], most: bool
) -> list[int]:
    import torch

    own, wanted = list[str](), list[str]()
    if prune.keep_attention_pattern:
        wanted = layers.attention_pattern(original, step.num_layers) or []
        own = list(original.layer_types) if wanted else []
    found = iter(own)
    # no choice has it: others refuse such a run
    wanted = wanted if all(kind in found for kind in wanted) else []
    scores_L = torch.tensor(sizes, dtype=torch.float64) * (1 if most else -1)
    limits = LayerLimits(kinds=own, wanted=wanted)
    gone = plan_layers(step, scores_L, "", limits).dropped_layers
    return [layer for layer in range(len(sizes)) if layer not in gone]


def after(context: "RunContext", plan: "PruningPlan") -> list[int]:
    """The original's layers that a round's plan leaves, after those of the rounds before it."""
    left = list(range(context.original.num_hidden_layers))
    if plan.num_layers == len(left):
        return left
    earlier = [context.folder.round(number) for number in range(1, plan.round)]
    # a run goes on without the plans of rounds that are done
    if not all(files.plan.exists() for files in earlier):
        return left[: plan.num_layers]
    for each in (*map(read_plan, earlier), plan):
        left = [layer for place, layer in enumerate(left) if place not in each.dropped_layers]
    return left


def note(prune: "PruneSettings", original: "PretrainedConfig", schedule: list[Round]) -> list[str]:
    """What to say of the planned sizes, where it depends on scores how large the layers are that
    go.
    """
    last = schedule[-1]
    if last.num_layers == original.num_hidden_layers:
        return []
    found = [
        flops.count_weights(
            flops.resized(
                original,
                last.width,
                planned(prune, original, last, most=most),
                last.num_experts,
            )
        ).num_parameters
        for most in (True, False)
    ]
    if found[0] == found[1]:
        return []
    return [
        f"Layers of this model are not of one size, and scores choose which go: sizes are those of"
        f" the choice that leaves the most, {found[0]:,} parameters at last; another leaves"
        f" {found[1]:,} at least. --layers names them beforehand."
    ]
