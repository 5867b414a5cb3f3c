"""The text decoder inside a model of several parts, such as one with a vision tower.

A run compresses the decoder alone: an ordinary causal language model, whose modules and config are
those inside the whole. So whatever becomes of the decoder has become of the whole, which is what is
saved; its other parts stay as they were loaded. Of any other model, the whole is the decoder.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptl_fast.base import json_text
from ptl_fast.base.console import reason
from ptl_fast.model.auto_classes import auto_class, has_parts
from ptl_fast.model.decoders import pack_positions_, provide_class
from ptl_fast.model.layers import on_meta

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

# Types whose whole computes other logits on text than its decoder does alone, and why.
UNSCALED = "the whole does not scale its decoder's logits, which were trained with a scale"
OTHER_LOGITS = {"aya_vision": UNSCALED, "cohere2_vision": UNSCALED}
# How far they may be apart otherwise, as a part of the largest: both run the same modules.
TOLERANCE = 1e-2
# What a decoder's config has beside its own fields: the number of parameters of the other parts,
# and the Auto class of the whole.
BESIDE, LOADER = "parameters_beside", "whole_loaded_by"
WHOLE = "_whole_model"


def decoder_config(config: "PretrainedConfig") -> "PretrainedConfig":
    """The config of what is compressed: of a model of several parts that of its text decoder, if
    that can be taken out, with the number of the other parts' parameters; else the config itself.
    """
    if not has_parts(config):
        return config
    try:
        whole = on_meta(config)
        decoder = decoder_of(whole)
    except Exception:  # model classes raise many types; ``why_not`` tells them
        return config
    own = {id(parameter) for parameter in decoder.parameters()}
    text: Any = config.get_text_config()
    # what only the whole's config may say
    text.tie_word_embeddings = decoder.config.tie_word_embeddings
    if text.dtype is None:
        text.dtype = config.dtype
    others = (each.numel() for each in whole.parameters() if id(each) not in own)
    setattr(text, BESIDE, sum(others))
    setattr(text, LOADER, auto_class(config).__name__)
    return text


def parameters_beside(config: "PretrainedConfig") -> int | None:
    """How many parameters a model has beside the text decoder of this config, which
    ``decoder_config`` has told; None for a decoder that is a model alone.
    """
    return getattr(config, BESIDE, None)


def notes(config: "PretrainedConfig") -> list[str]:
    """What is done with the parts beside the text decoder of this config, in sentences."""
    number = parameters_beside(config)
    if number is None:
        return []
    return [
        f"Its text decoder ({config.model_type}) is compressed inside the whole model, on text"
        f" alone. The other parts, of {number:,} parameters, are neither pruned nor trained: they"
        " are saved as they are, and count as parameters, but not in FLOPs per token."
    ]


def loader(config: "PretrainedConfig") -> str:
    """The name of the Auto class that loads the whole model whose decoder has this config."""
    return getattr(config, LOADER, "AutoModelForCausalLM")


def saved_fields(folder: Path) -> dict[str, Any]:
    """What a model's config.json says; what its text decoder's config says comes first."""
    saved = json_text.loads((folder / "config.json").read_text())
    return {**saved, **(saved.get("text_config") or {})}


def why_not(config: "PretrainedConfig") -> str | None:
    """Why the text decoder of a model of several parts cannot be compressed inside it; None if it
    can, or if the model is no such model.
    """
    if not has_parts(config):
        return None
    try:
        decoder_of(on_meta(config))
    except Exception as error:  # model classes raise many types
        return reason(error)
    return None


def decoder_of(whole: "PreTrainedModel") -> "PreTrainedModel":
    """The text decoder of a model of several parts, as a causal language model that shares its
    modules, its config and its generation config; any other model as it is.

    Raises:
        ValueError: transformers has no such model, or its modules are not those inside the whole.
    """
    if not has_parts(whole.config):
        return whole
    if (other := OTHER_LOGITS.get(whole.config.model_type)) is not None:
        raise ValueError(other)
    config: Any = whole.config.get_text_config()
    decoder = _empty(whole, config)
    own_head, head = decoder.get_output_embeddings(), whole.get_output_embeddings()
    for name, module in list(decoder.named_children()):
        if any(True for _ in module.parameters()):
            setattr(decoder, name, head if module is own_head else _same_class(whole, module))
    if head is None or _tensors(decoder) - _tensors(whole):
        raise ValueError(f"its {type(decoder).__name__} has weights that the whole has not")
    pack_positions_(decoder.base_model, config)
    config.tie_word_embeddings = head.weight is decoder.get_input_embeddings().weight
    decoder.config, decoder.generation_config = config, whole.generation_config
    # past nn.Module's own way to set attributes: the whole is no part of the decoder
    vars(decoder)[WHOLE] = whole, config.architectures
    return decoder.train(whole.training)


def check_logits(decoder: "PreTrainedModel") -> None:
    """Raise ValueError unless a decoder computes the logits of the whole on a little text."""
    import torch

    whole: Any = whole_of(decoder)
    if whole is decoder:
        return
    ids_1T = torch.arange(16, device=decoder.device)[None] % decoder.config.vocab_size
    with torch.inference_mode():
        own, other = (each(input_ids=ids_1T, use_cache=False).logits for each in (decoder, whole))
    if not torch.allclose(own, other, rtol=0, atol=TOLERANCE * float(other.abs().max())):
        raise ValueError(
            f"{type(whole).__name__} computes other logits on text than {type(decoder).__name__}"
            " with the same weights, so its text decoder cannot be compressed inside it"
        )


def whole_of(model: "PreTrainedModel") -> "PreTrainedModel":
    """The model whose text decoder this is; any other model as it is."""
    if WHOLE not in vars(model):
        return model
    # a training puts another object in the place of the one, and its checkpoints set the other
    whole, architectures = vars(model)[WHOLE]
    whole.generation_config, model.config.architectures = model.generation_config, architectures
    return whole


def _empty(whole: "PreTrainedModel", config: "PretrainedConfig") -> Any:
    """A causal language model of the decoder's config, without weights."""
    from transformers import AutoModelForCausalLM

    if auto_class(whole.config) is AutoModelForCausalLM:
        raise ValueError("transformers has no class that loads all of its parts and reads text")
    if not provide_class(config):
        raise ValueError(f"transformers has no model of its decoder's type {config.model_type}")
    return on_meta(config)


def _same_class(whole: "PreTrainedModel", base: "nn.Module") -> "nn.Module":
    """The one module of the whole that is of the class of the decoder without its head."""
    found = [each for each in whole.modules() if type(each) is type(base)]
    if len(found) != 1:
        raise ValueError(
            f"{len(found)} of its modules are a {type(base).__name__}, which its decoder would be"
        )
    return found[0]


def _tensors(model: "nn.Module") -> set[int]:
    """The ids of all parameters and buffers."""
    return {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
