"""model + tokens -> Statistics: how strongly each FFN neuron and each layer acts on a corpus.

Shape suffixes: L layers, I FFN width, T tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from ptl_kernels.reference import neuron_square_sums, residual_change
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
    num_layers, width = len(decoder_layers(model, family)), next(feed_forwards(model, family)).width
    statistics = Statistics(
        num_tokens=torch.zeros((), dtype=torch.int64, device=device),
        square_LI=torch.zeros(num_layers, width, dtype=torch.float64, device=device),
        change_L3=torch.zeros(num_layers, 3, dtype=torch.float64, device=device),
    )
    batches = range(0, len(tokens), batch_size)[ranks.rank() :: ranks.world_size()]
    for first in tqdm(batches, desc=description, disable=not ranks.is_main(), leave=False):
        rows = slice(first, first + batch_size)
        input_ids, position_ids = tokens.input_ids[rows].to(device), tokens.position_ids[rows].to(device)
        mask = tokens.mask[rows].to(device)
        if needs_one_row(model):
            input_ids, position_ids = input_ids.view(1, -1), position_ids.view(1, -1)
        with _watch(model, family, statistics, mask.flatten()):
            model.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False)
        statistics.num_tokens += mask.sum()
    model.train(model_was_training)
    if ranks.world_size() > 1:
        for tensor in statistics.tensors().values():
            torch.distributed.all_reduce(tensor)
    _check_finite(statistics)
    return Statistics(**{name: tensor.cpu() for name, tensor in statistics.tensors().items()})


@contextmanager
def _watch(model: "PreTrainedModel", family: Family, statistics: Statistics, mask_T: Tensor) -> Iterator[None]:
    """Hooks that add one batch to the statistics; removed on the way out, also after an exception."""

    def watch_neurons(index: int, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        # A pre-hook's return value replaces the input: this one must return nothing.
        statistics.square_LI[index] += neuron_square_sums(args[0].flatten(0, -2), mask_T)

    def watch_layer(index: int, module: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        statistics.change_L3[index] += residual_change(before.flatten(0, -2), after.flatten(0, -2), mask_T)

    handles = []
    try:
        for index, feed_forward in enumerate(feed_forwards(model, family)):
            handles.append(feed_forward.down.register_forward_pre_hook(partial(watch_neurons, index)))
        for index, layer in enumerate(decoder_layers(model, family)):
            handles.append(layer.register_forward_hook(partial(watch_layer, index), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_finite(statistics: Statistics) -> None:
    finite_L = statistics.square_LI.isfinite().all(1) & statistics.change_L3.isfinite().all(1)
    if not finite_L.all():
        layer = int((~finite_L).nonzero()[0])
        raise ValueError(
            f"layer {layer}'s activations are NaN or infinite on the calibration data; check the checkpoint's weights,"
            " or use --dtype bfloat16 or float32 if it was run in float16"
        )
