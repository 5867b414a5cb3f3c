"""model + tokens -> Statistics: how strongly each FFN neuron and each layer acts on a corpus.

Shape suffixes: L layers, I FFN width, T tokens.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from ptl_kernels import FfnStatistics, NeuronSums, fused_ffns, residual_change
from torch import Tensor, nn
from tqdm.auto import tqdm

from ptl_fast import ranks
from ptl_fast.families import Family, decoder_layers, feed_forwards, needs_one_row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.data import PackedTokens


@dataclass(kw_only=True)
class Statistics:
    """Sums over the corpus's tokens; they add up across batches and ranks."""

    num_tokens: Tensor
    """() int64: the tokens that counted."""
    square_LI: Tensor
    """(num_layers, width) fp64: sum of squared activations per neuron."""
    change_L3: Tensor
    """(num_layers, 3) fp64: sums of ||dh||, ||dh||^2 and cosine(h_in, h_out) per layer."""

    def tensors(self) -> dict[str, Tensor]:
        return {"num_tokens": self.num_tokens, "square_LI": self.square_LI, "change_L3": self.change_L3}


@dataclass(kw_only=True)
class Watch:
    """Statistics in the making: every forward pass of the watched model adds to them while ``enabled``."""

    statistics: Statistics
    neurons: FfnStatistics

    @property
    def enabled(self) -> bool:
        return self.neurons.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self.neurons.enabled = value

    def expect(self, mask: Tensor) -> None:
        """Say which tokens of the next forward pass count: bool, one entry a token."""
        self.neurons.token_mask = mask
        self.statistics.num_tokens += mask.sum()

    def tensors(self) -> dict[str, Tensor]:
        """This rank's sums, by name."""
        return self.statistics.tensors()

    def total(self) -> Statistics:
        """The sum over all ranks, on the CPU.

        Raises:
            ValueError: an activation was NaN or infinite; names the layer.
        """
        total = Statistics(**{name: tensor.cpu() for name, tensor in ranks.summed(self.tensors()).items()})
        _check_finite(total)
        return total


@contextmanager
def watch(model: "PreTrainedModel", family: Family) -> Iterator[Watch]:
    """Inside, forward passes of ``model`` add to the statistics; on the way out it is as before, also after an exception."""
    ffns, layers, device = feed_forwards(model, family), decoder_layers(model, family), model.device
    statistics = Statistics(
        num_tokens=torch.zeros((), dtype=torch.int64, device=device),
        square_LI=torch.zeros(len(ffns), ffns["0"].width, dtype=torch.float64, device=device),
        change_L3=torch.zeros(len(layers), 3, dtype=torch.float64, device=device),
    )
    neurons = FfnStatistics({name: NeuronSums(square_I) for name, square_I in zip(ffns, statistics.square_LI, strict=True)})
    watched = Watch(statistics=statistics, neurons=neurons)

    def watch_layer(index: int, module: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> None:
        if watched.enabled:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            if before.shape == after.shape:  # a model that SliceGPT sliced widens in its last layer, and drops no layers
                residual_change(before, after, statistics.change_L3[index], neurons.token_mask)

    with ExitStack() as stack:
        stack.enter_context(fused_ffns(ffns, neurons))
        for index, layer in enumerate(layers):
            handle = layer.register_forward_hook(partial(watch_layer, index), with_kwargs=True)
            stack.callback(handle.remove)
        yield watched


@torch.inference_mode()
def collect(
    model: "PreTrainedModel", family: Family, tokens: "PackedTokens", batch_size: int, description: str = "calibrate"
) -> Statistics:
    """Run the decoder over the corpus once and return its statistics, on the CPU.

    The language-model head is not computed. With several ranks each takes every world_size-th batch, and all get the total.

    Raises:
        ValueError: an activation is NaN or infinite; names the layer.
    """
    device, model_was_training = model.device, model.training
    model.eval()
    batches = range(0, len(tokens), batch_size)[ranks.rank() :: ranks.world_size()]
    with watch(model, family) as watched:
        for first in tqdm(batches, desc=description, disable=not ranks.is_main(), leave=False):
            rows = slice(first, first + batch_size)
            input_ids, position_ids = tokens.input_ids[rows].to(device), tokens.position_ids[rows].to(device)
            if needs_one_row(model):
                input_ids, position_ids = input_ids.view(1, -1), position_ids.view(1, -1)
            watched.expect(tokens.mask[rows].to(device))
            model.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False)
    model.train(model_was_training)
    return watched.total()


def _check_finite(statistics: Statistics) -> None:
    finite_L = statistics.square_LI.isfinite().all(1) & statistics.change_L3.isfinite().all(1)
    if not finite_L.all():
        layer = int((~finite_L).nonzero()[0])
        raise ValueError(
            f"layer {layer}'s activations are NaN or infinite on the calibration data; check the checkpoint's weights,"
            " or use --dtype bfloat16 or float32 if it was run in float16"
        )
