"""Each neuron's mean magnitude in every document, squared and summed: what Minitron's score reads.

Shape suffixes: D documents of a batch, T tokens of a batch without padding, I FFN width.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ptl_fast.model.experts import rows_of
from ptl_kernels import Ffn


class DocumentMeans:
    """Adds (mean over a document's tokens of |a|)^2 to each neuron's total, document by document.

    Args:
        total_LI: (num_layers, width) fp64, changed in place.
        num_documents: () int64, changed in place.
    """

    def __init__(self, total_LI: Tensor, num_documents: Tensor) -> None:
        self.total_LI, self.num_documents = total_LI, num_documents
        self.mask: Tensor | None = None
        self.shares_DT: Tensor | None = None

    def expect(self, mask: Tensor, position_ids: Tensor) -> None:
        """Set the documents of the next forward pass; a document must not span two passes.

        Args:
            mask: one bool per token: False leaves a token out.
            position_ids: as many int64: a document begins where one is 0.
        """
        self.mask = mask.flatten()
        starts_T = position_ids.flatten()[self.mask] == 0
        members_DT = nn.functional.one_hot(starts_T.cumsum(0) - 1).T.double()
        # a product with these is a mean over each document, without atomic additions
        self.shares_DT = members_DT / members_DT.sum(1, keepdim=True)
        self.num_documents += len(members_DT)

    @contextmanager
    def watch(self, ffns: Iterable[Ffn]) -> Iterator[None]:
        """Inside this context forward passes add to the totals; call ``expect`` before each."""
        with ExitStack() as stack:
            for total_I, ffn in zip(self.total_LI, ffns, strict=True):
                hook = partial(self._add, total_I)
                stack.callback(ffn.down.register_forward_pre_hook(hook).remove)
            yield

    @torch.no_grad()
    def _add(self, total_I: Tensor, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Forward pre-hook of a down projection: its input is the FFN's activations."""
        assert self.mask is not None
        assert self.shares_DT is not None
        rows_SI = args[0].detach().flatten(0, -2).abs().double()
        # each row's place among the tokens without padding; of an expert, others are zero
        place_S = rows_of(module, self.mask.cumsum(0) - 1)
        counted_S = rows_of(module, self.mask)
        shares_DS = self.shares_DT[:, place_S[counted_S]]
        total_I += (shares_DS @ rows_SI[counted_S]).square().sum(0)
