"""Models of known shapes with random weights, so that speed can be measured without a download."""

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ptl_fast.model.families import resize_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

TWIN_SIZE = 8  # of a twin's heads and its FFN


class Shape(NamedTuple):
    """A published model, and the size to which a run compresses it."""

    model_type: str
    settings: dict[str, Any]
    """What differs from the defaults of transformers' config class."""
    width: int
    """FFN width of the compressed model."""
    layers: int
    """Decoder layers of the compressed model."""


# Sizes from the models' published config.json files. The compressed ones are what the FLOPs in the
# tables of arXiv 2602.04919 come to, at the nearest width that is a multiple of 128.
SHAPES = {
    "llama3-8b": Shape(
        "llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "max_position_embeddings": 8192,
        },
        width=9216,
        layers=30,
    ),
    "gemma2-9b": Shape(
        "gemma2",
        {
            "hidden_size": 3584,
            "intermediate_size": 14336,
            "num_hidden_layers": 42,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "vocab_size": 256000,
            "max_position_embeddings": 8192,
        },
        width=6272,
        layers=36,
    ),
    "qwen2.5-7b": Shape(
        "qwen2",
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
        },
        width=8960,
        layers=26,
    ),
    # for rehearsals
    "tiny": Shape(
        "llama",
        {
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 512,
            "max_position_embeddings": 2048,
        },
        width=128,
        layers=2,
    ),
}


def shape_config(name: str) -> "PretrainedConfig":
    """The config of a shape."""
    return AutoConfig.for_model(SHAPES[name].model_type, **SHAPES[name].settings)


def resized(
    config: "PretrainedConfig", width: int | None, num_layers: int | None
) -> "PretrainedConfig":
    """A copy with another FFN width and only the first layers; None leaves a size as it is.

    Raises:
        ValueError: a size is not in reach.
    """
    for flag, size, most in (
        ("--width", width, config.intermediate_size),
        ("--layers", num_layers, config.num_hidden_layers),
    ):
        if size is not None and not 1 <= size <= most:
            raise ValueError(f"{flag} {size} is outside 1 to {most}, the size of the dense model")
    smaller = copy.deepcopy(config)
    resize_config(
        smaller,
        width or config.intermediate_size,
        list(range(num_layers or config.num_hidden_layers)),
    )
    return smaller


def random_model(config: "PretrainedConfig", device: str, dtype: torch.dtype) -> "PreTrainedModel":
    """A model with random weights, made on its device: speed does not depend on the weights'
    values.
    """
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        return model.eval()


def tiny_twin(config: "PretrainedConfig") -> "PretrainedConfig":
    """A config with the same layers, heads and operations, each as small as it can be: its pass is
    the host's work.
    """
    twin = copy.deepcopy(config)
    twin.head_dim, twin.hidden_size = TWIN_SIZE, TWIN_SIZE * config.num_attention_heads
    twin.vocab_size = TWIN_SIZE
    # token ids must be inside the vocabulary
    twin.bos_token_id = twin.eos_token_id = twin.pad_token_id = 0
    resize_config(twin, TWIN_SIZE, list(range(config.num_hidden_layers)))
    if hasattr(twin, "sliced_hidden_size"):  # a model that SliceGPT compressed
        twin.sliced_hidden_size = TWIN_SIZE
    return twin
