"""How much memory pruning needs, with --stream and without, from the model's config alone."""

from typing import TYPE_CHECKING

from ptl_fast.base import memory
from ptl_fast.baselines import SCORERS
from ptl_fast.model import flops
from ptl_fast.model.widths import ffn_width

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ptl_fast.config.config import Config

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
    embedding = original.vocab_size * hidden
    # embedding and head, if it has one of its own
    outside = embedding * (1 if original.tie_word_embeddings else 2)
    num_parameters = flops.count_weights(original).num_parameters
    layer = max(0, num_parameters - outside) // original.num_hidden_layers
    states = 2 * config.score.calibration_tokens * hidden * itemsize
    states = states if states <= STATES_BYTES else 0
    # a Gram matrix and its inverse, the down projection and its squares, all in fp64
    matrices = 2 * 8 * width**2 + 2 * 8 * hidden * width + BLOCK_BYTES
    return states + max(embedding * itemsize, layer * itemsize + matrices)


def grams_line(original: "PretrainedConfig", config: "Config", gpu_bytes: int) -> str:
    """The dry run's sentence about the Gram matrices of the first round; "" if it reads none.

    Args:
        gpu_bytes: memory of the device, which also holds the model in bf16.
    """
    reads = config.prune.compensate or SCORERS[config.score.scorer].reads_grams
    if not reads or config.prune.keep == 1 or config.model.stream:
        return ""
    size, num_layers = 8 * ffn_width(original) ** 2, original.num_hidden_layers
    left = memory.SHARE * (gpu_bytes - 2 * flops.count_weights(original).num_parameters)
    at_once = min(max(1, int(left) // size - 2), num_layers)
    passes = -(-num_layers // at_once)
    again = ", and again to compensate" if passes > 1 else ""
    return (
        f"Gram matrices of the first round: {num_layers} of {memory.in_words(size)}, {at_once} at a"
        f" time beside the model in bf16: {passes} pass{'es' * (passes > 1)} over"
        f" --calibration-tokens to score{again}."
    )


def line(original: "PretrainedConfig", config: "Config") -> str:
    """The dry run's sentence about it."""
    needed = streaming_bytes(original, config) / memory.GIB
    return (
        f"--stream: pruning needs about {needed:.1f} GiB (bf16, one layer at a time; an estimate),"
        " however many layers there are; evaluation and recovery need the smaller model."
    )
