"""Scores of other structured pruning methods, to compare with: docs/peers.md says what they are.

In the formulas, a[t, i] is the activation of neuron i at token t, the input of the down projection
W_down. FLAP's score is ``scoring.scorers.fluctuation``; its bias is in flap.py.
"""

from typing import TYPE_CHECKING

from ptl_fast.model.families import feed_forwards

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

    from ptl_fast.scoring.evidence import Evidence


FLAP_PREFIX = "flap_"
# the types for which flap.py has a form with a bias
FLAP_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3")


def minitron(evidence: "Evidence") -> "Tensor":
    """score[l, i] = sqrt(mean over documents of (mean over tokens of |a[t, i]|)^2).

    Minitron (arXiv 2407.14679): mean over a sequence, L2 norm over the batch, as NVIDIA's Model
    Optimizer computes it. The L2 norm is divided by the square root of the number of documents,
    which changes no rank, so that a threshold does not depend on the corpus's size.
    """
    statistics = evidence.statistics
    assert statistics.document_LI is not None
    assert statistics.num_documents is not None
    return (statistics.document_LI / statistics.num_documents).sqrt()


def wanda(evidence: "Evidence") -> "Tensor":
    """score[l, i] = sum_h |W_down[h, i]| * sqrt(sum_t a[t, i]^2).

    Wanda's score of a weight (arXiv 2306.11695), summed over the neuron's column of the down
    projection: the structured form that FLAP's authors compare with (Wanda-sp; they take the mean
    over the column, which changes no rank). ``output-change`` has the column's L2 norm instead.
    """
    import torch

    from ptl_kernels import matrix

    ffns = feed_forwards(evidence.model, evidence.family).values()
    columns_LI = torch.stack(
        [matrix(ffn.down).detach().double().abs().sum(0).cpu() for ffn in ffns]
    )
    return columns_LI * evidence.statistics.square_LI.sqrt()


def llm_pruner(evidence: "Evidence") -> "Tensor":
    """score[l, i] = sum over neuron i's weights of |w * dL/dw|.

    LLM-Pruner (arXiv 2305.11627), element-wise and of first order (``--taylor param_first``),
    summed over the coupled structure: the rows of gate and up, the column of down. L is the mean
    loss over the corpus's predicted tokens, so dL/dw is a sum over tokens of both signs, unlike in
    ``gradient``.
    """
    statistics = evidence.statistics
    assert statistics.weight_gradient_LI is not None
    assert statistics.num_predicted is not None
    return statistics.weight_gradient_LI / statistics.num_predicted


def check_flap(config: "PretrainedConfig") -> None:
    """Raise ValueError if the down projections of this model type cannot have a bias."""
    model_type = config.model_type
    if model_type.removeprefix(FLAP_PREFIX) not in FLAP_TYPES:
        raise ValueError(
            f"--scorer flap is not possible for model_type {model_type}; it knows"
            f" {', '.join(FLAP_TYPES)}; a type with the same FFN needs a place in FLAP_TYPES"
            " (ptl_fast/baselines/peers.py); --scorer fluctuation is the same without a bias"
        )
