"""FLAP's bias (arXiv 2312.11983), a baseline: removed neurons leave their mean contribution behind.

Without the neurons R, an FFN's output lacks sum_{i in R} a[t, i] W_down[:, i]. FLAP puts the mean
over the calibration tokens in its place, a constant: the bias sum_{i in R} mean_t(a[t, i])
W_down[:, i] of the down projection. Its score, ``scoring.scorers.fluctuation``, is how much the
activation varies around that mean.

Checkpoints. The down projections of most model types have no bias, so a model with one is of a type
of its own, ``flap_`` plus the original's, which transformers does not know until
``import ptl_fast.flap`` registers it with the Auto classes. Without the import it refuses the type,
where it would drop the biases of an ordinary one with a warning. A Llama whose config has mlp_bias
stays an ordinary checkpoint.

Shape suffixes: L layers, I FFN width, H hidden size.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from ptl_fast.baselines.peers import FLAP_PREFIX, FLAP_TYPES
from ptl_fast.model.families import Family, feed_forwards, find_family

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@torch.no_grad()
def add_bias_(
    model: "PreTrainedModel",
    family: Family,
    means_LI: Tensor | None,
    kept_neurons: Sequence[Sequence[int]] | None,
) -> None:
    """Give the down projections a bias and add what the neurons that will go contribute on average.

    The model changes in place, its class too where its type has no bias. Its neurons are removed
    afterwards, by compaction.

    Args:
        means_LI: mean activation of each neuron, (num_layers, width); None adds nothing.
        kept_neurons: the plan's; None if no neurons go.
    """
    ffns = list(feed_forwards(model, family).values())
    if any(ffn.down.bias is None for ffn in ffns):
        _become_biased_(model)
        for ffn in ffns:
            _give_bias_(ffn.down)
    if means_LI is None or kept_neurons is None:
        return
    for ffn, means_I, kept in zip(ffns, means_LI, kept_neurons, strict=True):
        gone_I = torch.ones_like(means_I, dtype=torch.bool)
        gone_I[list(kept)] = False
        weight_HI, bias_H = ffn.down.weight, ffn.down.bias
        lost_H = weight_HI.double() @ (means_I.double() * gone_I).to(weight_HI.device)
        # added in fp64: a later round's share may be small beside the bias that is there
        bias_H.copy_(bias_H.double() + lost_H)


def is_biased(config: "PretrainedConfig") -> bool:
    """Whether a config is that of a model which ``import ptl_fast.flap`` makes loadable."""
    return config.model_type.startswith(FLAP_PREFIX)


def _become_biased_(model: "PreTrainedModel") -> None:
    """Make the model one of its ``flap_`` type, in place: the same modules under another class."""
    config_class, model_class = _classes(model.config.model_type)
    # its modules share the config object, and so all of them have the new type
    model.config.__class__ = config_class
    model.__class__ = model_class


def _give_bias_(down: nn.Linear) -> None:
    """A bias of zeros, in the weight's dtype and on its device."""
    down.bias = nn.Parameter(torch.zeros_like(down.weight[:, 0]))


@functools.cache
def _classes(model_type: str) -> tuple[Any, Any]:
    """Make (config class, model class) for the form of a model type with a bias.

    Cached, as the Auto classes and a model's config must refer to the same class objects.
    """
    base_config: Any = CONFIG_MAPPING[model_type]
    base_model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[base_config]

    class BiasedConfig(base_config):
        down_bias: bool = True

    class BiasedModel(base_model):
        def __init__(self, config: "PretrainedConfig") -> None:
            super().__init__(config)
            for ffn in feed_forwards(self, find_family(self)).values():
                _give_bias_(ffn.down)

    # class names appear in error messages and in a checkpoint's "architectures"
    BiasedConfig.model_type = FLAP_PREFIX + model_type
    BiasedModel.config_class = BiasedConfig
    for biased, base in ((BiasedConfig, base_config), (BiasedModel, base_model)):
        biased.__name__ = biased.__qualname__ = f"Flap{base.__name__}"
    return BiasedConfig, BiasedModel


# at import, so that from_pretrained knows the types (ptl_fast.flap imports this file for it)
for _model_type in FLAP_TYPES:
    _config_class, _model_class = _classes(_model_type)
    AutoConfig.register(FLAP_PREFIX + _model_type, _config_class)
    AutoModelForCausalLM.register(_config_class, _model_class)
