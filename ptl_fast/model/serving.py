"""What answering with a model takes: bytes of weights and KV cache, and time by a roofline.

From a config alone, as in flops.py. Attention windows are not subtracted: every layer is taken to
attend to, and keep, the whole context.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptl_fast.model.flops import Weights, attention_widths, count_weights
from ptl_fast.model.parts import parameters_beside

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Upper bounds for safetensors: 9 to 16 tensors a layer, and a line of about 110 bytes for each.
LAYER_TENSORS, HEADER_BYTES = 24, 128


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What a device reaches at best."""

    flops: float
    """Per second."""
    bytes: float
    """Of memory, per second."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A batch of prompts that is answered."""

    batch: int
    prompt: int
    """Tokens."""
    new_tokens: int


class Serving:
    """A model that answers.

    Args:
        item_bytes: of a number of its weights and of its KV cache.
    """

    def __init__(self, config: "PretrainedConfig", item_bytes: int) -> None:
        self.config, self.item_bytes = config, item_bytes
        self.weights: Weights = count_weights(config)
        query, key_value = attention_widths(config)
        self.attention_flops = 4 * query * config.num_hidden_layers
        """Of one token, for each token that it attends to."""
        self.token_bytes = 2 * key_value * config.num_hidden_layers * item_bytes
        """Keys and values of one token in all layers."""

    @property
    def weight_bytes(self) -> int:
        """All weights; tied ones once."""
        return self.weights.num_parameters * self.item_bytes

    @property
    def file_bytes(self) -> int:
        """A file of the weights, whose header takes about HEADER_BYTES for each tensor."""
        num_tensors = LAYER_TENSORS * self.config.num_hidden_layers
        return self.weight_bytes + HEADER_BYTES * num_tensors

    def memory_bytes(self, batch: int, context: int) -> int:
        """Weights, and the KV cache of ``batch`` sequences of ``context`` tokens."""
        return self.weight_bytes + batch * context * self.token_bytes

    def flops_per_token(self, context: float) -> float:
        """Of a token that attends to ``context`` tokens, with the language-model head."""
        return 2 * (self.weights.decoder + self.weights.head) + self.attention_flops * context

    def seconds(self, work: Work, peaks: Peaks) -> float:
        """The roofline of answering: the longer of FLOPs and bytes, of the prompts' pass and of
        each new token's, which all are taken to be the one halfway.
        """
        context = work.prompt + work.new_tokens / 2
        head = 2 * self.weights.head
        # only the last token of a prompt needs its logits
        prompt = self.flops_per_token(work.prompt / 2) - head
        prefill = self._pass_seconds(
            work.batch * (work.prompt * prompt + head), work.batch * work.prompt, peaks
        )
        step = self._pass_seconds(
            work.batch * self.flops_per_token(context), work.batch * context, peaks
        )
        # the prompts' pass gives the first new token
        return prefill + (work.new_tokens - 1) * step

    def _pass_seconds(self, num_flops: float, num_cached: float, peaks: Peaks) -> float:
        num_bytes = self._read_bytes + num_cached * self.token_bytes
        return max(num_flops / peaks.flops, num_bytes / peaks.bytes)

    @property
    def _read_bytes(self) -> int:
        """The weights that a pass over text reads: of an embedding that is not the head, single
        rows, and none of a vision tower.
        """
        embedding = 0 if self.config.tie_word_embeddings else self.weights.head
        unread = embedding + (parameters_beside(self.config) or 0)
        return self.weight_bytes - unread * self.item_bytes
