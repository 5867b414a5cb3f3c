"""Parameters, FLOPs and bytes of a model by formula, from its config alone."""

from typing import TYPE_CHECKING

import torch

from ptl_fast.model.flops import model_size

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class ModelSize:
    """What a model holds, and what its passes compute and must at least move."""

    def __init__(self, config: "PretrainedConfig", dtype: torch.dtype) -> None:
        self.config, self.dtype = config, dtype
        # FLOPs per token are linear in the context: those of two contexts give all others
        self.at_context_0, self.at_context_1 = (model_size(config, context) for context in (0, 1))

    def as_dict(self) -> dict[str, int]:
        """The sizes, for the results."""
        names = ("num_parameters", "num_layers", "width")
        return {
            **{name: self.at_context_0[name] for name in names},
            "weight_bytes": self.weight_bytes,
            "cache_bytes": self.cache_bytes,
        }

    @property
    def weight_bytes(self) -> int:
        """Weights that every pass reads. Of an embedding that is not tied to the head, a pass reads
        single rows, so it does not count.
        """
        config = self.config
        embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
        return (self.at_context_0["num_parameters"] - embedding) * self.dtype.itemsize

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token in every layer."""
        config = self.config
        head_dim = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        num_key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return 2 * config.num_hidden_layers * num_key_heads * head_dim * self.dtype.itemsize

    def prefill(self, batch_size: int, length: int) -> dict[str, int]:
        """{flops, num_bytes} of a pass over a prompt: a token attends to half of it on average, and
        only the last one's logits are computed.
        """
        head = 2 * self.config.hidden_size * self.config.vocab_size
        flops = batch_size * (length * (self._flops_per_token(length // 2) - head) + head)
        num_bytes = self.weight_bytes + batch_size * length * self.cache_bytes
        return {"flops": flops, "num_bytes": num_bytes}

    def decode(self, batch_size: int, context: int) -> dict[str, int]:
        """{flops, num_bytes} of a decode step: a token for each of ``batch_size`` sequences, which
        attends to ``context`` tokens.
        """
        flops = batch_size * self._flops_per_token(context)
        num_bytes = self.weight_bytes + batch_size * context * self.cache_bytes
        return {"flops": flops, "num_bytes": num_bytes}

    def _flops_per_token(self, context: int) -> int:
        without = self.at_context_0["flops_per_token"]
        return without + context * (self.at_context_1["flops_per_token"] - without)
