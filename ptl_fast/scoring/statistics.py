"""Collect activation statistics of FFN neurons and decoder layers over a calibration corpus.

Forward hooks add to running sums, so memory does not grow with the corpus. A neuron's activation is
its entry in the input of the down projection, act(gate) * up.

Shape suffixes: L layers, I FFN width, T tokens.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ptl_fast.base import distributed
from ptl_fast.config.score import RIDGE
from ptl_fast.data.batching import document_batches
from ptl_fast.model.experts import is_routed
from ptl_fast.model.families import Family, decoder_layers, feed_forwards
from ptl_fast.scoring.angles import add_angles
from ptl_fast.scoring.document_means import DocumentMeans
from ptl_fast.scoring.expert_sums import ExpertSums
from ptl_fast.scoring.gradients import WeightGradients, watch_activations, wide
from ptl_fast.scoring.gram import GramMatrices
from ptl_fast.scoring.weighted_sums import WeightedSums
from ptl_kernels import Ffn, FfnStatistics, NeuronSums, fused_ffns, residual_change

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.data.packing import PackedTokens

# what is collected only if a scorer asks for it: see ``Statistics``
Extra = Literal["sums", "angles", "documents", "gradients", "weight_gradients"]
NOTHING: frozenset[Extra] = frozenset()
# what needs the language-model head and a backward pass
BACKWARD: frozenset[Extra] = frozenset({"gradients", "weight_gradients"})


@dataclass(kw_only=True)
class Statistics:
    """Sums over a corpus's tokens, which add up across batches and ranks.

    Where tokens have weights, square_LI, sum_LI and absolute_LI have them too, and no other field.
    The optional ones are None unless the extra that they belong to was asked for.
    """

    num_tokens: Tensor
    """() int64: number of tokens in the sums, without padding."""
    square_LI: Tensor
    """(num_layers, width) fp64: sum of squared activations per neuron."""
    change_L3: Tensor
    """(num_layers, 3) fp64: sums of ||h_out - h_in||, of its square, and of cosine(h_in, h_out), h
    the residual stream before and after each layer.
    """
    tokens_U: Tensor | None = None
    """(num_ffns,) int64: number of tokens routed to each expert; None without experts. With experts
    every L above but that of the residual stream is U: the experts of all layers, and what is
    pruned beside them, in the order of ``model.families.feed_forwards``.
    """
    output_U: Tensor | None = None
    """(num_ffns,) fp64: sum of the norms of each expert's output times the router's weight."""
    sum_LI: Tensor | None = None
    """(num_layers, width) fp64: sum of activations per neuron; "sums"."""
    absolute_LI: Tensor | None = None
    """(num_layers, width) fp64: sum of absolute activations per neuron; "sums"."""
    maximum_LI: Tensor | None = None
    """(num_layers, width) fp64: largest absolute activation, over ranks too; "sums"."""
    angle_L: Tensor | None = None
    """(num_layers,) fp64: sum of the angular distance from layer input to output; "angles"."""
    document_LI: Tensor | None = None
    """(num_layers, width) fp64: sum over documents of (mean over tokens of |a|)^2; "documents"."""
    num_documents: Tensor | None = None
    """() int64: number of documents (pieces, of one longer than a sequence); "documents"."""
    gradient_LI: Tensor | None = None
    """(num_layers, width) fp64: sum of |a * dL/da|, L the loss summed over tokens; "gradients"."""
    weight_gradient_LI: Tensor | None = None
    """(num_layers, width) fp64: sum over a neuron's weights of |w * dL/dw|, L as above; no sum over
    batches or ranks, and so there only after all of them; "weight_gradients".
    """
    num_predicted: Tensor | None = None
    """() int64: number of tokens with a loss, all but each document's first; "gradients",
    "weight_gradients".
    """

    def tensors(self) -> dict[str, Tensor]:
        """The statistics that were collected, by field name."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}


@dataclass(kw_only=True)
class StatisticsCollector:
    """Statistics that every forward pass adds to while ``enabled``; made by ``collecting``."""

    statistics: Statistics
    """This rank's sums so far."""
    neurons: FfnStatistics
    """The same per-neuron tensors, as the fused FFN kernels take them."""
    unrouted: Tensor | None = None
    """(num_ffns,) bool, with experts: those that get every token."""

    @property
    def enabled(self) -> bool:
        """Whether forward passes add to the statistics."""
        return self.neurons.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self.neurons.enabled = value

    def expect(self, mask: Tensor) -> None:
        """Set the mask of the next forward pass, one bool per token: False leaves a token out."""
        self.neurons.token_mask = mask
        self.statistics.num_tokens += mask.sum()
        if self.statistics.tokens_U is not None:
            self.statistics.tokens_U[self.unrouted] += mask.sum()

    def tensors(self) -> dict[str, Tensor]:
        """This rank's sums, by field name."""
        return self.statistics.tensors()

    def over_ranks(self) -> dict[str, Tensor]:
        """The statistics of all ranks together, by field name, on every rank."""
        mine = self.tensors()
        totals = distributed.summed(mine)
        if "maximum_LI" in mine:
            # the only field that is not a sum
            totals["maximum_LI"] = distributed.largest(mine["maximum_LI"])
        return totals

    def total(self, weights: WeightGradients | None = None) -> Statistics:
        """The statistics of all ranks together, on the CPU; ``weight_gradient_LI`` of ``weights``.

        Raises:
            ValueError: an activation or gradient was NaN or infinite; names an activation's layer.
        """
        total = Statistics(**{name: tensor.cpu() for name, tensor in self.over_ranks().items()})
        if weights is not None:
            total.weight_gradient_LI = weights.products()
        _check_finite(total)
        return total


@contextmanager
def collecting(
    model: "PreTrainedModel",
    family: Family,
    extra: frozenset[Extra] = NOTHING,
    takes_sums: bool = True,
) -> Iterator[StatisticsCollector]:
    """Collect statistics of all forward passes of ``model`` inside the context.

    FFNs run in fused kernels that also compute the sums. On exit the model is as before, also after
    an exception.

    Args:
        extra: what to collect besides square_LI and change_L3. "sums" is free, as the kernels read
            the activations anyway; "angles" reads each layer's input and output a few more times,
            in plain PyTorch; "gradients" needs the caller to run backward passes.
        takes_sums: whether the kernels take the neurons' sums; False where tokens have weights, and
            the caller takes them.
    """
    ffns, layers = feed_forwards(model, family), decoder_layers(model, family)
    # a model whose FFNs are of no known form has statistics of layers alone
    width = next(iter(ffns.values())).width if ffns else 0
    statistics = _zeros(model, len(layers), len(ffns) or len(layers), width, extra)
    routed = {name: ffn for name, ffn in ffns.items() if is_routed(ffn)}
    # in the order of NeuronSums' fields; the optional ones are None together, so none is skipped
    per_neuron = (
        statistics.square_LI,
        statistics.sum_LI,
        statistics.absolute_LI,
        statistics.maximum_LI,
    )
    taken = [tensor_LI for tensor_LI in per_neuron if tensor_LI is not None]
    rows = zip(*taken, strict=True)
    neurons = FfnStatistics(
        {name: NeuronSums(*each_I) for name, each_I in zip(ffns, rows, strict=bool(ffns))}
    )
    watched = StatisticsCollector(statistics=statistics, neurons=neurons)

    def watch_layer(
        index: int, module: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple | list
    ) -> None:
        if watched.enabled:
            # families differ in how they pass and return the hidden states
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple | list) else output
            # several residual streams a token (hyper-connections) count as one
            before, after = (tensor.flatten(2) for tensor in (before, after))
            # the last layer of a model that SliceGPT sliced has a wider output; such models drop no
            # layers, so no statistic of layers is missed
            if before.shape != after.shape:
                return
            residual_change(before, after, statistics.change_L3[index], neurons.token_mask)
            if statistics.angle_L is not None:
                add_angles(before, after, statistics.angle_L[index], neurons.token_mask)

    with ExitStack() as stack:
        plain = {name: ffn for name, ffn in ffns.items() if name not in routed}
        stack.enter_context(fused_ffns(plain, neurons if takes_sums else None))
        if routed:
            stack.enter_context(_watch_routed(statistics, neurons, takes_sums, ffns, routed))
            plain_U = [name in plain for name in ffns]
            watched.unrouted = torch.tensor(plain_U, device=statistics.square_LI.device)
        if statistics.gradient_LI is not None:
            stack.enter_context(watch_activations(model, ffns.values(), statistics.gradient_LI))
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
    grams: GramMatrices | None = None,
) -> Statistics:
    """Run the model over the corpus once and return its statistics, on the CPU.

    Each rank takes every world_size-th batch, and all ranks get the total.

    Args:
        tokens: the corpus; its tokens may have weights.
        batch_size: packed sequences per batch.
        description: of the progress bar.
        extra: what else to collect. "gradients" and "weight_gradients" also run the language-model
            head and a backward pass, and so keep one batch's activations; without them neither is
            run. "weight_gradients" needs the memory of the FFNs' weights in fp32 besides.
        grams: Gram matrices to collect in the same pass, for the first layers that fit in memory.

    Raises:
        ValueError: an activation or gradient is NaN or infinite; names an activation's layer.
    """
    model_was_training, gradients = model.training, bool(BACKWARD & extra)
    ffns, weights, documents = feed_forwards(model, family), None, None
    model.eval()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(not gradients))
        stack.enter_context(torch.set_grad_enabled(gradients))
        weighted = tokens.weights is not None
        watched = stack.enter_context(collecting(model, family, extra, takes_sums=not weighted))
        taken = watched.statistics
        watches: list[WeightedSums | GramMatrices] = []
        if weighted:
            sums = WeightedSums(watched.neurons.sums)
            stack.enter_context(sums.watch(ffns))
            watches.append(sums)
        if grams is not None:
            stack.enter_context(grams.watch())
            watches.append(grams)
        if taken.document_LI is not None and taken.num_documents is not None:
            documents = DocumentMeans(taken.document_LI, taken.num_documents)
            stack.enter_context(documents.watch(ffns.values()))
        if "weight_gradients" in extra:
            weights = WeightGradients(ffns.values())
            stack.enter_context(weights.watch(model))
        for batch in document_batches(model, tokens, batch_size, description):
            watched.expect(batch.mask)
            for each in watches:
                each.expect(batch)
            if documents is not None:
                documents.expect(batch.mask, batch.inputs["position_ids"])
            if gradients:
                _backward(model, batch.inputs, batch.labels, taken)
            else:
                model.base_model(**batch.inputs, use_cache=False)
    model.train(model_was_training)
    return watched.total(weights)


def collect_with_grams(
    model: "PreTrainedModel",
    family: Family,
    tokens: "PackedTokens",
    batch_size: int,
    description: str = "calibrate",
    extra: frozenset[Extra] = NOTHING,
    protected: "PackedTokens | None" = None,
    protect_share: float = 0.0,
    ridge: float | None = RIDGE,
) -> tuple[Statistics, GramMatrices]:
    """``collect``, and the layers' Gram matrices from the same pass where they fit in memory.

    Args:
        protected: other text, and its share of the Gram matrices' weight: see ``GramMatrices``. The
            statistics are of ``tokens`` alone.
        ridge: of the Gram matrices; None chooses it for each layer.
    """
    grams = GramMatrices(model, family, tokens, batch_size, protected, protect_share, ridge)
    return collect(model, family, tokens, batch_size, description, extra, grams), grams


def _watch_routed(
    statistics: Statistics,
    neurons: FfnStatistics,
    takes_sums: bool,
    ffns: dict[str, Ffn],
    routed: dict[str, Ffn],
) -> AbstractContextManager[None]:
    """Count tokens that are routed to experts; arguments are those in ``collecting``."""
    device = statistics.square_LI.device
    statistics.tokens_U = torch.zeros(len(ffns), dtype=torch.int64, device=device)
    statistics.output_U = torch.zeros(len(ffns), dtype=torch.float64, device=device)
    sums = ExpertSums(neurons, takes_sums, statistics.tokens_U, statistics.output_U)
    return sums.watch(routed, {name: place for place, name in enumerate(ffns)})


def _zeros(
    model: "PreTrainedModel",
    num_layers: int,
    num_ffns: int,
    width: int,
    extra: frozenset[Extra],
) -> Statistics:
    """Statistics of no tokens, on the model's device."""
    options: dict[str, Any] = {"dtype": torch.float64, "device": model.device}
    statistics = Statistics(
        num_tokens=torch.zeros((), dtype=torch.int64, device=model.device),
        square_LI=torch.zeros(num_ffns, width, **options),
        change_L3=torch.zeros(num_layers, 3, **options),
    )
    if "sums" in extra:
        statistics.sum_LI, statistics.absolute_LI, statistics.maximum_LI = torch.zeros(
            3, num_ffns, width, **options
        )
    if "angles" in extra:
        statistics.angle_L = torch.zeros(num_layers, **options)
    if "documents" in extra:
        statistics.document_LI = torch.zeros(num_ffns, width, **options)
        statistics.num_documents = torch.zeros_like(statistics.num_tokens)
    if "gradients" in extra:
        statistics.gradient_LI = torch.zeros(num_ffns, width, **options)
    if BACKWARD & extra:
        statistics.num_predicted = torch.zeros_like(statistics.num_tokens)
    return statistics


def _backward(
    model: "PreTrainedModel", batch: dict[str, Tensor], labels: Tensor, statistics: Statistics
) -> None:
    """Forward and backward pass of a batch; the loss is summed, not averaged, over its tokens.

    So dL/da does not depend on which other tokens are in the batch.
    """
    logits = model(**batch, use_cache=False).logits
    # labels are not shifted yet: position t predicts label t + 1
    loss = nn.functional.cross_entropy(
        wide(logits[:, :-1].flatten(0, 1)), labels[:, 1:].flatten(), reduction="sum"
    )
    loss.backward()
    assert statistics.num_predicted is not None
    statistics.num_predicted += (labels[:, 1:] >= 0).sum()


def _check_finite(statistics: Statistics) -> None:
    """Raise ValueError if a sum is NaN or infinite, naming the first such layer and the fix."""
    # one bad token makes a sum NaN or infinite, so checking the sums checks every activation
    finite_L = statistics.change_L3.isfinite().all(1)
    finite_U = statistics.square_LI.isfinite().all(1)
    if len(finite_U) == len(finite_L):
        finite_L &= finite_U
    if not (finite_L.all() and finite_U.all()):
        # a layer's change of the residual stream has its experts' outputs in it
        found = "an expert" if finite_L.all() else f"layer {int((~finite_L).nonzero()[0])}"
        raise ValueError(
            f"{found}'s activations are NaN or infinite on the calibration data; check the"
            " checkpoint's weights,"
            " or use --dtype bfloat16 or float32 if it was run in float16"
        )
    gradients = (statistics.gradient_LI, statistics.weight_gradient_LI)
    if any(each_LI is not None and not each_LI.isfinite().all() for each_LI in gradients):
        raise ValueError(
            "the loss's gradient is NaN or infinite on the calibration data although the"
            " activations are not; use --dtype bfloat16"
            " or float32 if it was run in float16, or another --scorer"
        )
