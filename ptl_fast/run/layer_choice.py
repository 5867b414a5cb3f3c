"""Which decoder layers may go: the run's side of --drop-layers and --layers.

A model may depend on the numbers of its layers in a way that its config cannot carry over
(``model.layers``): this is found out before any work, from the config alone. What is left to choose
is limited by the pattern of the kinds of attention (--keep-attention-pattern).
"""

import copy
import types
from typing import TYPE_CHECKING, Any

from ptl_fast.base.console import first_line, say
from ptl_fast.model import engines, families, layers
from ptl_fast.pruning.plan import LayerLimits, plan_layers
from ptl_fast.run.folder import read_plan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

    from ptl_fast.config.prune import PruneSettings
    from ptl_fast.pruning.schedule import Round
    from ptl_fast.run.context import RunContext

NAMED = "--layers"
"""What stands in a plan in the place of a scorer, if the layers were named."""


def check(prune: "PruneSettings", original: "PretrainedConfig") -> None:
    """Raise ValueError if the model cannot do without the layers that should go, or without any."""
    number, gone = original.num_hidden_layers, prune.num_dropped_layers
    # others say so where too many should go, or where nothing does
    if not gone or gone >= number:
        return
    outside = [layer for layer in prune.named_layers if layer >= number]
    if outside:
        raise ValueError(
            f"--layers {prune.layers}: the model's layers are 0 to {number - 1}, and there is no"
            f" {outside[0]}"
        )
    model = _model(original)
    path = families.layers_path(model)
    # that neurons can go has been checked before, where some shall
    alone = "; its neurons can go without layers" if prune.keep < 1 else ""
    if prune.named_layers:
        if reason := _why_not_named(prune, original, path, model):
            raise ValueError(f"--layers {prune.layers}: {original.model_type}: {reason}{alone}")
        return
    staying = _staying(original, path, model)
    # where most layers are tied to their places, what may go is no choice
    if len(staying) > number // 2 or number - len(staying) < gone:
        raise ValueError(
            f"--drop-layers {gone}: layers of this model (model_type {original.model_type}) cannot"
            f" go: {next(iter(staying.values()))}{_together(original, path, model, gone)}{alone}"
        )
    if prune.keep_attention_pattern:
        _check_pattern(original, gone, prune.layers_per_round)


def engine_notes(prune: "PruneSettings", original: "PretrainedConfig") -> list[str]:
    """What inference engines would misread once the layers have gone; may, where scores choose."""
    number, gone = original.num_hidden_layers, prune.num_dropped_layers
    if not 0 < gone < number:
        return []
    if prune.named_layers:
        smaller = copy.deepcopy(original)
        kept = [layer for layer in range(number) if layer not in prune.named_layers]
        layers.follow_layers(smaller, kept)
        return engines.misread_by(smaller)
    kinds = prune.keep_attention_pattern and layers.attention_pattern(original, number - gone)
    if not kinds:
        return engines.may_misread(original)
    # positions and other lists are as the scores will have it
    follows = types.SimpleNamespace(
        model_type=original.model_type,
        layer_types=kinds,
        sliding_window=getattr(original, "sliding_window", None),
        attention_chunk_size=getattr(original, "attention_chunk_size", None),
    )
    known = frozenset({"layer_types"})
    return engines.misread_layers(follows) + engines.may_misread(original, known)


def as_named(context: "RunContext", step: "Round") -> "Tensor":
    """Scores by which the layers of --layers go next, in the order in which they were named."""
    import torch

    named = context.config.prune.named_layers
    left = list(range(context.original.num_hidden_layers))
    for number in range(1, step.number):
        gone = read_plan(context.folder.round(number)).dropped_layers
        left = [layer for index, layer in enumerate(left) if index not in gone]
    ranks = [named.index(layer) if layer in named else len(named) for layer in left]
    return torch.tensor(ranks, dtype=torch.float64)


def limits(context: "RunContext", step: "Round", scores_L: "Tensor") -> LayerLimits:
    """Which layers may go in a round, from the config of the model in memory."""
    config, path = context.model.config, context.now.family.layers
    kinds, wanted = list[str](), list[str]()
    if context.config.prune.keep_attention_pattern:
        wanted = layers.attention_pattern(config, step.num_layers) or []
        kinds = list(config.layer_types) if wanted else []
    found = LayerLimits(kinds=kinds, wanted=wanted)
    dropped = plan_layers(step, scores_L, "", found).dropped_layers
    kept = [layer for layer in range(len(scores_L)) if layer not in dropped]
    if reason := layers.why_not_without(config, path, kept):
        staying = layers.layers_that_stay(config, path)
        found = LayerLimits(kinds=kinds, wanted=wanted, staying=frozenset(staying))
        say(f"round {step.number}: layers {', '.join(map(str, staying))} stay: {reason}")
    if wanted and dropped != plan_layers(step, scores_L, "").dropped_layers:
        say(
            f"round {step.number}: other layers go than those with the lowest scores, so that the"
            " attention pattern survives (--keep-attention-pattern)."
        )
    return found


def _model(original: "PretrainedConfig") -> Any:
    """A config's model, on the meta device."""
    try:
        return layers.on_meta(original)
    except Exception as error:  # transformers raises many types for a config that it refuses
        raise ValueError(
            f"the model of this config (model_type {original.model_type}) cannot be built:"
            f" {first_line(error)}"
        ) from error


def _why_not_named(
    prune: "PruneSettings", original: "PretrainedConfig", path: str, model: Any
) -> str | None:
    """Why --layers cannot go in their rounds; None: they can."""
    number, gone, each = (
        original.num_hidden_layers,
        prune.num_dropped_layers,
        prune.layers_per_round,
    )
    # without all of them first: what stands in the way of that stands in every way
    for count in (gone, *range(each, gone, each)):
        first = prune.named_layers[:count]
        kept = [layer for layer in range(number) if layer not in first]
        if reason := layers.why_not_without(original, path, kept, model):
            if count == gone:
                return reason
            return (
                f"a round ends without {', '.join(map(str, first))} alone: {reason}; have them go"
                f" together (--layers-per-round {gone})"
            )
    return None


def _staying(original: "PretrainedConfig", path: str, model: Any) -> dict[int, str]:
    """{layer that cannot go: why}, if the first or the last one cannot; else empty.

    Without the first all others have other numbers, without the last the others have another place
    from the end: two builds of the model tell mostly what one a layer would. That several could go
    together helps no scores: they choose layers one by one.
    """
    number = original.num_hidden_layers
    for kept in (range(1, number), range(number - 1)):
        if layers.why_not_without(original, path, kept, model) is not None:
            return layers.layers_that_stay(original, path)
    return {}


def _together(original: "PretrainedConfig", path: str, model: Any, gone: int) -> str:
    """What helps where single layers cannot go, and the first or the last few can; else empty."""
    number = original.num_hidden_layers
    for first in (0, number - gone):
        group = range(first, first + gone)
        kept = [layer for layer in range(number) if layer not in group]
        if gone > 1 and layers.why_not_without(original, path, kept, model) is None:
            names = ",".join(map(str, group))
            return f"; together they can, such as --layers {names} --layers-per-round {gone}"
    return ""


def _check_pattern(original: "PretrainedConfig", gone: int, per_round: int) -> None:
    """Raise ValueError if after some round the kinds of attention cannot be as the pattern wants.

    Whatever the scores, such layers must be left: the wanted kinds are a subsequence of those that
    the original has.
    """
    left = original.num_hidden_layers
    while gone > 0:
        left, gone = left - min(per_round, gone), gone - per_round
        kinds = iter(getattr(original, "layer_types", None) or ())
        wanted = layers.attention_pattern(original, left) or []
        if not all(kind in kinds for kind in wanted):
            raise ValueError(
                f"--drop-layers: no choice of {left} layers keeps the attention pattern of"
                f" {original.model_type}; drop another number, or use --keep-attention-pattern"
                " false"
            )
