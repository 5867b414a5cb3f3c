"""Sums over the tokens that a router sends to each expert.

What enters an expert's down projection has the router's weight g[t] already (``model.experts``):
its neurons' sums are of g[t] a[t], and the norm of its output is g[t] ||f(x[t])||.

Shape suffixes: U FFNs, I FFN width, S the tokens routed to one expert.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ptl_fast.model.experts import rows_of
from ptl_kernels import Ffn, FfnStatistics, reference


class ExpertSums:
    """Adds the tokens of every forward pass to each FFN's sums.

    Args:
        neurons: says which tokens count, and has the neurons' sums by FFN.
        takes_sums: whether to add to these; False where tokens have weights.
        tokens_U: number of tokens, int64; changed in place.
        output_U: sum of the output's norms, fp64; changed in place.
    """

    def __init__(
        self, neurons: FfnStatistics, takes_sums: bool, tokens_U: Tensor, output_U: Tensor
    ) -> None:
        self.neurons, self.takes_sums = neurons, takes_sums
        self.tokens_U, self.output_U = tokens_U, output_U

    @contextmanager
    def watch(self, ffns: Mapping[str, Ffn], places: Mapping[str, int]) -> Iterator[None]:
        """Add the tokens of forward passes inside.

        Args:
            ffns: experts by name.
            places: each one's place in the sums.
        """
        with ExitStack() as stack:
            for name, ffn in ffns.items():
                hook = ffn.down.register_forward_hook(partial(self._add, name, places[name]))
                stack.callback(hook.remove)
            yield

    @torch.no_grad()
    def _add(
        self, name: str, place: int, module: nn.Module, args: tuple[Tensor, ...], output_SH: Tensor
    ) -> None:
        # gradient checkpointing repeats a forward pass that is already counted
        if not self.neurons.enabled or torch._C._current_graph_task_id() != -1:
            return
        rows_SI, output_SH = args[0].detach().flatten(0, -2), output_SH.flatten(0, -2)
        mask = self.neurons.token_mask
        counted_S = None if mask is None else rows_of(module, mask)
        if self.takes_sums:
            totals = self.neurons.sums[name].tensors()
            reference.add_neuron_sums_(totals, rows_SI, counted_S)
        norm_S = torch.linalg.vector_norm(output_SH.double(), dim=-1)
        if counted_S is not None:
            norm_S = norm_S[counted_S]
        self.tokens_U[place] += len(norm_S)
        self.output_U[place] += norm_S.sum()
