"""The columns of the neurons that stay, fitted layer by layer: --compensate-inputs pruned."""

from typing import TYPE_CHECKING

from ptl_fast.scoring import gram, in_order, ridge

if TYPE_CHECKING:
    from torch import Tensor

    from ptl_fast.data.packing import PackedTokens
    from ptl_fast.pruning.plan import PruningPlan
    from ptl_fast.run.context import RunContext


def columns(
    context: "RunContext", plan: "PruningPlan", number: int, tokens: "PackedTokens"
) -> "list[Tensor]":
    """Each layer's, (hidden_size, num_kept), for the model in memory.

    Args:
        number: the round's.
        tokens: the round's calibration tokens.
    """
    config, protected = context.config, context.inputs.protected
    assert plan.kept_neurons is not None
    other = protected.tokens if protected is not None else None
    return in_order.columns_in_order(
        context.now.model,
        context.now.family,
        gram.weighted_texts(tokens, other, config.score.protect_share),
        config.trainer.micro_batch,
        plan.kept_neurons,
        _ridges(context, number, len(plan.kept_neurons)),
    )


def _ridges(context: "RunContext", number: int, num_layers: int) -> list[float]:
    """The layers' ridges: the given one, or those that the round's scores were made with."""
    given = context.config.score.ridge
    if given != "auto":
        return [given] * num_layers
    # from disk, so that a resumed run fits as an undisturbed one does; missing where the scorer
    # reads no Gram matrices
    taken = context.folder.round(number).statistics.read()
    return taken["ridge_L"].tolist() if "ridge_L" in taken else [ridge.DEFAULT_RIDGE] * num_layers
