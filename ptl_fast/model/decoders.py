"""Causal language models of text decoders that transformers has inside a whole alone, such as those
of Qwen2.5-VL: its text model with a head, under the config of the text.
"""

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig


def provide_class(config: "PretrainedConfig") -> bool:
    """Have ``AutoModelForCausalLM`` build the model of a text decoder's config; returns whether it
    can, which is where transformers has at least its text model without a head.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    config_class: Any = type(config)
    if config_class in AutoModelForCausalLM._model_mapping:
        return True
    if config_class not in AutoModel._model_mapping:
        return False
    made = _with_head(AutoModel._model_mapping[config_class], config_class)
    # exist_ok: transformers otherwise passes over configs of its own without a word
    AutoModelForCausalLM.register(config_class, made, exist_ok=True)
    return True


def pack_positions_(base: "nn.Module", config: "PretrainedConfig") -> None:
    """Have a text model whose positions are of three kinds (multimodal rotary embeddings) take
    those of packed text for what they are: it separates documents by a fourth kind alone.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    if "mrope_section" in rope:
        base.register_forward_pre_hook(_with_text_positions, with_kwargs=True)


def _with_text_positions(module: "nn.Module", args: tuple, kwargs: dict[str, Any]) -> Any:
    positions = kwargs.get("position_ids")
    if positions is None or positions.dim() != 2:
        return None
    return args, {**kwargs, "position_ids": positions[None].expand(4, -1, -1)}


@functools.cache
def _with_head(base: Any, of_text: Any) -> Any:
    """The class of a text model with a head, tied to the embedding if the config says so.

    Cached, as the Auto class and a model must have the same class object.
    """
    from torch import nn
    from transformers import GenerationMixin
    from transformers.modeling_outputs import CausalLMOutputWithPast

    class TextForCausalLM(base.__base__, GenerationMixin):
        config_class = of_text
        base_model_prefix = "model"
        _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

        def __init__(self, config: "PretrainedConfig") -> None:
            super().__init__(config)
            self.model = base(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            self.post_init()

        # generation and the Trainer look at the names of what it takes
        def forward(
            self,
            input_ids: Any = None,
            attention_mask: Any = None,
            position_ids: Any = None,
            past_key_values: Any = None,
            inputs_embeds: Any = None,
            labels: Any = None,
            use_cache: bool | None = None,
            logits_to_keep: Any = 0,
            **kwargs: Any,
        ) -> CausalLMOutputWithPast:
            outputs = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **kwargs,
            )
            # -0 is all of them
            last = isinstance(logits_to_keep, int)
            kept = slice(-logits_to_keep, None) if last else logits_to_keep
            logits = self.lm_head(outputs.last_hidden_state[:, kept])
            size, loss = self.config.vocab_size, None
            if labels is not None:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=size, **kwargs)
            return CausalLMOutputWithPast(
                loss=loss,
                logits=logits,
                past_key_values=outputs.past_key_values,
                hidden_states=outputs.hidden_states,
                attentions=outputs.attentions,
            )

    # the name tells transformers which loss it has, and appears in error messages
    TextForCausalLM.__name__ = base.__name__.removesuffix("Model") + "ForCausalLM"
    TextForCausalLM.__qualname__ = TextForCausalLM.__name__
    # where transformers looks up whether its experts can be computed in several ways
    TextForCausalLM.__module__ = base.__module__
    return TextForCausalLM
