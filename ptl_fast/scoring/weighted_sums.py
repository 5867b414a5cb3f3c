"""Neurons' sums over tokens that have weights.

The fused kernels add tokens up alike, so these sums come from the input of the down projection: an
extra pass over the activations, in plain PyTorch.

Shape suffixes: I FFN width, T tokens.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ptl_fast.model.experts import rows_of
from ptl_kernels import Ffn, NeuronSums

if TYPE_CHECKING:
    from ptl_fast.data.batching import Batch


class WeightedSums:
    """Adds w[t] a[t]^2, w[t] a[t] and w[t] |a[t]| of every forward pass's tokens to FFNs' sums.

    The maximum of |a| is over all tokens, whatever their weights.

    Args:
        sums: each FFN's, by name; on the FFN's device.
    """

    def __init__(self, sums: Mapping[str, NeuronSums]) -> None:
        self.sums = sums

    def expect(self, batch: "Batch") -> None:
        """Prepare for a forward pass: its tokens count their weights, and nothing where the mask is
        False.
        """
        assert batch.weights is not None, "without weights the kernels take the sums"
        self.mask, self.weights = batch.mask, batch.weights

    @contextmanager
    def watch(self, ffns: Mapping[str, Ffn]) -> Iterator[None]:
        """Add the tokens of forward passes inside; the caller calls ``expect`` before each."""
        with ExitStack() as stack:
            for name, ffn in ffns.items():
                add = partial(self._add, self.sums[name])
                stack.callback(ffn.down.register_forward_pre_hook(add).remove)
            yield

    @torch.no_grad()
    def _add(self, sums: NeuronSums, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        counted_T = rows_of(module, self.mask)
        value_TI = args[0].flatten(0, -2)[counted_T]
        if value_TI.dtype != torch.float64:
            value_TI = value_TI.float()  # half precision is too coarse for sums
        weights_T = rows_of(module, self.weights)[counted_T].to(value_TI)
        sums.square += weights_T @ value_TI.square()
        if sums.sum is None or sums.absolute is None or sums.maximum is None:
            return
        magnitude_TI = value_TI.abs()
        sums.sum += weights_T @ value_TI
        sums.absolute += weights_T @ magnitude_TI
        if len(magnitude_TI):
            torch.maximum(sums.maximum, magnitude_TI.amax(0).double(), out=sums.maximum)
