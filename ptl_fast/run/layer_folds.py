"""What takes the place of the layers that a round drops: the run's side of --compensate-layers."""

from typing import TYPE_CHECKING

from ptl_fast.base import distributed
from ptl_fast.pruning.compensate_layers import Fold, blocks_of, ends
from ptl_fast.scoring import dropped_blocks

if TYPE_CHECKING:
    from ptl_fast.data.packing import PackedTokens
    from ptl_fast.run.context import RunContext


def folds(context: "RunContext", dropped_layers: list[int], tokens: "PackedTokens") -> list[Fold]:
    """One for each block of consecutive layers that go; empty without --compensate-layers.

    Args:
        tokens: the round's calibration tokens, on which the blocks' effect is measured.
    """
    if not context.config.prune.compensate_layers:
        return []
    blocks = blocks_of(dropped_layers)
    reasons = {block[0]: _why_not_folded(context, block, tokens) for block in blocks}
    able = [block for block in blocks if reasons[block[0]] is None]
    protected, score = context.inputs.protected, context.config.score
    fits = dropped_blocks.block_fits(
        context.now.model,
        context.now.family,
        tokens,
        context.config.trainer.micro_batch,
        [ends(block) for block in able],
        protected.tokens if protected is not None else None,
        score.protect_share,
        None if score.ridge == "auto" else score.ridge,
    )
    found = {block[0]: fit for block, fit in zip(able, fits, strict=True)}
    return [
        Fold(layers=block, **found[block[0]]._asdict())
        if block[0] in found
        else Fold(layers=block, reason=reasons[block[0]])
        for block in blocks
    ]


def _why_not_folded(context: "RunContext", block: list[int], tokens: "PackedTokens") -> str | None:
    """Why a block of dropped layers cannot be folded into the FFN before it; None: it can."""
    before, _ = ends(block)
    if before < 0:
        return "no layer stays before it"
    now = context.now
    if now.family.mixture is not None:
        return "the FFN before them is a mixture of experts"
    if now.family.ffn is None:
        return f"of the FFN before them: {now.family.no_ffn}"
    adds = dropped_blocks.ffn_adds_to_stream(now.model, now.family, before, tokens)
    if not distributed.agree(adds):
        return "the model does not add the FFN's output to the residual stream as it is"
    return None
