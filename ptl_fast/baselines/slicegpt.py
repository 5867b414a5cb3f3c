"""SliceGPT (arXiv 2401.15024), a baseline: PCA of the residual stream, keeping the leading axes.

Method. Once the RMSNorm weights are folded into the linear layers behind them, a transformer
computes the same function if the residual stream x between two blocks is replaced by x Q with an
orthogonal Q: the norm is unchanged, ||x Q|| = ||x||, and the weights on both sides absorb Q. Every
block (attention or FFN) has a Q of its own, for its input, so the residual connection needs the
matrix Q_in^T Q_out, the *shortcut*. Slicing keeps the first D columns of each Q.

As in the authors' code, Q holds the principal axes of the uncentred, unnormalised stream,
calibration data passes through the layers that are already sliced, and the stream before the
language-model head is not sliced, so final norm and head stay as they are.

Checkpoints. A sliced model's model_type is ``slicegpt_`` plus the original's, which transformers
does not know until ``import ptl_fast.slicegpt`` registers it with the Auto classes. In its config
``hidden_size`` stays the original's, and ``sliced_hidden_size`` is D.

Shape suffixes: T tokens, H hidden size, D sliced hidden size, O width of a block's output (D, or H
in the last block).
"""

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
HIDDEN_MULTIPLE = 8  # a sliced hidden size is a multiple of this, as in SliceGPT's code
ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj")
FFN_INPUTS = ("gate_proj", "up_proj")


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Where a model type's decoder layer has norms (attribute names), and how it scales by them."""

    ffn_norm: str = "post_attention_layernorm"
    """The norm before the FFN; the one before attention is input_layernorm everywhere."""
    attention_post_norm: str | None = None
    """The norm between attention's output and the residual addition, if there is one."""
    ffn_post_norm: str | None = None
    """The same for the FFN."""
    norm_offset: float = 0.0
    """A norm multiplies by norm_offset + weight: 1 in Gemma, whose weights start at 0."""


LLAMA = Structure()
GEMMA2 = Structure(
    ffn_norm="pre_feedforward_layernorm",
    attention_post_norm="post_attention_layernorm",
    ffn_post_norm="post_feedforward_layernorm",
    norm_offset=1.0,
)
STRUCTURES = {"llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA, "gemma2": GEMMA2}


class RootMeanSquare(nn.Module):
    """RMSNorm without a weight: x / sqrt(sum(x^2) / hidden_size + eps), computed in float32.

    Input (..., D), output the same shape and dtype. ``hidden_size`` is the original H although x is
    narrower: the D kept coordinates hold nearly all of ||x||, so their sum of squares divided by H
    is nearly the original mean square. Dividing by D would make every block's input too small.
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.hidden_size, self.eps = hidden_size, eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        exact = hidden_states.float()
        mean_square = exact.square().sum(-1, keepdim=True) / self.hidden_size
        return (exact * torch.rsqrt(mean_square + self.eps)).type_as(hidden_states)


class PostNorm(nn.Module):
    """A norm after a block (Gemma 2), before the residual addition: (..., D) -> (..., O).

    Its weight w cannot be folded into the block before it, because the norm comes between them. So
    the block's output is rotated and sliced into its own principal axes P, which hardly changes its
    norm. After normalisation one matrix, P^T diag(w) Q_out, goes back to the original axes, applies
    w, and goes on to the residual stream's axes.
    """

    def __init__(self, hidden_size: int, eps: float, rotation: nn.Linear) -> None:
        super().__init__()
        self.norm, self.rotation = RootMeanSquare(hidden_size, eps), rotation

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.rotation(self.norm(hidden_states))


class SlicedDecoderLayer(GradientCheckpointingLayer):
    """A decoder layer on the rotated and sliced residual stream: (..., D) -> (..., output_size).

    It takes over the original layer's attention and FFN modules, and adds shortcuts and weightless
    norms. Its new weights are uninitialised: slicing or a checkpoint must set them.

    Args:
        layer: the original decoder layer.
        config: the sliced model's, with ``sliced_hidden_size``.
        output_size: D, or H in the last layer, as the stream before the head is not sliced.
    """

    def __init__(self, layer: Any, config: "PretrainedConfig", output_size: int) -> None:
        super().__init__()
        structure, hidden_size, eps = structure_of(config), config.hidden_size, config.rms_norm_eps
        self.self_attn, self.mlp = layer.self_attn, layer.mlp
        self.norm = RootMeanSquare(hidden_size, eps)
        # new weights go where the layer's own are: layers may be on several devices
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
        """Norm and attention, without post-norm and shortcut."""
        return self.self_attn(hidden_states=self.norm(hidden_states), **arguments)[0]

    def feed_forward(self, hidden_states: Tensor) -> Tensor:
        """Norm and FFN, without post-norm and shortcut."""
        return self.mlp(self.norm(hidden_states))

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        # both additions need the shortcut: input and output axes of a block differ
        attended = self.attention_post(self.attend(hidden_states, **arguments))
        hidden_states = self.attention_shortcut(hidden_states) + attended
        return self.ffn_shortcut(hidden_states) + self.ffn_post(self.feed_forward(hidden_states))


def sliced_size(share: float, hidden_size: int) -> int:
    """Return ``share`` (--slice-hidden) of hidden_size, rounded to a multiple of HIDDEN_MULTIPLE.

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
    """Whether a config is that of a sliced model."""
    return config.model_type.startswith(PREFIX)


def sliced_config(config: "PretrainedConfig", sliced_hidden_size: int) -> "PretrainedConfig":
    """Return the config of the sliced model, for ``AutoModelForCausalLM.from_config``.

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
    # not part of to_dict
    sliced._attn_implementation = config._attn_implementation
    return sliced


@dataclass(kw_only=True)
class Block:
    """Attention or FFN of one layer, with the modules and norm weights that slicing it changes."""

    inputs: list[nn.Linear]
    """Projections that read the normalised stream: q, k, v, or gate and up."""
    output: nn.Linear
    """Projection whose output is added to the stream: o, or down."""
    norm_weight_H: Tensor
    """float64: the factors of the norm before the block, norm_offset included."""
    post_weight_H: Tensor | None
    """float64: the factors of the norm after the block, if there is one."""
    post: Any
    """The sliced layer's ``PostNorm``, or an identity."""
    shortcut: nn.Linear
    """The matrix on the residual connection around the block."""
    run: Callable[[Tensor, dict[str, Any]], Tensor]
    """(stream, the layer's keyword arguments) -> the block's output before ``post``."""


def blocks(sliced: SlicedDecoderLayer, layer: nn.Module, config: "PretrainedConfig") -> list[Block]:
    """Return the attention block and the FFN block of a layer, in this order.

    Args:
        sliced: the layer that is being made.
        layer: the original layer, which still has the norms' weights.
    """
    structure = structure_of(config)

    def factor(name: str) -> Tensor:
        """The factors of the layer's norm ``name``, (H,) float64."""
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
    """Express a linear layer's output in the axes ``basis_HO`` (float64), in place."""
    set_weight_(linear, basis_HO.T @ linear.weight.double())
    if linear.bias is not None:
        linear.bias = nn.Parameter((linear.bias.double() @ basis_HO).to(linear.bias.dtype))


def set_weight_(linear: nn.Linear, weight: Tensor) -> None:
    """Replace a linear layer's weight, with another shape; the layer keeps its dtype."""
    linear.weight = nn.Parameter(weight.to(linear.weight.dtype).contiguous())
    linear.out_features, linear.in_features = weight.shape


def _narrow_(decoder: Any, config: "PretrainedConfig") -> None:
    """Give a newly built decoder the sliced shapes in place, so that a checkpoint can be loaded."""
    size, last = config.sliced_hidden_size, config.num_hidden_layers - 1
    decoder.embed_tokens = nn.Embedding(config.vocab_size, size, decoder.padding_idx)
    for index, layer in enumerate(decoder.layers):
        sliced = SlicedDecoderLayer(layer, config, config.hidden_size if index == last else size)
        for block in blocks(sliced, layer, config):
            for linear in block.inputs:
                set_weight_(linear, linear.weight[:, :size])
            # values do not matter: an identity gives output weights and biases their shapes
            axes = size if block.post_weight_H is not None else block.shortcut.out_features
            set_output_axes_(block.output, torch.eye(config.hidden_size, axes, dtype=torch.float64))
        decoder.layers[index] = sliced


def structure_of(config: "PretrainedConfig") -> Structure:
    """The structure of a model type, sliced or not."""
    return STRUCTURES[config.model_type.removeprefix(PREFIX)]


@functools.cache
def _classes(model_type: str) -> tuple[Any, Any]:
    """Make (config class, model class) for the sliced form of a model type.

    Cached, as the Auto classes and a model's config must refer to the same class objects.
    """
    base_config: Any = CONFIG_MAPPING[model_type]
    base_model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[base_config]

    class SlicedConfig(base_config):
        sliced_hidden_size: int | None = None

    class SlicedModel(base_model):
        _no_split_modules = [SlicedDecoderLayer.__name__]  # noqa: RUF012

        def __init__(self, config: "PretrainedConfig") -> None:
            super().__init__(config)
            _narrow_(self.model, config)

    # class names appear in error messages and in a checkpoint's "architectures"
    SlicedConfig.model_type = PREFIX + model_type
    SlicedModel.config_class = SlicedConfig
    for sliced, base in ((SlicedConfig, base_config), (SlicedModel, base_model)):
        sliced.__name__ = sliced.__qualname__ = f"SliceGpt{base.__name__}"
    return SlicedConfig, SlicedModel


# at import, so that from_pretrained knows the types (ptl_fast.slicegpt imports this file for it)
for _model_type in STRUCTURES:
    _config_class, _model_class = _classes(_model_type)
    AutoConfig.register(PREFIX + _model_type, _config_class)
    AutoModelForCausalLM.register(_config_class, _model_class)
