"""model + tokens -> Statistics: how strongly each FFN neuron and each layer acts on a corpus.

Shape suffixes: L layers, I FFN width, T tokens.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ptl_fast.base import distributed
from ptl_fast.data.batching import document_batches
from ptl_fast.model.families import Family, decoder_layers, feed_forwards
from ptl_kernels import FfnStatistics, NeuronSums, fused_ffns, residual_change

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.data.packing import PackedTokens
    from ptl_fast.scoring.gram import GramMatrices

Extra = Literal["sums", "angles", "gradients"]
NOTHING: frozenset[Extra] = frozenset()


@dataclass(kw_only=True)
class Statistics:
    """Sums over the corpus's tokens; they add up across batches and ranks. What was not asked for
    is None.
    """

    num_tokens: Tensor
    """() int64: the tokens that counted."""
    square_LI: Tensor
    """(num_layers, width) fp64: sum of squared activations per neuron."""
    change_L3: Tensor
    """(num_layers, 3) fp64: sums of ||dh||, ||dh||^2 and cosine(h_in, h_out) per layer."""
    sum_LI: Tensor | None = None
    """(num_layers, width) fp64: sum of activations per neuron; with "sums", as the next two."""
    absolute_LI: Tensor | None = None
    """(num_layers, width) fp64: sum of the activation's magnitude."""
    maximum_LI: Tensor | None = None
    """(num_layers, width) fp64: largest magnitude. Not a sum: ranks take the largest."""
    angle_L: Tensor | None = None
    """(num_layers,) fp64: sum of the angular distance between a layer's input and output; with
    "angles".
    """
    gradient_LI: Tensor | None = None
    """(num_layers, width) fp64: sum of |a * dL/da|, L the sum of the predicted tokens' losses; with
    "gradients".
    """
    num_predicted: Tensor | None = None
    """() int64: the tokens whose loss is in L: all that counted but each document's first; with
    "gradients".
    """

    def tensors(self) -> dict[str, Tensor]:
        """What was taken, by name."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}


@dataclass(kw_only=True)
class StatisticsCollector:
    """Statistics in the making: every forward pass of the watched model adds to them while
    ``enabled``.
    """

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

    def over_ranks(self) -> dict[str, Tensor]:
        """All ranks' tensors as one: sums add up, a maximum is the largest."""
        mine = self.tensors()
        totals = distributed.summed(mine)
        if "maximum_LI" in mine:
            totals["maximum_LI"] = distributed.largest(mine["maximum_LI"])
        return totals

    def total(self) -> Statistics:
        """The statistics of all ranks, on the CPU.

        Raises:
            ValueError: an activation was NaN or infinite; names the layer.
        """
        total = Statistics(**{name: tensor.cpu() for name, tensor in self.over_ranks().items()})
        _check_finite(total)
        return total


@contextmanager
def collecting(
    model: "PreTrainedModel", family: Family, extra: frozenset[Extra] = NOTHING
) -> Iterator[StatisticsCollector]:
    """Inside, forward passes of ``model`` add to the statistics; on the way out it is as before,
    also after an exception.

    Args:
        extra: what to take besides squares and changes. "sums" costs no pass over the activations;
            "angles" a few more of each layer's input and output, in plain PyTorch; "gradients" a
            backward pass, which the caller runs.
    """
    ffns, layers = feed_forwards(model, family), decoder_layers(model, family)
    statistics = _zeros(model, len(layers), ffns["0"].width, extra)
    per_neuron = (
        statistics.square_LI,
        statistics.sum_LI,
        statistics.absolute_LI,
        statistics.maximum_LI,
    )
    taken = [tensor_LI for tensor_LI in per_neuron if tensor_LI is not None]
    neurons = FfnStatistics(
        {name: NeuronSums(*each_I) for name, *each_I in zip(ffns, *taken, strict=True)}
    )
    watched = StatisticsCollector(statistics=statistics, neurons=neurons)

    def watch_layer(
        index: int, module: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple
    ) -> None:
        if watched.enabled:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            if (
                before.shape != after.shape
            ):  # a model that SliceGPT sliced widens in its last layer, and drops no layers
                return
            residual_change(before, after, statistics.change_L3[index], neurons.token_mask)
            if statistics.angle_L is not None:
                _add_angles(before, after, statistics.angle_L[index], neurons.token_mask)

    with ExitStack() as stack:
        stack.enter_context(fused_ffns(ffns, neurons))
        if statistics.gradient_LI is not None:
            stack.enter_context(_watch_gradients(model, family, statistics.gradient_LI))
        for index, layer in enumerate(layers):
            handle = layer.register_forward_hook(partial(watch_layer, index), with_kwargs=True)
            stack.callback(handle.remove)
        yield watched


def collect(
    model: "PreTrainedModel",
    family: Family,
    tokens: "PackedTokens",
    batch_size: int,
    description: str = "calibrate",
    extra: frozenset[Extra] = NOTHING,
    grams: "GramMatrices | None" = None,
) -> Statistics:
    """Run the decoder over the corpus once and return its statistics, on the CPU.

    The language-model head is computed for "gradients" only, which also need a backward pass and
    hold one batch's activations. With several ranks each takes every world_size-th batch, and all
    get the total. The first of ``grams`` come with the same pass.

    Raises:
        ValueError: an activation is NaN or infinite; names the layer.
    """
    model_was_training, gradients = model.training, "gradients" in extra
    model.eval()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(not gradients))
        stack.enter_context(torch.set_grad_enabled(gradients))
        watched = stack.enter_context(collecting(model, family, extra))
        watches: list[StatisticsCollector | GramMatrices] = [watched]
        if grams is not None:
            stack.enter_context(grams.watch())
            watches.append(grams)
        for batch, labels, mask in document_batches(model, tokens, batch_size, description):
            for each in watches:
                each.expect(mask)
            if gradients:
                _backward(model, batch, labels, watched.statistics)
            else:
                model.base_model(**batch, use_cache=False)
    model.train(model_was_training)
    return watched.total()


@torch.no_grad()
def angular_distance(before: Tensor, after: Tensor) -> Tensor:
    """Return arccos(cosine(before, after)) / pi of each token, in [0, 1]: arXiv 2403.17887.

    Computed as 2 atan2(||u - v||, ||u + v||) of the unit vectors: near a cosine of one, arccos
    would lose half of the digits.

    Args:
        before: a layer's input, (..., hidden_size); anything but fp64 is computed in fp32.
        after: the layer's output, same shape.
    """
    unit_before, unit_after = (
        nn.functional.normalize(_wide(tensor), dim=-1) for tensor in (before, after)
    )
    apart, together = (
        (unit_before - unit_after).norm(dim=-1),
        (unit_before + unit_after).norm(dim=-1),
    )
    return 2 / torch.pi * torch.atan2(apart, together)


def _zeros(
    model: "PreTrainedModel", num_layers: int, width: int, extra: frozenset[Extra]
) -> Statistics:
    """Statistics of no tokens."""
    options: dict[str, Any] = {"dtype": torch.float64, "device": model.device}
    statistics = Statistics(
        num_tokens=torch.zeros((), dtype=torch.int64, device=model.device),
        square_LI=torch.zeros(num_layers, width, **options),
        change_L3=torch.zeros(num_layers, 3, **options),
    )
    if "sums" in extra:
        statistics.sum_LI, statistics.absolute_LI, statistics.maximum_LI = torch.zeros(
            3, num_layers, width, **options
        )
    if "angles" in extra:
        statistics.angle_L = torch.zeros(num_layers, **options)
    if "gradients" in extra:
        statistics.gradient_LI = torch.zeros(num_layers, width, **options)
        statistics.num_predicted = torch.zeros((), dtype=torch.int64, device=model.device)
    return statistics


def _add_angles(before: Tensor, after: Tensor, total: Tensor, token_mask: Tensor | None) -> None:
    """Add the angular distances of the tokens that count to ``total``, () fp64, in place."""
    if (
        torch._C._current_graph_task_id() != -1
    ):  # inside a backward pass: gradient checkpointing repeats this forward pass
        return
    angle_T = angular_distance(before, after).flatten()
    if token_mask is not None:
        angle_T = angle_T.masked_fill(~token_mask.flatten(), 0.0)
    total += angle_T.double().sum()


@contextmanager
def _watch_gradients(
    model: "PreTrainedModel", family: Family, gradient_LI: Tensor
) -> Iterator[None]:
    """Inside, a backward pass adds |a * dL/da| of every neuron and token; no parameter takes part,
    or gets a gradient.

    Tokens without a loss that nothing attends to (padding) have no gradient, so they add nothing.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def add(total_I: Tensor, activation: Tensor, gradient: Tensor) -> None:
        total_I += (_wide(activation) * _wide(gradient)).abs_().flatten(0, -2).sum(0)

    def watch_neurons(
        total_I: Tensor, module: nn.Module, args: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        # nothing before the first layer's activation needs a gradient, so it is where the graph
        # begins
        activation = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
        activation.register_hook(partial(add, total_I, activation.detach()))
        return (activation, *args[1:])

    with ExitStack() as stack:
        for parameter in trainable:
            parameter.requires_grad_(False)
            stack.callback(parameter.requires_grad_, True)
        for total_I, ffn in zip(gradient_LI, feed_forwards(model, family).values(), strict=True):
            stack.callback(
                ffn.down.register_forward_pre_hook(partial(watch_neurons, total_I)).remove
            )
        yield


def _backward(
    model: "PreTrainedModel", batch: dict[str, Tensor], labels: Tensor, statistics: Statistics
) -> None:
    """Forward and backward of the summed loss: a batch's share of the corpus's gradient does not
    depend on how it is cut.
    """
    logits = model(**batch, use_cache=False).logits
    loss = nn.functional.cross_entropy(
        _wide(logits[:, :-1].flatten(0, 1)), labels[:, 1:].flatten(), reduction="sum"
    )
    loss.backward()
    assert statistics.num_predicted is not None
    statistics.num_predicted += (labels[:, 1:] >= 0).sum()


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check_finite(statistics: Statistics) -> None:
    finite_L = statistics.square_LI.isfinite().all(1) & statistics.change_L3.isfinite().all(1)
    if not finite_L.all():
        layer = int((~finite_L).nonzero()[0])
        raise ValueError(
            f"layer {layer}'s activations are NaN or infinite on the calibration data; check the"
            " checkpoint's weights,"
            " or use --dtype bfloat16 or float32 if it was run in float16"
        )
    if statistics.gradient_LI is not None and not statistics.gradient_LI.isfinite().all():
        raise ValueError(
            "the loss's gradient is NaN or infinite on the calibration data although the"
            " activations are not; use --dtype bfloat16"
            " or float32 if it was run in float16, or another --scorer"
        )
