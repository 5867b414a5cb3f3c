"""Which of transformers' Auto classes builds and loads the model of a config."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def auto_class(config: "PretrainedConfig") -> Any:
    """The Auto class of a config's whole model: of a text model with its vision tower, or audio
    encoder, the one that has all of its parts; of any other, the one for causal language models.
    """
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
    )

    wholes = (AutoModelForImageTextToText, AutoModelForMultimodalLM) if has_parts(config) else ()
    fitting = (each for each in wholes if type(config) in each._model_mapping)
    return next(fitting, AutoModelForCausalLM)


def has_parts(config: "PretrainedConfig") -> bool:
    """Whether a config is of a model of several parts, with a config inside for its text."""
    return config.get_text_config() is not config
