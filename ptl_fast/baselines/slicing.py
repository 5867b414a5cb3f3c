"""SliceGPT's slicing: rotate the residual stream into its principal axes, block after block, and keep
the first. The sliced model itself is in slicegpt.py.

Shape suffixes: T tokens, H hidden size, D sliced hidden size, O width of a block's output (D, or H
in the last block), B bases.
"""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM

from ptl_fast.base import distributed
from ptl_fast.baselines.slicegpt import (
    Block,
    SlicedDecoderLayer,
    blocks,
    set_output_axes_,
    set_weight_,
    sliced_config,
)
from ptl_fast.data.batching import sequence_batches

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from ptl_fast.data.packing import PackedTokens


@torch.no_grad()
def rotate_and_slice(
    model: "PreTrainedModel", tokens: "PackedTokens", sliced_hidden_size: int, batch_size: int
) -> tuple["PreTrainedModel", Tensor]:
    """Return the sliced model, made of the given one's modules (which is used up), and the bases'
    eigenvalues.

    One pass over ``tokens``, layer after layer; tokens whose mask is False do not count. With
    several ranks each takes every world_size-th batch, and the axes of small eigenvalues then
    differ from those of one rank, as sums are rounded in another order. Covariances and changes of
    weights are computed in float64, on the model's device. There, the whole corpus's residual
    stream is held three times in the weights' type, 3 * num_tokens * hidden_size * itemsize bytes,
    and its attention masks once.

    Returns:
        The model, and (2 * num_layers, hidden_size) float64 on the CPU: for the input of every
        block, the uncentred covariance's eigenvalues, descending. Their sum beyond
        ``sliced_hidden_size`` is the energy that this slice loses.

    Raises:
        ValueError: the model type is not known, or an activation is NaN or infinite.
    """
    config = sliced_config(model.config, sliced_hidden_size)
    model.eval()
    decoder: Any = model.base_model
    batches = _record_batches(model, tokens, batch_size)
    first_H, basis_HH = _principal_axes(
        [batch.stream for batch in batches], batches, config.hidden_size, model.device
    )
    spectrum, basis_HD = [first_H], basis_HH[:, :sliced_hidden_size]
    decoder.embed_tokens = _sliced_embedding(decoder.embed_tokens, basis_HD)
    for batch in batches:
        batch.stream = batch.stream @ basis_HD.to(batch.stream.dtype)
    last = len(decoder.layers) - 1
    for index, layer in enumerate(
        tqdm(decoder.layers, desc="slice", disable=not distributed.is_main(), leave=False)
    ):
        output_size = config.hidden_size if index == last else sliced_hidden_size
        sliced = SlicedDecoderLayer(layer, config, output_size)
        for block in blocks(sliced, layer, config):
            last_block = index == last and block.output is sliced.mlp.down_proj
            basis_HD, eigenvalues_H = _slice_block(block, batches, index, basis_HD, last_block)
            if eigenvalues_H is not None:
                spectrum.append(eigenvalues_H)
        decoder.layers[index] = sliced
    return _assemble(model, config), torch.stack(spectrum)


@dataclass(kw_only=True)
class _Batch:
    """Some of the calibration sequences on their way through the model."""

    stream: Tensor
    """(rows, length, D): the residual stream in the present axes; at first (rows, length, H), the
    embeddings.
    """
    mask_T: Tensor
    """(rows * length,) bool: the tokens that count."""
    arguments: list[dict[str, Any]]
    """What the model gives each decoder layer besides the stream: masks, position embeddings."""


class _Recorder(nn.Module):
    """Stands in for a decoder layer, keeps what it is given and computes nothing."""

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        self.stream, self.arguments = hidden_states, arguments
        return hidden_states


def _record_batches(
    model: "PreTrainedModel", tokens: "PackedTokens", batch_size: int
) -> list[_Batch]:
    """This rank's batches at the first layer's input."""
    decoder: Any = model.base_model
    layers, batches = decoder.layers, []
    decoder.layers = nn.ModuleList(_Recorder() for _ in layers)
    try:
        mine = itertools.islice(
            sequence_batches(model, tokens, batch_size),
            distributed.rank(),
            None,
            distributed.world_size(),
        )
        for inputs, _, mask in mine:
            decoder(**inputs, use_cache=False)
            arguments = [recorder.arguments for recorder in decoder.layers]
            stream, mask_T = decoder.layers[0].stream, mask.flatten()
            batches.append(_Batch(stream=stream, mask_T=mask_T, arguments=arguments))
    finally:
        decoder.layers = layers
    return batches


def _slice_block(
    block: Block, batches: list[_Batch], layer_index: int, basis_HD: Tensor, last: bool
) -> tuple[Tensor, Tensor | None]:
    """Slice one block in place and take the batches through it; return its output's basis and that
    basis's eigenvalues.
    """
    hidden_size, size = basis_HD.shape
    for linear in block.inputs:
        set_weight_(linear, linear.weight.double() * block.norm_weight_H @ basis_HD)
    outputs = [block.run(batch.stream, batch.arguments[layer_index]) for batch in batches]
    back_DH = None
    if block.post_weight_H is not None:
        own_HD = _principal_axes(outputs, batches, hidden_size, basis_HD.device)[1][:, :size]
        back_DH = own_HD.T * block.post_weight_H
        set_output_axes_(block.output, own_HD)
        outputs = [
            block.post.norm(output @ own_HD.to(output.dtype)) @ back_DH.to(output.dtype)
            for output in outputs
        ]
    # in the original axes, so that nothing of this block's output is lost before its own slice
    streams = [
        batch.stream @ basis_HD.T.to(output.dtype) + output
        for batch, output in zip(batches, outputs, strict=True)
    ]
    eigenvalues_H, next_HO = (
        None,
        torch.eye(hidden_size, dtype=torch.float64, device=basis_HD.device),
    )
    if not last:
        eigenvalues_H, next_HH = _principal_axes(streams, batches, hidden_size, basis_HD.device)
        next_HO = next_HH[:, :size]
    if back_DH is not None:
        set_weight_(block.post.rotation, (back_DH @ next_HO).T)
    else:
        set_output_axes_(block.output, next_HO)
    set_weight_(block.shortcut, next_HO.T @ basis_HD)
    for batch, stream in zip(batches, streams, strict=True):
        batch.stream = stream @ next_HO.to(stream.dtype)
    return next_HO, eigenvalues_H


def _principal_axes(
    tensors: list[Tensor], batches: list[_Batch], hidden_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(hidden_size,) eigenvalues of sum_t x_t x_t^T, descending, on the CPU, and the eigenvectors
    as columns; both float64.
    """
    covariance_HH = torch.zeros(hidden_size, hidden_size, dtype=torch.float64, device=device)
    for tensor, batch in zip(tensors, batches, strict=True):
        counted_TH = tensor.flatten(0, 1)[batch.mask_T].double()
        covariance_HH += counted_TH.T @ counted_TH
    covariance_HH = distributed.summed({"covariance": covariance_HH})["covariance"]
    if not covariance_HH.isfinite().all():
        raise ValueError(
            "activations are NaN or infinite on the calibration data; check the checkpoint's"
            " weights, or use --dtype"
        )
    eigenvalues_H, axes_HH = torch.linalg.eigh(covariance_HH)
    return eigenvalues_H.flip(0).cpu(), axes_HH.flip(1)


def _sliced_embedding(embedding: nn.Embedding, basis_HD: Tensor) -> nn.Embedding:
    """The embedding in the first block's axes, with the factor that Gemma multiplies it by."""
    scale = getattr(embedding, "embed_scale", torch.ones(())).to(embedding.weight.dtype).double()
    weight = (embedding.weight.double() * scale @ basis_HD).to(embedding.weight.dtype)
    return nn.Embedding.from_pretrained(weight, freeze=False, padding_idx=embedding.padding_idx)


def _assemble(model: Any, config: "PretrainedConfig") -> "PreTrainedModel":
    """The sliced type's model object around the modules that were sliced in place."""
    with torch.device("meta"):
        sliced: Any = AutoModelForCausalLM.from_config(config)
    sliced.model, sliced.lm_head = model.model, model.lm_head
    for module in sliced.modules():
        if hasattr(module, "config"):
            module.config = config
    sliced.generation_config = model.generation_config
    return sliced.eval()
