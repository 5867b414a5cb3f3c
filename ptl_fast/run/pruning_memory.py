"""How much memory pruning needs, with --stream and without, from the model's config alone."""

from typing import TYPE_CHECKING

from ptl_fast.base import memory
from ptl_fast.baselines import SCORERS
from ptl_fast.model import flops
from ptl_fast.model.widths import ffn_width, num_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ptl_fast.config.config import Config
    from ptl_fast.run.gpus import Gpu

# hidden states before and behind a layer are in memory up to this, and else in files
STATES_BYTES = memory.GIB
# blocks of rows while neurons are eliminated
BLOCK_BYTES = memory.GIB // 4


def streaming_bytes(original: "PretrainedConfig", config: "Config", itemsize: int = 2) -> int:
    """Estimate the most memory that walking the original's layers takes, without the process'
    own: the first round's, as later ones have smaller layers.

    Args:
        itemsize: bytes of a weight in the computation.
    """
    hidden, width = original.hidden_size, ffn_width(original)
    states = 2 * config.score.calibration_tokens * hidden * itemsize
    states = states if states <= STATES_BYTES else 0
    # a Gram matrix and its inverse, the down projection and its squares, all in fp64
    matrices = 2 * 8 * width**2 + 2 * 8 * hidden * width + BLOCK_BYTES
    matrices = matrices if reads_grams(config) else 0
    embedding = original.vocab_size * hidden * itemsize
    return states + max(embedding, layer_bytes(original, itemsize) + matrices)


def reads_grams(config: "Config") -> bool:
    """Whether scoring or compensation needs the layers' Gram matrices."""
    return config.prune.compensate or SCORERS[config.score.scorer].reads_grams


def num_ffns(original: "PretrainedConfig") -> int:
    """FFNs with a Gram matrix of their own: one in each layer, or as many as it has experts."""
    return original.num_hidden_layers * (num_experts(original) or 1)


def layer_bytes(original: "PretrainedConfig", itemsize: int) -> int:
    """Bytes of a decoder layer's weights, the mean one's."""
    embedding = original.vocab_size * original.hidden_size
    # embedding and head, if it has one of its own
    outside = embedding * (1 if original.tie_word_embeddings else 2)
    num_parameters = flops.count_weights(original).num_parameters
    return itemsize * (max(0, num_parameters - outside) // original.num_hidden_layers)


def num_at_once(
    original: "PretrainedConfig", config: "Config", device: "Gpu", itemsize: int = 2
) -> int:
    """How many FFNs' Gram matrices are collected in a pass over the corpus in the first round:
    those that fit on the device beside the model, and what elimination needs.
    """
    size = 8 * ffn_width(original) ** 2
    total = min(memory.GIB * device.memory_gib, config.model.memory_bytes or memory.UNLIMITED)
    left = memory.SHARE * (total - itemsize * flops.count_weights(original).num_parameters)
    return min(max(1, int(left) // size - 2), num_ffns(original))


def grams_line(original: "PretrainedConfig", config: "Config", device: "Gpu") -> str:
    """The dry run's sentence about the Gram matrices of the first round; "" if it reads none.

    Args:
        device: it also holds the model in bf16.
    """
    if not reads_grams(config) or config.prune.keep == 1 or config.model.stream:
        return ""
    size, number = 8 * ffn_width(original) ** 2, num_ffns(original)
    at_once = num_at_once(original, config, device)
    passes = -(-number // at_once)
    again = ", and again to compensate" if passes > 1 else ""
    return (
        f"Gram matrices of the first round: {number} of {memory.in_words(size)}, {at_once} at a"
        f" time beside the model in bf16: {passes} pass{'es' * (passes > 1)} over"
        f" --calibration-tokens to score{again}."
    )


def line(original: "PretrainedConfig", config: "Config") -> str:
    """The dry run's sentence about it."""
    needed = streaming_bytes(original, config) / memory.GIB
    return (
        f"--stream: pruning needs about {needed:.1f} GiB (bf16, one layer at a time; an estimate),"
        " however many layers there are; evaluation needs the smaller model, and so does"
        " recovery, but for cpt with zero3 on several ranks."
    )
