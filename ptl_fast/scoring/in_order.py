"""Fit the columns of the neurons that stay layer by layer, on what the pruned layers before leave.

``pruning.compensate`` fits every layer to its own output on the original model's hidden states, so
the errors of one layer are not seen by the next, and add up. Here the layers are walked in order,
with two streams of hidden states: the original model's, s, and the pruned one's. With a[t] the kept
neurons' activations in the pruned model, and p[t] its residual stream behind the layer without the
down projection's output, the new columns X minimise

    sum_t ||s[t] - p[t] - X a[t]||^2 + ridge * mean diagonal of G * ||X - W[:, S]||^2

so they also make up for what the layers before have lost, as far as this FFN can. Models that do
not add the FFN's output as it is (Gemma2 normalises it, Granite scales it) have no such target;
there, and only there, it is the original's output of the down projection. A bias of the down
projection stays as it is. Fitting on the inputs of the compressed model is
what GPTQ (arXiv 2210.17323) and SparseGPT (arXiv 2301.00774) do; towards the original's outputs as
here, GPTAQ's asymmetric calibration (arXiv 2504.02692).

Shape suffixes: L layers, I FFN width, K kept neurons, H hidden size, T tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ptl_fast.base import distributed
from ptl_fast.base.progress import progress
from ptl_fast.data.batching import Batch, document_batches
from ptl_fast.model.families import DownProjection, Family, decoder_layers, down_projections
from ptl_fast.scoring.dropped_blocks import ffn_adds_to_stream, stream_of
from ptl_fast.scoring.gram import add_products_, mirror_

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.data.packing import PackedTokens


class Sums(NamedTuple):
    """What one layer's least squares need of the tokens, fp64."""

    gram_KK: Tensor
    """A^T A of the kept neurons, the blocks on and below the diagonal."""
    cross_HK: Tensor
    """T^T A, T the target."""
    square: Tensor
    """Scalar: the sum of all neurons' squared activations."""


class Call(NamedTuple):
    """What a decoder layer is called with beside the hidden states."""

    args: tuple
    kwargs: dict[str, Any]


@dataclass(kw_only=True)
class Streams:
    """One batch's hidden states, of the original model and of the pruned one."""

    original: Tensor
    pruned: Tensor
    calls: list[Call]
    """One for each layer."""
    counted_T: Tensor
    """Which tokens count, in flat order."""
    roots_T: Tensor
    """The roots of the weights of those that do, fp64."""


@torch.no_grad()
def columns_in_order(
    model: "PreTrainedModel",
    family: Family,
    texts: "Sequence[tuple[PackedTokens, float]]",
    batch_size: int,
    kept_LK: Sequence[Sequence[int]],
    ridges: Sequence[float],
) -> list[Tensor]:
    """Return each layer's columns of the neurons that stay, (hidden_size, num_kept).

    The model is afterwards as it was. Collective: every rank brings its share of the batches.

    Both streams of all tokens are kept in the device's memory: 2 T H elements of the model's type.
    Costs three forward passes, and per layer T K^2 + 2 T K H + K^3 / 3 floating-point operations in
    fp64.

    Args:
        texts: (tokens, weight of each token), as from ``gram.weighted_texts``.
        batch_size: packed sequences per batch.
        kept_LK: indices of the neurons that stay, (num_layers, num_kept).
        ridges: each layer's, as a fraction of the mean of its Gram matrix' diagonal.
    """
    # dropout would add noise
    was_training = model.training
    model.eval()
    streams = list(_streams(model, family, texts, batch_size))
    adds = distributed.agree(ffn_adds_to_stream(model, family, 0, texts[0][0]))
    layers = decoder_layers(model, family)
    downs = down_projections(model, family)
    before = [down.weight_HI.clone() for down in downs]
    found = []
    try:
        for number in progress(range(len(layers)), "compensate"):
            down, kept_K = downs[number], torch.tensor(kept_LK[number], device=model.device)
            sums = _sums(layers[number], number, down, streams, kept_K, adds)
            found.append(
                _solve(sums, down.weight_HI[:, kept_K], ridges[number], down.weight_HI.shape[1])
            )
            # the next layer sees what this one will leave
            down.weight_HI.zero_().index_copy_(1, kept_K, found[-1])
            for each in streams:
                each.pruned = _run(layers[number], each.pruned, each.calls[number])
    finally:
        for down, weight_HI in zip(downs, before, strict=True):
            down.weight_HI.copy_(weight_HI)
        model.train(was_training)
    return found


def _streams(
    model: "PreTrainedModel",
    family: Family,
    texts: "Sequence[tuple[PackedTokens, float]]",
    batch_size: int,
) -> Iterator[Streams]:
    """Each batch's hidden states before the first layer, and what every layer is called with."""
    layers = decoder_layers(model, family)
    for tokens, weight in texts:
        as_tuple: list[bool] = []
        for batch in document_batches(model, tokens, batch_size, "compensate: embed"):
            # what a layer returns is asked of the layers themselves
            if not as_tuple:
                as_tuple = _return_tuples(model, layers, batch)
            with _recording(layers, as_tuple) as (hidden, calls):
                model.base_model(**batch.inputs, use_cache=False)
            yield Streams(
                original=hidden[0],
                pruned=hidden[0],
                calls=calls,
                counted_T=batch.mask.flatten(),
                roots_T=_roots(batch, weight),
            )


def _roots(batch: Batch, weight: float) -> Tensor:
    """The roots of the weights of the tokens that count: a product of two has the weight itself."""
    counted_T = batch.mask.flatten()
    weights_T = torch.ones(len(counted_T), device=counted_T.device, dtype=torch.float64)
    if batch.weights is not None:
        weights_T = batch.weights.flatten().double()
    return (weight * weights_T[counted_T]).sqrt()


def _return_tuples(model: "PreTrainedModel", layers: nn.ModuleList, batch: Batch) -> list[bool]:
    """Of each layer, whether it returns the hidden states in a tuple."""
    found: list[bool] = []
    with ExitStack() as stack:
        for layer in layers:
            hook = layer.register_forward_hook(
                lambda module, args, output: found.append(isinstance(output, tuple | list))
            )
            stack.callback(hook.remove)
        model.base_model(**batch.inputs, use_cache=False)
    return found


@contextmanager
def _recording(
    layers: nn.ModuleList, as_tuple: Sequence[bool]
) -> Iterator[tuple[list[Tensor], list[Call]]]:
    """Forward passes inside leave out what the layers compute, and record what each is given: the
    hidden states, which are the first layer's for all, and the other arguments.
    """
    hidden: list[Tensor] = []
    calls: list[Call] = []

    def record(returns_tuple: bool, *args: Any, **kwargs: Any) -> Any:
        states, args = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
        hidden.append(states)
        calls.append(Call(args, kwargs))
        return (states,) if returns_tuple else states

    with ExitStack() as stack:
        for layer, returns_tuple in zip(layers, as_tuple, strict=True):
            layer.forward = partial(record, returns_tuple)
            stack.callback(delattr, layer, "forward")
        yield hidden, calls


def _run(layer: nn.Module, states: Tensor, call: Call) -> Tensor:
    """The residual stream behind a layer."""
    return stream_of(layer(states, *call.args, **call.kwargs))


class _Passed(NamedTuple):
    """What a layer made of one batch; rows are the tokens that count."""

    stream: Tensor
    """All tokens, in the batch's shape."""
    activations_TI: Tensor
    output_TH: Tensor
    """The down projection's, without its bias."""


def _pass(
    layer: nn.Module, down: DownProjection, states: Tensor, call: Call, each: Streams
) -> _Passed:
    """Run a layer, and keep what goes into its down projection and comes out."""
    taken: list[Tensor] = []
    hook = down.module.register_forward_hook(
        lambda module, args, output: taken.extend((args[0], output))
    )
    try:
        stream = _run(layer, states, call)
    finally:
        hook.remove()
    activations_TI, output_TH = (_rows(tensor, each) for tensor in taken)
    return _Passed(
        stream, activations_TI, output_TH if down.bias is None else output_TH - down.bias.double()
    )


def _rows(values: Tensor, each: Streams) -> Tensor:
    """The rows of the tokens that count, fp64."""
    return values.flatten(0, -2)[each.counted_T].double()


def _sums(
    layer: nn.Module,
    number: int,
    down: DownProjection,
    streams: Sequence[Streams],
    kept_K: Tensor,
    adds: bool,
) -> Sums:
    """One layer's sums over all tokens of all ranks; moves the original's streams behind it."""
    options: dict[str, Any] = {"dtype": torch.float64, "device": down.weight_HI.device}
    shapes = ((len(kept_K), len(kept_K)), (len(down.weight_HI), len(kept_K)), ())
    sums = Sums(*(torch.zeros(shape, **options) for shape in shapes))
    for each in streams:
        call = each.calls[number]
        was = _pass(layer, down, each.original, call, each)
        now = _pass(layer, down, each.pruned, call, each)
        target_TH = was.output_TH
        if adds:
            # what the stream lacks without this FFN, whose bias stays
            target_TH = _rows(was.stream, each) - _rows(now.stream, each) + now.output_TH
        roots_T1 = each.roots_T[:, None]
        kept_TK = now.activations_TI[:, kept_K] * roots_T1
        add_products_(sums.gram_KK, kept_TK, 1.0)
        sums.cross_HK.addmm_((target_TH * roots_T1).T, kept_TK)
        sums.square.add_((now.activations_TI * roots_T1).square().sum())
        each.original = was.stream
    if distributed.world_size() > 1:
        sums = Sums(**distributed.summed(sums._asdict()))
    mirror_(sums.gram_KK)
    return sums


def _solve(sums: Sums, columns_HK: Tensor, ridge: float, width: int) -> Tensor:
    """The new columns, in the type of those before, to which the ridge draws them."""
    tiny = torch.finfo(torch.float32).tiny
    added = ridge * (sums.square / width).clamp_min(tiny)
    sums.gram_KK.diagonal().add_(added)
    target_KH = (sums.cross_HK + added * columns_HK.double()).T
    factor = torch.linalg.cholesky(sums.gram_KK)
    return torch.cholesky_solve(target_KH, factor).T.to(columns_HK.dtype)
