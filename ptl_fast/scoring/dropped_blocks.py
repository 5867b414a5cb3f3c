"""Least squares that fold a block of dropped layers into the FFN before it.

Consecutive layers are about to go, and ``before`` is the last layer that stays in front of them.
With a[t] the activations of its FFN at token t (the input of the down projection W), h[t] the
residual stream after the last dropped layer and h_before[t] the one after layer ``before``, the
block adds d[t] = h[t] - h_before[t]. A new down projection W + X that brings the residual stream
nearest to h minimises sum_t ||X a[t] - d[t]||^2 plus a ridge on X, which X = C inv(G) does, with
G = A^T A and its ridge as in ``scoring.gram``, and C = D^T A. ``pruning.compensate_layers`` adds X
to W.

The ridge is the one of ``scoring.ridge.RIDGES`` that errs least on tokens set aside; afterwards all
tokens count. Everything is measured in one pass of the model as it is, before any layer goes.

Shape suffixes: I FFN width, H hidden size, T tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ptl_fast.base import distributed
from ptl_fast.data.batching import document_batches
from ptl_fast.model.families import Family, decoder_layers, feed_forwards
from ptl_fast.scoring import gram as gram_module
from ptl_fast.scoring.ridge import (
    DEFAULT_RIDGE,
    HELD_OUT_SHARE,
    HELD_OUT_TOKENS,
    RIDGES,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.data.packing import PackedTokens

# how much of what an FFN's output changes by must arrive in the residual stream: all of it but for
# rounding, where nothing lies between (half precision rounds a large stream coarsely)
ARRIVES = (0.9, 1.1)
LARGER = (2.0, 4.0)  # how many times the output is, to see that


class BlockFit(NamedTuple):
    """What a block of layers became."""

    change_HI: Tensor
    """X, (hidden_size, width) fp64 on the model's device: what the down projection changes by. Zero
    if no ridge helps the tokens set aside.
    """
    ridge: float
    """As a fraction of the mean of G's diagonal."""
    made_up_for: float
    """1 - sum_t ||X a[t] - d[t]||^2 / sum_t ||d[t]||^2 on the tokens set aside, X fitted on the
    others; on the tokens it was fitted to if none could be set aside. To six digits, to which ranks
    agree whatever the order of their sums."""


class Sums(NamedTuple):
    """Sums over tokens for one block of layers, fp64 on the model's device."""

    gram_II: Tensor
    """G = A^T A without a ridge, (width, width)."""
    cross_HI: Tensor
    """C = D^T A, (hidden_size, width)."""
    square: Tensor
    """() sum_t ||d[t]||^2: the error if nothing takes the block's place."""

    def error(self, change_HI: Tensor) -> float:
        """sum_t ||X a[t] - d[t]||^2."""
        explained = 2 * (change_HI * self.cross_HI).sum()
        return float(self.square - explained + ((change_HI @ self.gram_II) * change_HI).sum())

    def solve(self, ridge: float) -> Tensor:
        """X = C inv(G + ridge): I^3 / 3 + 2 H I^2 floating-point operations in fp64."""
        factor = torch.linalg.cholesky(gram_module.damped(self.gram_II.clone(), ridge))
        return torch.cholesky_solve(self.cross_HI.T, factor).T


def block_fits(
    model: "PreTrainedModel",
    family: Family,
    tokens: "PackedTokens",
    batch_size: int,
    blocks: Sequence[tuple[int, int]],
    protected: "PackedTokens | None" = None,
    protect_share: float = 0.0,
    ridge: float | None = None,
) -> list[BlockFit]:
    """Fit each block on a corpus, over the tokens of all ranks.

    There is a pass over the corpus for as many blocks as fit in memory.

    Args:
        blocks: (layer before the block, the block's last layer), by the model's layer numbers.
        ridge: as a fraction of the mean of G's diagonal; None chooses it for each block.
        tokens, batch_size, protected, protect_share: as for ``scoring.gram.GramMatrices``.
    """
    if not blocks:
        return []
    width, hidden = feed_forwards(model, family)["0"].width, model.config.hidden_size
    # the tokens set aside have sums of their own
    at_once = gram_module.num_at_once(2 * 8 * width * (width + hidden), model.device)
    (own, weight), *others = gram_module.weighted_texts(tokens, protected, protect_share)
    rest, aside = set_aside(own)
    texts = [(rest, weight), *others]
    fits: list[BlockFit] = []
    for first in range(0, len(blocks), at_once):
        group, runs = blocks[first : first + at_once], partial(_sums, model, family, batch_size)
        sums = runs(group, texts)
        held_out = runs(group, [(aside, weight)]) if aside is not None else [None] * len(group)
        fits += [fit(*each, ridge) for each in zip(sums, held_out, strict=True)]
    return fits


def set_aside(tokens: "PackedTokens") -> "tuple[PackedTokens, PackedTokens | None]":
    """Divide a corpus into what least squares are fitted to and what chooses their ridge: as many
    sequences as ``scoring.ridge`` says; None if there is only one.
    """
    if len(tokens) == 1:
        return tokens, None
    aside = tokens.rows(slice(None, None, HELD_OUT_SHARE)).first(HELD_OUT_TOKENS)
    chosen = torch.zeros(len(tokens), dtype=torch.bool)
    chosen[torch.arange(len(aside)) * HELD_OUT_SHARE] = True
    return tokens.rows(~chosen), aside


def fit(sums: Sums, held_out: Sums | None, ridge: float | None) -> BlockFit:
    """Choose the ridge by the tokens set aside, unless it is given, and fit all tokens with it."""
    if held_out is None:
        own = DEFAULT_RIDGE if ridge is None else ridge
        change_HI = sums.solve(own)
        return BlockFit(change_HI, own, _share(sums.error(change_HI), sums.square))
    choices = RIDGES if ridge is None else (ridge,)
    errors = {each: held_out.error(sums.solve(each)) for each in choices}
    best = min(errors, key=errors.__getitem__)
    share = _share(errors[best], held_out.square)
    # few tokens may tell nothing of others: then the best is no change
    if ridge is None and share <= 0:
        return BlockFit(torch.zeros_like(sums.cross_HI), best, 0.0)
    together = Sums(*(one + other for one, other in zip(sums, held_out, strict=True)))
    return BlockFit(together.solve(best), best, share)


@torch.inference_mode()
def ffn_adds_to_stream(
    model: "PreTrainedModel", family: Family, layer: int, tokens: "PackedTokens"
) -> bool:
    """Whether a layer adds its down projection's output to the residual stream as it is.

    Some models do not: Gemma2 normalises the FFN's output first, so that no down projection can
    make it larger. Forward passes of a sequence tell: with the output doubled, the stream after the
    layer must change by that output, and with four times the output by three times as much (small
    outputs may change a normalised one as much by chance, but not twice).
    """
    # so few tokens tell as much as many
    input_ids = tokens.input_ids[:1, :32].to(model.device)
    down = feed_forwards(model, family)[str(layer)].down
    found: list[Tensor] = []
    for scale in (1.0, *LARGER):
        with ExitStack() as stack:
            stack.callback(
                down.register_forward_hook(partial(_scale_and_keep, scale, found)).remove
            )
            stack.callback(
                decoder_layers(model, family)[layer]
                .register_forward_hook(lambda module, args, output: found.append(stream_of(output)))
                .remove
            )
            model.base_model(input_ids=input_ids, use_cache=False)
    output, before, *others = (tensor.double() for tensor in found)
    arrived = [
        float(((after - before) * output).sum() / output.square().sum() / (scale - 1))
        for scale, after in zip(LARGER, others[1::2], strict=True)
    ]
    return all(ARRIVES[0] < each < ARRIVES[1] for each in arrived)


def _share(error: float, square: Tensor) -> float:
    """How much of the square an error leaves out, to six digits; 0 if there is nothing."""
    return float(f"{1 - error / float(square):.6g}") if square > 0 else 0.0


def _sums(
    model: "PreTrainedModel",
    family: Family,
    batch_size: int,
    blocks: Sequence[tuple[int, int]],
    texts: "list[tuple[PackedTokens, float]]",
) -> list[Sums]:
    """The sums of blocks that fit in memory together, over (tokens, weight of each token)."""
    width, hidden = feed_forwards(model, family)["0"].width, model.config.hidden_size
    options: dict[str, Any] = {"dtype": torch.float64, "device": model.device}
    shapes = ((width, width), (hidden, width), ())
    collected = [Sums(*(torch.zeros(shape, **options) for shape in shapes)) for _ in blocks]
    # dropout would add noise
    was_training = model.training
    model.eval()
    for tokens, weight in texts:
        watches = [_Watch(sums, weight) for sums in collected]
        with _watching(model, family, blocks, watches), torch.inference_mode():
            for batch in document_batches(model, tokens, batch_size, "compensate layers"):
                for watch in watches:
                    watch.mask = batch.mask.flatten()
                model.base_model(**batch.inputs, use_cache=False)
    model.train(was_training)
    # not on one rank: it copies every matrix
    if distributed.world_size() > 1:
        collected = [Sums(**distributed.summed(sums._asdict())) for sums in collected]
    for sums in collected:
        gram_module.mirror_(sums.gram_II)
    return collected


class _Watch:
    """One block's hooks: what they saw of the present batch, and the sums they add to."""

    def __init__(self, sums: Sums, weight: float) -> None:
        self.sums, self.weight = sums, weight
        self.mask = torch.ones(0, dtype=torch.bool)
        """(num_tokens,): False leaves a token out."""

    def see_activations(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Forward pre-hook of the down projection of the layer before the block."""
        self.activations_TI = self._counted(args[0])

    def see_before(self, module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        """Forward hook of the layer before the block."""
        self.before_TH = self._counted(stream_of(output))

    def see_after(self, module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        """Forward hook of the block's last layer, which comes after the other two."""
        added_TH = self._counted(stream_of(output)) - self.before_TH
        gram_module.add_products_(self.sums.gram_II, self.activations_TI, self.weight)
        self.sums.cross_HI.addmm_(added_TH.T, self.activations_TI, alpha=self.weight)
        self.sums.square.add_(added_TH.square().sum(), alpha=self.weight)

    def _counted(self, values: Tensor) -> Tensor:
        return values.flatten(0, -2)[self.mask].double()


@contextmanager
def _watching(
    model: "PreTrainedModel",
    family: Family,
    blocks: Sequence[tuple[int, int]],
    watches: Sequence[_Watch],
) -> Iterator[None]:
    """Hook each block's watch; forward passes inside add to its sums."""
    layers, ffns = decoder_layers(model, family), feed_forwards(model, family)
    with ExitStack() as stack:
        for (before, last), watch in zip(blocks, watches, strict=True):
            for handle in (
                ffns[str(before)].down.register_forward_pre_hook(watch.see_activations),
                layers[before].register_forward_hook(watch.see_before),
                layers[last].register_forward_hook(watch.see_after),
            ):
                stack.callback(handle.remove)
        yield


def stream_of(output: Tensor | tuple | list) -> Tensor:
    """The residual stream that a decoder layer returns; families differ in how."""
    return output[0] if isinstance(output, tuple | list) else output


def _scale_and_keep(
    scale: float, found: list[Tensor], module: nn.Module, args: tuple, output: Tensor
) -> Tensor:
    """Forward hook of a down projection: keep its output, and pass on a multiple of it."""
    found.append(output)
    return scale * output
