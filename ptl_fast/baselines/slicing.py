"""SliceGPT's slicing: PCA of the residual stream before each block, keeping the leading axes.

The method and the sliced model's classes are in slicegpt.py.

Shape suffixes: T tokens, H hidden size, D sliced hidden size, O width of a block's output (D, or H
in the last block).
"""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ptl_fast.base import distributed
from ptl_fast.base.progress import progress
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
    """Slice a model to ``sliced_hidden_size``; its modules are reused, so it is destroyed.

    Cost: one forward pass over ``tokens``, layer after layer, and an eigendecomposition per block,
    (H, H) in float64. Memory on the model's device: the residual stream of all calibration tokens
    three times, 3 * num_tokens * hidden_size * itemsize bytes in the weights' dtype, and their
    attention masks once. Each rank takes every world_size-th batch. The axes of small eigenvalues
    depend on the number of ranks, as sums are rounded in another order.

    Args:
        tokens: calibration sequences; padding (mask False) does not count.
        batch_size: sequences in a forward pass.

    Returns:
        The sliced model, and the eigenvalues of the uncentred covariance of every block's input,
        (2 * num_layers, hidden_size) float64 on the CPU, descending. Their sum beyond
        ``sliced_hidden_size`` is the energy that the slice loses.

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
    # the embeddings: the first block's input axes
    spectrum, basis_HD = [first_H], basis_HH[:, :sliced_hidden_size]
    decoder.embed_tokens = _sliced_embedding(decoder.embed_tokens, basis_HD)
    for batch in batches:
        batch.stream = batch.stream @ basis_HD.to(batch.stream.dtype)
    last = len(decoder.layers) - 1
    for index, layer in enumerate(progress(decoder.layers, "slice")):
        output_size = config.hidden_size if index == last else sliced_hidden_size
        sliced = SlicedDecoderLayer(layer, config, output_size)
        for block in blocks(sliced, layer, config):
            # in turn: a block's axes come from the stream behind the sliced block before it
            last_block = index == last and block.output is sliced.mlp.down_proj
            basis_HD, eigenvalues_H = _slice_block(block, batches, index, basis_HD, last_block)
            if eigenvalues_H is not None:
                spectrum.append(eigenvalues_H)
        decoder.layers[index] = sliced
    return _assemble(model, config), torch.stack(spectrum)


@dataclass(kw_only=True)
class _Batch:
    """A batch of calibration sequences, with the residual stream at the block to be sliced next."""

    stream: Tensor
    """(rows, length, D), in the block's input axes; (rows, length, H) embeddings at first."""
    mask_T: Tensor
    """(rows * length,) bool: False for padding."""
    arguments: list[dict[str, Any]]
    """Per decoder layer, its keyword arguments: attention mask, position embeddings and so on."""


class _Recorder(nn.Module):
    """Stands in for a decoder layer: records its inputs, and passes the stream on unchanged."""

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        self.stream, self.arguments = hidden_states, arguments
        return hidden_states


def _record_batches(
    model: "PreTrainedModel", tokens: "PackedTokens", batch_size: int
) -> list[_Batch]:
    """Return this rank's batches at the first layer's input.

    The model's own forward pass runs with recorders for layers, so that masks and position
    embeddings are those that it makes, for every layer type (such as Gemma 2's sliding window).
    """
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
        for batch in mine:
            decoder(**batch.inputs, use_cache=False)
            arguments = [recorder.arguments for recorder in decoder.layers]
            stream, mask_T = decoder.layers[0].stream, batch.mask.flatten()
            batches.append(_Batch(stream=stream, mask_T=mask_T, arguments=arguments))
    finally:
        decoder.layers = layers
    return batches


def _slice_block(
    block: Block, batches: list[_Batch], layer_index: int, basis_HD: Tensor, last: bool
) -> tuple[Tensor, Tensor | None]:
    """Slice one block in place, and advance the batches through it.

    Args:
        basis_HD: axes of the block's input stream.
        last: whether this is the model's last block, whose output is not sliced.

    Returns:
        The axes of the output stream, (H, O) float64, and their eigenvalues, (H,); for the last
        block the identity and None.
    """
    hidden_size, size = basis_HD.shape
    # input side: fold the norm's weight in, and read the rotated stream
    for linear in block.inputs:
        set_weight_(linear, linear.weight.double() * block.norm_weight_H @ basis_HD)
    outputs = [block.run(batch.stream, batch.arguments[layer_index]) for batch in batches]
    back_DH = None
    # a post-norm needs the block's output in its own principal axes (see PostNorm)
    if block.post_weight_H is not None:
        own_HD = _principal_axes(outputs, batches, hidden_size, basis_HD.device)[1][:, :size]
        back_DH = own_HD.T * block.post_weight_H
        set_output_axes_(block.output, own_HD)
        outputs = [
            block.post.norm(output @ own_HD.to(output.dtype)) @ back_DH.to(output.dtype)
            for output in outputs
        ]
    # back in the original axes, so that the new ones are chosen from all of this block's output
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
    # output side: write into the new axes; the shortcut takes the residual stream there
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
    """Return eigenvalues and eigenvectors of sum_t x_t x_t^T, over all ranks' unpadded tokens.

    Args:
        tensors: per batch, (rows, length, H).

    Returns:
        Eigenvalues (H,), descending, on the CPU; eigenvectors (H, H) as columns in the same order,
        on ``device``; both float64.

    Raises:
        ValueError: an activation is NaN or infinite.
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
    # eigh sorts in ascending order
    eigenvalues_H, axes_HH = torch.linalg.eigh(covariance_HH)
    return eigenvalues_H.flip(0).cpu(), axes_HH.flip(1)


def _sliced_embedding(embedding: nn.Embedding, basis_HD: Tensor) -> nn.Embedding:
    """Return the embedding in the first block's axes, (vocabulary, D).

    Gemma's embedding module multiplies by a constant; it is folded into the weight here, rounded to
    the weight's dtype first, as Gemma does.
    """
    scale = getattr(embedding, "embed_scale", torch.ones(())).to(embedding.weight.dtype).double()
    weight = (embedding.weight.double() * scale @ basis_HD).to(embedding.weight.dtype)
    return nn.Embedding.from_pretrained(weight, freeze=False, padding_idx=embedding.padding_idx)


def _assemble(model: Any, config: "PretrainedConfig") -> "PreTrainedModel":
    """Wrap the modules that were sliced in place into a model of the sliced type."""
    # on the meta device: its own weights are replaced at once
    with torch.device("meta"):
        sliced: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    sliced.model, sliced.lm_head = model.model, model.lm_head
    for module in sliced.modules():
        if hasattr(module, "config"):
            module.config = config
    sliced.generation_config = model.generation_config
    return sliced.eval()
