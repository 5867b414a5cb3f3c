"""Gram matrices of FFN activations, for scoring and compensating neurons by least squares.

Let A (T, I) be an FFN's activations on the corpus, W (H, I) its down projection, and S the neurons
that stay. The down projection of S that best reproduces the layer's output A W^T has the columns
W G[:, S] inv(G[S, S]), where G = A^T A is the Gram matrix: ``pruning.compensate``.

Removing neurons one after another, always the one whose removal, thus compensated, changes the
output least, is backward elimination: ``scoring.reconstruction``. Removing neuron j alone costs
||w_j||^2 / inv(G)[j, j]. This is Optimal Brain Surgeon (Hassibi and Stork 1993) with a layer's
output as the objective, as in OBC (arXiv 2208.11580) and, for whole neurons, ZipLM (arXiv
2302.04089). It removes the neurons that the others can replace, however active they are.

A down projection with a bias b can let it take part: its best b makes up for every mean. With the
columns of A less their means (weighted as the tokens are), the same formulas hold for the columns
of W, and b then grows by what the means of A W^T lost. So for such layers G is of A less its means,
and ``means`` has these.

Shape suffixes: L layers, I FFN width, K kept neurons, H hidden size, T tokens; J the neurons and,
where the down projection has a bias, one more that is always 1.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ptl_fast.base import distributed, memory
from ptl_fast.config.score import RIDGE
from ptl_fast.data.batching import document_batches
from ptl_fast.model.experts import View, router_weights, rows_of
from ptl_fast.model.families import Family, down_projections, plain_ffns
from ptl_fast.scoring.ridge import (
    DEFAULT_RIDGE,
    Choice,
    choose,
    set_aside,
)
from ptl_kernels import fused_ffns

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.data.batching import Batch
    from ptl_fast.data.packing import PackedTokens


# blocks of rows in which G is computed: as it is symmetric, 36 of its 8 x 8 blocks are enough
GRAM_BLOCKS = 8
REMEDY = (
    "--stream has one in memory at a time, and --scorer activation --compensate false needs none"
)
"""Where Gram matrices do not fit; a smaller batch does not help."""


class GramMatrices:
    """Iterable of each layer's G = A^T A + ridge on a corpus, over the tokens of all ranks.

    Without a ridge, linearly dependent neurons make G singular; too small a one learns a small
    corpus by heart. ``scoring.ridge`` can choose it.

    Each G is (width, width) fp64, on the model's device. Where a few neurons have massive
    activations on single tokens, a thousand times those of the others as in many large models,
    fp32's rounding errors of their products exceed the ridge, and G is not positive definite.

    Iterating runs one pass over the corpus for every group of layers that fits in memory beside the
    two matrices that elimination takes; the first group needs none if ``watch`` has collected it
    during another pass. If all layers fit they are kept, so that iterating again is free; they are
    outdated once the model changes. The matrices do not depend on how many fit: the FFNs run in the
    fused kernels in every pass.

    Args:
        tokens: the calibration corpus. If its tokens have weights w, G = sum_t w[t] a[t] a[t]^T.
        batch_size: packed sequences per batch.
        protected: other text on which the layers' outputs should be preserved too.
        protect_share: fraction of the total weight that ``protected`` gets, however many tokens it
            has. The weights of all tokens add up to the number of the corpus's tokens.
        ridge: as a fraction of the mean of G's diagonal; None chooses it for each layer.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        family: Family,
        tokens: "PackedTokens",
        batch_size: int,
        protected: "PackedTokens | None" = None,
        protect_share: float = 0.0,
        ridge: float | None = RIDGE,
    ) -> None:
        self.model, self.family = model, family
        self.batch_size, self.ridge = batch_size, ridge
        self.texts = weighted_texts(tokens, protected, protect_share)
        self.downs = down_projections(model, family)
        """The layers' down projections; A is one's input."""
        self.width = self.downs[0].weight_HI.shape[1]
        self.at_once = num_at_once(8 * self.width**2, model.device)
        self.mask: Tensor | None = None
        self.weights: Tensor | None = None
        self.aside: Tensor | None = None
        """Which of the next forward pass's tokens choose the ridge, of those in ``mask``."""
        self.sums: list[Tensor] = []
        """Unfinished matrices of the current group of layers, without the texts in ``unread``."""
        self.unread: list[tuple[PackedTokens, float]] = []
        self.num_rows: list[int] = []
        """How many tokens each of them has seen, on all ranks once it is finished."""
        self.held_out: list[list[Tensor]] = []
        """Batch by batch, the activations of this rank's tokens that choose the ridge, in the same
        units. They are those that went into the matrix: a pass of their own, in other batches,
        rounds otherwise, and massive activations less others need not leave a positive matrix.
        """
        self.taken: list[Tensor] = []
        """Finished matrices of the current group of layers."""
        self.choices: dict[int, Choice] = {}
        """By layer, the ridge that was chosen; empty where it was given."""
        self.means: dict[int, Tensor] = {}
        """By layer, (width,) fp64: each neuron's mean, where the down projection has a bias."""

    def expect(self, batch: "Batch") -> None:
        """Prepare for a forward pass: which tokens count, and how much."""
        self.mask, self.weights, self.aside = batch.mask, batch.weights, None
        if self.ridge is None:
            self.aside = set_aside(batch, self.texts[0][0].num_counted)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Collect the first group of layers during the caller's pass over the corpus.

        The caller calls ``expect`` before each batch. For these layers, iterating then reads only
        the protected text.
        """
        self._begin(0)
        _, weight = self.unread.pop(0)
        with self._adding(0, weight):
            yield

    def __iter__(self) -> Iterator[Tensor]:
        for first in range(0, len(self.downs), self.at_once):
            if first or not self.taken:
                self._take(first)
            yield from self.taken
            if self.at_once < len(self.downs):
                self.taken = []

    def _begin(self, first: int) -> None:
        """Start the group of layers from ``first`` on with zero matrices, and all texts unread."""
        device, group = self.model.device, self.downs[first : first + self.at_once]
        sizes = [self.width + (down.bias is not None) for down in group]
        plural = "matrix" if len(group) == 1 else "matrices"
        what = f"{len(group)} Gram {plural} of FFNs of width {self.width}, beside one being solved,"
        needed = 8 * (sum(size**2 for size in sizes) + self.width**2)
        # inference tensors could not be changed in place after the caller's inference mode ends
        with torch.inference_mode(False), memory.allocating(what, needed, device, REMEDY):
            self.sums = [
                torch.zeros(size, size, dtype=torch.float64, device=device) for size in sizes
            ]
        self.unread, self.taken, self.num_rows = list(self.texts), [], [0] * len(sizes)
        self.held_out = [[] for _ in sizes]

    def _take(self, first: int) -> None:
        """Finish the group of layers from ``first`` on: read the unread texts, add the ridge."""
        if not self.sums:
            self._begin(first)
        description = f"reconstruct layers {first}-{first + len(self.sums) - 1}"
        for tokens, weight in self.unread:
            with self._adding(first, weight, protects=tokens is not self.texts[0][0]):
                self._read(tokens, description)
        if distributed.world_size() > 1:
            # one by one, as each is copied
            for index, gram_JJ in enumerate(self.sums):
                self.sums[index] = distributed.summed({"gram": gram_JJ})["gram"]
            rows = torch.tensor(self.num_rows, device=self.model.device)
            self.num_rows = distributed.summed({"rows": rows})["rows"].tolist()
        for index, gram_JJ in enumerate(self.sums):
            mirror_(gram_JJ)
            gram_II = self.sums[index] = self._centred(first + index, gram_JJ)
            ridge = self.ridge
            if ridge is None:
                ridge = self._choose(first + index, gram_II, self.held_out[index])
            damped(gram_II, self._held_by(ridge, first, index))
            self.held_out[index] = []  # large, and not needed any more
        self.taken, self.sums = self.sums, []

    def _read(self, tokens: "PackedTokens", description: str) -> None:
        """Run these tokens through the model, for the hooks."""
        # --anticipate plans a round in the middle of a recovery, and dropout would add noise
        was_training = self.model.training
        self.model.eval()
        # as in the pass that takes the statistics: their activations are rounded alike
        with torch.inference_mode(), fused_ffns(plain_ffns(self.model, self.family)):
            for batch in document_batches(self.model, tokens, self.batch_size, description):
                self.expect(batch)
                # base_model: the language-model head is not needed
                self.model.base_model(**batch.inputs, use_cache=False)
        self.model.train(was_training)

    def _choose(self, layer: int, gram_II: Tensor, batches: list[Tensor]) -> float:
        """The ridge of a layer whose Gram matrix is complete but for it."""
        # a rank may have no batch
        held_TI = torch.cat(batches).double() if batches else gram_II[:0]
        if batches and layer in self.means:
            held_TI = held_TI[:, :-1] - held_TI[:, -1:] * self.means[layer]
        weight = self.texts[0][1]
        choice = choose(gram_II, self.downs[layer].weight_HI, held_TI * weight**0.5)
        self.choices[layer] = choice
        return choice.ridge

    def _held_by(self, ridge: float, first: int, index: int) -> float:
        """The ridge, or a larger one for an expert that sees fewer tokens than it has neurons: it
        draws the columns to those before.
        """
        is_expert = isinstance(self.downs[first + index].module, View)
        few = is_expert and self.num_rows[index] < self.width
        return max(ridge, DEFAULT_RIDGE) if few else ridge

    @contextmanager
    def _adding(self, first: int, weight: float, protects: bool = False) -> Iterator[None]:
        """Hook the layers from ``first`` on: forward passes inside add tokens with this weight;
        those of a text that is protected choose no ridge.
        """
        with ExitStack() as stack:
            groups = zip(self.sums, self.downs[first:], strict=False)
            for index, (gram_II, down) in enumerate(groups):
                add = partial(self._add, index, gram_II, weight, protects)
                stack.callback(down.module.register_forward_pre_hook(add).remove)
            yield

    # a pass that computes gradients would otherwise record this in its graph
    @torch.no_grad()
    def _add(
        self,
        index: int,
        gram_JJ: Tensor,
        weight: float,
        protects: bool,
        module: nn.Module,
        args: tuple,
    ) -> None:
        """Forward pre-hook of a down projection: its input is the FFN's activations."""
        rows_TJ = self._counted(module, args[0])
        self.num_rows[index] += len(rows_TJ)
        if self.aside is not None and self.mask is not None and not protects:
            counted_T, aside_T = rows_of(module, self.mask), rows_of(module, self.aside)
            self.held_out[index].append(rows_TJ[aside_T[counted_T]])
        add_products_(gram_JJ, rows_TJ.double(), weight)

    def _centred(self, layer: int, gram_JJ: Tensor) -> Tensor:
        """G of the activations less their means, which are kept; G as it is without a bias."""
        if self.downs[layer].bias is None:
            return gram_JJ
        # the last neuron is 1 everywhere: with it the sums of the others, and of the weights
        sum_I, total = gram_JJ[:-1, -1], gram_JJ[-1, -1].clamp_min(torch.finfo(torch.float64).tiny)
        self.means[layer] = sum_I / total
        return gram_JJ[:-1, :-1] - torch.outer(sum_I, self.means[layer])

    def _counted(self, down: nn.Module, activations: Tensor) -> Tensor:
        """The activations of the tokens that count, (tokens, J). If they have weights, each times
        the root of its own: a product of two of one token then has the token's weight.
        """
        assert self.mask is not None
        counted_T = rows_of(down, self.mask)
        rows_TI = activations.flatten(0, -2)
        if down.bias is not None:
            rows_TI = torch.cat([rows_TI, router_weights(down, rows_TI)], 1)
        rows_TI = rows_TI[counted_T]
        if self.weights is None:
            return rows_TI
        # in fp32 or fp64, as half precision would round once more
        wide = torch.promote_types(rows_TI.dtype, torch.float32)
        return rows_TI.to(wide) * rows_of(down, self.weights)[counted_T].to(wide).sqrt()[:, None]


def num_at_once(num_bytes: int, device: torch.device) -> int:
    """How many matrices of this size are collected in a pass over the corpus: those that fit beside
    the inverse of one of them and what it is updated with; at least one.
    """
    fits = torch.tensor(max(1, memory.budget(device) // num_bytes - 2), device=device)
    # all ranks take part in a pass, so the one with the least memory decides
    return -int(distributed.largest(-fits))


def weighted_texts(
    tokens: "PackedTokens", protected: "PackedTokens | None", protect_share: float
) -> "list[tuple[PackedTokens, float]]":
    """The texts of a least-squares problem as (tokens, weight of each token), ``tokens`` first.

    Arguments are those of ``GramMatrices``.
    """
    if protected is None or not protect_share:
        return [(tokens, 1.0)]
    others = protect_share * tokens.num_counted / protected.num_counted
    return [(tokens, 1 - protect_share), (protected, others)]


def add_products_(gram_II: Tensor, activations_TI: Tensor, weight: float) -> None:
    """Add weight * A^T A, its blocks on and below the diagonal only; both are fp64."""
    for start, end in _blocks(len(gram_II)):
        gram_II[start:end, :end].addmm_(
            activations_TI[:, start:end].T, activations_TI[:, :end], alpha=weight
        )


def mirror_(gram_II: Tensor) -> None:
    """Fill the blocks that ``add_products_`` left out."""
    for start, end in _blocks(len(gram_II)):
        gram_II[:start, start:end] = gram_II[start:end, :start].T


def damped(gram_II: Tensor, ridge: float) -> Tensor:
    """G with the ridge on its diagonal, in place: positive definite even if G is zero."""
    mean = gram_II.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    gram_II.diagonal().add_(ridge * mean)
    return gram_II


def _blocks(width: int) -> list[tuple[int, int]]:
    """(start, end) of each of the GRAM_BLOCKS blocks of rows; the last may be smaller."""
    size = -(-width // GRAM_BLOCKS)
    return [(start, min(start + size, width)) for start in range(0, width, size)]
