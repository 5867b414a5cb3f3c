"""Which neurons the others can replace, and how the others take their place: least squares on a
layer's output.

Let A (T, I) be an FFN's activations on the corpus, W (H, I) its down projection, and S the neurons
that stay. The columns of S that come nearest to the layer's output A W^T are W G[:, S] inv(G[S, S])
with the Gram matrix G = A^T A. Removing neurons one after another, always the one whose removal
then changes the output least, is backward elimination; one neuron's price is ||w_j||^2 / inv(G)[j,
j] (Optimal Brain Surgeon, Hassibi and Stork 1993, with a layer's output as the objective; as in
OBC, arXiv 2208.11580, and for whole neurons ZipLM, arXiv 2302.04089). What goes is what the rest
can say as well, not what is quiet.

Shape suffixes: L layers, I FFN width, K kept neurons, H hidden size, T tokens.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ptl_fast.base import distributed
from ptl_fast.data.batching import document_batches
from ptl_fast.model.families import Family, feed_forwards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.data.packing import PackedTokens


RIDGE = 1e-4  # of the mean diagonal of G: neurons that say the same make it singular
GRAM_BLOCKS = 8  # of rows: 36 of their 64 blocks of columns are computed
# Gram matrices in memory at once; more layers take more passes over the corpus
GRAM_BYTES = 8 * 2**30


class GramMatrices:
    """Each layer's A^T A on a corpus with the ridge on its diagonal, (width, width) fp64 on the
    model's device: all ranks' tokens.

    It is symmetric (to rounding, in the blocks on the diagonal), so products are taken of its
    blocks on and below the diagonal, and mirrored at the end.

    In float64: where a few neurons are a thousand times louder than the rest on one token, as in
    many large models, float32's rounding of what they say together is larger than the ridge, and
    the matrix no longer positive definite.

    Iterating takes a pass over the corpus for as many layers as fit in GRAM_BYTES, or none for
    those that a ``watch`` has taken during another pass. If all fit they are kept, and good until
    the model changes.

    Args:
        tokens: the corpus.
        protected: other text on which the layers' outputs shall not change either. However many its
            tokens are, they have the share ``protect_share`` of the weight; all weights add up to
            the number of the corpus's tokens.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        family: Family,
        tokens: "PackedTokens",
        batch_size: int,
        protected: "PackedTokens | None" = None,
        protect_share: float = 0.0,
    ) -> None:
        self.model, self.batch_size = model, batch_size
        self.texts = [(tokens, 1.0)]
        if protected is not None and protect_share > 0:
            others = protect_share * tokens.num_tokens / protected.num_tokens
            self.texts = [(tokens, 1 - protect_share), (protected, others)]
        self.ffns = list(feed_forwards(model, family).values())
        self.at_once = max(1, GRAM_BYTES // (8 * self.ffns[0].width ** 2))
        self.mask: Tensor | None = None
        self.sums: list[Tensor] = []
        """Of the layers that are being taken, on the texts that are not in ``unread``."""
        self.unread: list[tuple[PackedTokens, float]] = []
        self.taken: list[Tensor] = []
        """The finished ones."""

    def expect(self, mask: Tensor) -> None:
        """Say which tokens of the next forward pass count: bool, one entry a token."""
        self.mask = mask

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Inside, forward passes on the corpus add to the matrices of the first layers that fit."""
        self._begin(0)
        _, weight = self.unread.pop(0)
        with self._adding(0, weight):
            yield

    def __iter__(self) -> Iterator[Tensor]:
        for first in range(0, len(self.ffns), self.at_once):
            if first or not self.taken:
                self._take(first)
            yield from self.taken
            if self.at_once < len(self.ffns):
                self.taken = []

    def _begin(self, first: int) -> None:
        width, device = self.ffns[first].width, self.model.device
        group = self.ffns[first : first + self.at_once]
        with torch.inference_mode(
            False
        ):  # they are finished outside of the pass in which they begin
            self.sums = [
                torch.zeros(width, width, dtype=torch.float64, device=device) for _ in group
            ]
        self.unread, self.taken = list(self.texts), []

    def _take(self, first: int) -> None:
        """Finish the layers from ``first`` on, by a pass over every text that they have not had."""
        if not self.sums:
            self._begin(first)
        description = f"reconstruct layers {first}-{first + len(self.sums) - 1}"
        was_training = (
            self.model.training
        )  # --anticipate plans in the middle of a recovery, and dropout would add noise
        self.model.eval()
        for tokens, weight in self.unread:
            with self._adding(first, weight), torch.inference_mode():
                for batch, _, mask in document_batches(
                    self.model, tokens, self.batch_size, description
                ):
                    self.expect(mask)
                    self.model.base_model(**batch, use_cache=False)
        self.model.train(was_training)
        if distributed.world_size() > 1:
            self.sums = list(
                distributed.summed(
                    {str(index): gram_II for index, gram_II in enumerate(self.sums)}
                ).values()
            )
        for gram_II in self.sums:
            for start, end in _blocks(len(gram_II)):
                gram_II[:start, start:end] = gram_II[start:end, :start].T
            gram_II.diagonal().add_(
                RIDGE * gram_II.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
            )
        self.taken, self.sums = self.sums, []

    @contextmanager
    def _adding(self, first: int, weight: float) -> Iterator[None]:
        """Inside, forward passes add to the matrices of the layers from ``first`` on, each token
        with this weight.
        """
        with ExitStack() as stack:
            for gram_II, ffn in zip(self.sums, self.ffns[first:], strict=False):
                stack.callback(
                    ffn.down.register_forward_pre_hook(partial(self._add, gram_II, weight)).remove
                )
            yield

    @torch.no_grad()  # the pass may be one with gradients, which would keep every batch's activations
    def _add(self, gram_II: Tensor, weight: float, module: nn.Module, args: tuple) -> None:
        assert self.mask is not None
        activations_TI = args[0].flatten(0, -2)[self.mask.flatten()].double()
        for start, end in _blocks(len(gram_II)):
            gram_II[start:end, :end].addmm_(
                activations_TI[:, start:end].T, activations_TI[:, :end], alpha=weight
            )


def _blocks(width: int) -> list[tuple[int, int]]:
    """(start, end) of each block of rows."""
    size = -(-width // GRAM_BLOCKS)
    return [(start, min(start + size, width)) for start in range(0, width, size)]
