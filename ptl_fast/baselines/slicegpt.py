"""SliceGPT (arXiv 2401.15024), the baseline that narrows the residual stream: rotate it into its
principal axes, keep the first.

A transformer with RMSNorm computes the same when the stream x between two blocks becomes x Q with
an orthogonal Q, once the norms' weights are folded into the linear layers behind them: ||x Q|| =
||x||, and the weights on both sides absorb Q. Every block (attention or FFN) gets the Q of its own
input, so the residual connection needs the matrix Q_in^T Q_out, the *shortcut*. Slicing keeps the
first columns of each Q. As in the authors' code, Q holds the principal axes of the uncentred,
unnormalised stream, calibration runs through the part that is already sliced, and the stream before
the head is not sliced: final norm and head stay.

A sliced model is no ordinary checkpoint. Its model_type is ``slicegpt_`` and the original's, which
transformers refuses; after ``import ptl_fast.slicegpt`` the Auto classes know it. In its config,
``hidden_size`` stays the original's, and ``sliced_hidden_size`` is what is left.

Shape suffixes: T tokens, H hidden size, D sliced hidden size, O width of a block's output (D, or H
in the last block), B bases."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

if TYPE_CHECKING:
    from transformers import PretrainedConfig


PREFIX = "slicegpt_"
HIDDEN_MULTIPLE = 8  # of a sliced hidden size, as in SliceGPT's code
ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj")
FFN_INPUTS = ("gate_proj", "up_proj")


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What differs between model types: attribute names of a decoder layer's norms, and what a norm
    multiplies by.
    """

    ffn_norm: str = "post_attention_layernorm"
    attention_post_norm: str | None = None
    """The norm between a block's output and the residual connection, where there is one."""
    ffn_post_norm: str | None = None
    norm_offset: float = 0.0
    """A norm multiplies by this plus its weight."""


LLAMA = Structure()
GEMMA2 = Structure(
    ffn_norm="pre_feedforward_layernorm",
    attention_post_norm="post_attention_layernorm",
    ffn_post_norm="post_feedforward_layernorm",
    norm_offset=1.0,
)
STRUCTURES = {"llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA, "gemma2": GEMMA2}


class RootMeanSquare(nn.Module):
    """x / sqrt(sum(x^2) / hidden_size + eps), in float32: an RMSNorm whose weight is folded away.

    ``hidden_size`` is the original one also where x is narrower. The kept coordinates hold nearly
    all of ||x||, so their sum of squares over the original count is nearly the original mean; over
    the kept count, every block's input would come out too small."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.hidden_size, self.eps = hidden_size, eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        exact = hidden_states.float()
        mean_square = exact.square().sum(-1, keepdim=True) / self.hidden_size
        return (exact * torch.rsqrt(mean_square + self.eps)).type_as(hidden_states)


class PostNorm(nn.Module):
    """A norm behind a block, whose weight cannot be folded into the block: (..., D) -> (..., O).

    The block's output stands in the principal axes P of its own, which leaves its norm unchanged.
    Then one matrix goes back to the original axes, multiplies by the norm's weight w and goes on to
    the stream's axes: P^T diag(w) Q_out.
    """

    def __init__(self, hidden_size: int, eps: float, rotation: nn.Linear) -> None:
        super().__init__()
        self.norm, self.rotation = RootMeanSquare(hidden_size, eps), rotation

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.rotation(self.norm(hidden_states))


class SlicedDecoderLayer(GradientCheckpointingLayer):
    """A decoder layer's own attention and FFN on a rotated, sliced residual stream: (..., D) ->
    (..., output_size).
    """

    def __init__(self, layer: Any, config: "PretrainedConfig", output_size: int) -> None:
        super().__init__()
        structure, hidden_size, eps = structure_of(config), config.hidden_size, config.rms_norm_eps
        self.self_attn, self.mlp = layer.self_attn, layer.mlp
        self.norm = RootMeanSquare(hidden_size, eps)
        weight = self.mlp.down_proj.weight
        square = functools.partial(
            nn.Linear,
            config.sliced_hidden_size,
            bias=False,
            device=weight.device,
            dtype=weight.dtype,
        )
        self.attention_shortcut = square(config.sliced_hidden_size)
        self.ffn_shortcut = square(output_size)
        self.attention_post: nn.Module = nn.Identity()
        self.ffn_post: nn.Module = nn.Identity()
        if structure.attention_post_norm is not None:
            self.attention_post = PostNorm(hidden_size, eps, square(config.sliced_hidden_size))
        if structure.ffn_post_norm is not None:
            self.ffn_post = PostNorm(hidden_size, eps, square(output_size))

    def attend(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        return self.self_attn(hidden_states=self.norm(hidden_states), **arguments)[0]

    def feed_forward(self, hidden_states: Tensor) -> Tensor:
        return self.mlp(self.norm(hidden_states))

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        attended = self.attention_post(self.attend(hidden_states, **arguments))
        hidden_states = self.attention_shortcut(hidden_states) + attended
        return self.ffn_shortcut(hidden_states) + self.ffn_post(self.feed_forward(hidden_states))


def sliced_size(share: float, hidden_size: int) -> int:
    """--slice-hidden of the dimensions, rounded as SliceGPT's code rounds.

    Raises:
        ValueError: it rounds to zero or to all dimensions.
    """
    sliced = round(share * hidden_size / HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE
    if not 0 < sliced < hidden_size:
        raise ValueError(
            f"--slice-hidden {share} of {hidden_size} dimensions rounds to {sliced}, a multiple of"
            f" {HIDDEN_MULTIPLE}; it must be at least {HIDDEN_MULTIPLE} and below {hidden_size}"
        )
    return sliced


def is_sliced(config: "PretrainedConfig") -> bool:
    return config.model_type.startswith(PREFIX)


def sliced_config(config: "PretrainedConfig", sliced_hidden_size: int) -> "PretrainedConfig":
    """The config of the model that ``rotate_and_slice`` makes; ``AutoModelForCausalLM.from_config``
    builds it.

    Raises:
        ValueError: the model type is not one of STRUCTURES, or the size is not in [1, hidden_size].
    """
    if config.model_type not in STRUCTURES:
        raise ValueError(
            f"--slice-hidden is not possible for model_type {config.model_type}; it knows"
            f" {', '.join(STRUCTURES)}; a type with the"
            " same structure needs a row in ptl_fast/baselines/slicegpt.py"
        )
    if not 0 < sliced_hidden_size <= config.hidden_size:
        raise ValueError(
            f"sliced hidden size {sliced_hidden_size} is outside [1, {config.hidden_size}], the"
            " model's hidden size"
        )
    settings = {
        key: value
        for key, value in config.to_dict().items()
        if key not in ("model_type", "architectures")
    }
    # the embedding is sliced and the head is not, so they can no longer be one
    settings |= {"sliced_hidden_size": sliced_hidden_size, "tie_word_embeddings": False}
    sliced = _classes(config.model_type)[0].from_dict(settings)
    sliced._attn_implementation = config._attn_implementation
    return sliced


@dataclass(kw_only=True)
class Block:
    """Attention or FFN of one layer, and what belongs to it."""

    inputs: list[nn.Linear]
    output: nn.Linear
    norm_weight_H: Tensor
    """float64: what the norm before the block multiplies by."""
    post_weight_H: Tensor | None
    post: Any
    shortcut: nn.Linear
    run: Callable[[Tensor, dict[str, Any]], Tensor]
    """(stream, the layer's arguments) -> the block's output before ``post``."""


def blocks(sliced: SlicedDecoderLayer, layer: nn.Module, config: "PretrainedConfig") -> list[Block]:
    """The two blocks of a layer, in the order in which the stream meets them."""
    structure = structure_of(config)

    def factor(name: str) -> Tensor:
        """What the layer's norm of this name multiplies by."""
        weight: Any = layer.get_submodule(name).weight
        return structure.norm_offset + weight.double()

    attention = Block(
        inputs=[getattr(sliced.self_attn, name) for name in ATTENTION_INPUTS],
        output=sliced.self_attn.o_proj,
        norm_weight_H=factor("input_layernorm"),
        post_weight_H=factor(structure.attention_post_norm)
        if structure.attention_post_norm
        else None,
        post=sliced.attention_post,
        shortcut=sliced.attention_shortcut,
        run=lambda stream, arguments: sliced.attend(stream, **arguments),
    )
    ffn = Block(
        inputs=[getattr(sliced.mlp, name) for name in FFN_INPUTS],
        output=sliced.mlp.down_proj,
        norm_weight_H=factor(structure.ffn_norm),
        post_weight_H=factor(structure.ffn_post_norm) if structure.ffn_post_norm else None,
        post=sliced.ffn_post,
        shortcut=sliced.ffn_shortcut,
        run=lambda stream, arguments: sliced.feed_forward(stream),
    )
    return [attention, ffn]


def set_output_axes_(linear: nn.Linear, basis_HO: Tensor) -> None:
    set_weight_(linear, basis_HO.T @ linear.weight.double())
    if linear.bias is not None:
        linear.bias = nn.Parameter((linear.bias.double() @ basis_HO).to(linear.bias.dtype))


def set_weight_(linear: nn.Linear, weight: Tensor) -> None:
    linear.weight = nn.Parameter(weight.to(linear.weight.dtype).contiguous())
    linear.out_features, linear.in_features = weight.shape


def _narrow_(decoder: Any, config: "PretrainedConfig") -> None:
    """Give a freshly built decoder the sliced shapes; its weights are then loaded."""
    size, last = config.sliced_hidden_size, config.num_hidden_layers - 1
    decoder.embed_tokens = nn.Embedding(config.vocab_size, size, decoder.padding_idx)
    for index, layer in enumerate(decoder.layers):
        sliced = SlicedDecoderLayer(layer, config, config.hidden_size if index == last else size)
        for block in blocks(sliced, layer, config):
            for linear in block.inputs:
                set_weight_(linear, linear.weight[:, :size])
            axes = size if block.post_weight_H is not None else block.shortcut.out_features
            set_output_axes_(block.output, torch.eye(config.hidden_size, axes, dtype=torch.float64))
        decoder.layers[index] = sliced


def structure_of(config: "PretrainedConfig") -> Structure:
    return STRUCTURES[config.model_type.removeprefix(PREFIX)]


@functools.cache
def _classes(model_type: str) -> tuple[Any, Any]:
    """(config class, model class) of the sliced form of a model type."""
    base_config: Any = CONFIG_MAPPING[model_type]
    base_model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[base_config]

    class SlicedConfig(base_config):
        sliced_hidden_size: int | None = None

    class SlicedModel(base_model):
        _no_split_modules = [SlicedDecoderLayer.__name__]  # noqa: RUF012

        def __init__(self, config: "PretrainedConfig") -> None:
            super().__init__(config)
            _narrow_(self.model, config)

    SlicedConfig.model_type = PREFIX + model_type
    SlicedModel.config_class = SlicedConfig
    for sliced, base in ((SlicedConfig, base_config), (SlicedModel, base_model)):
        sliced.__name__ = sliced.__qualname__ = f"SliceGpt{base.__name__}"
    return SlicedConfig, SlicedModel


for _model_type in STRUCTURES:
    _config_class, _model_class = _classes(_model_type)
    AutoConfig.register(PREFIX + _model_type, _config_class)
    AutoModelForCausalLM.register(_config_class, _model_class)
