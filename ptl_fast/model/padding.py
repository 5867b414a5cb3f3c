"""Padding tokens without an embedding: a tokenizer was given a padding token, and the model was not
made larger. No text has such a token, and no result depends on which one fills up a batch; but
looking it up ends the run. So another one is used.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def replace_padding_(tokenizer: "PreTrainedTokenizerBase", num_embeddings: int) -> None:
    """Have the tokenizer pad with its end-of-sequence token, or else with token 0, if its padding
    token has no embedding. In memory alone: the result gets the original's files.
    """
    if _has_embedding(tokenizer.pad_token_id, num_embeddings):
        return
    end = tokenizer.eos_token_id
    usable = end is not None and _has_embedding(end, num_embeddings)
    tokenizer.pad_token = tokenizer.eos_token if usable else tokenizer.convert_ids_to_tokens(0)


def drop_padding_(config: "PretrainedConfig") -> bool:
    """Have a config name no padding token, if it names one without an embedding: with such a config
    transformers builds no Llama. Returns whether it did.
    """
    text = config.get_text_config()
    # not every config has both
    token, size = (getattr(text, name, None) for name in ("pad_token_id", "vocab_size"))
    drops = size is not None and not _has_embedding(token, size)
    if drops:
        config.pad_token_id = text.pad_token_id = None
    return drops


def drop_generated_padding_(model: "PreTrainedModel") -> None:
    """The same for the generation config, which names the token that fills up shorter answers."""
    generation, text = model.generation_config, model.config.get_text_config()
    if generation is not None and not _has_embedding(generation.pad_token_id, text.vocab_size):
        generation.pad_token_id = None


def _has_embedding(token: int | None, num_embeddings: int) -> bool:
    """Whether a token, if there is one, can be looked up; -1 stands for none in some configs."""
    return token is None or token < num_embeddings
