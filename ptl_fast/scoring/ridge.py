"""Choose the ridge of the least squares: the one whose refitted columns serve held-out tokens best.

With a width of 4864 and 14,000 tokens, a least squares that is nearly free of a ridge fits the
corpus to a tenth of a per cent of the output and unseen tokens of the same kind several times
worse. So a few tokens are set aside, columns are fitted on the others with each ridge of RIDGES,
and the one is taken that errs least on those set aside. Afterwards all tokens count.

Shape suffixes: I FFN width, K kept neurons, H hidden size, T held-out tokens, R ridges.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ptl_fast.base import distributed
from ptl_fast.config.score import RIDGE

if TYPE_CHECKING:
    from ptl_fast.data.batching import Batch

# a ridge is added to G's diagonal, as a fraction of its mean
RIDGES = (RIDGE, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
# where none, or every one, is set aside: errors are flat between a few hundredths and a few tenths
DEFAULT_RIDGE = 0.1
# one document or sequence of so many is set aside, up to about so many tokens of them
HELD_OUT_SHARE, HELD_OUT_TOKENS = 8, 2048
# of the activations' energy
NEGLIGIBLE = 1e-9
# the share of neurons that stays in the trial; which ridge is best hardly depends on it
TRIAL_KEEP = 0.5


class Choice(NamedTuple):
    """One layer's ridge, and what it was chosen by."""

    ridge: float
    """As a fraction of the mean of G's diagonal."""
    refitted: float
    """Of the held-out output's energy, the part lost when half of the neurons go and the others
    are refitted: ||Y - Y'||^2 / ||Y||^2.
    """
    plain: float
    """The same without refitting."""


def set_aside(batch: "Batch", num_tokens: int) -> Tensor:
    """Which of a batch's tokens choose the ridge, (rows, length) bool: whole rows, by what they
    say, so that neither the batch nor the rank matters, and equal documents stay together.

    Args:
        num_tokens: of the whole corpus.
    """
    share = max(HELD_OUT_SHARE, num_tokens // HELD_OUT_TOKENS)
    sums_R = batch.inputs["input_ids"].view(batch.mask.shape).where(batch.mask, 0).sum(1)
    return (sums_R % share == 0)[:, None] & batch.mask


def choose(gram_II: Tensor, down_HI: Tensor, held_TI: Tensor) -> Choice:
    """Choose one layer's ridge. Collective: every rank brings its own held-out tokens.

    Args:
        gram_II: G of all tokens, held-out ones included, without a ridge; fp64.
        down_HI: down projection, (hidden_size, width).
        held_TI: the held-out tokens' activations on this rank, those that G was made of; may have
            no row.
    """
    held_TI, down_HI = held_TI.double(), down_HI.detach().double()
    own = distributed.summed({"gram": held_TI.T @ held_TI})["gram"]
    share = own.trace() / gram_II.trace().clamp_min(torch.finfo(torch.float64).tiny)
    if not 0 < share < 1 - NEGLIGIBLE:
        return Choice(DEFAULT_RIDGE, 0.0, 0.0)
    errors = _errors(gram_II - own, down_HI, held_TI)
    *refitted, plain, energy = distributed.summed({"errors": errors})["errors"].tolist()
    best = min(range(len(RIDGES)), key=refitted.__getitem__)
    # all activations may be zero
    energy = energy or 1.0
    return Choice(RIDGES[best], refitted[best] / energy, plain / energy)


def tensors(choices: "dict[int, Choice]") -> dict[str, Tensor]:
    """The layers' choices by their names in a round's statistics.safetensors, each (num_layers,)
    fp64; empty where the ridge was given.
    """
    if not choices:
        return {}
    columns = zip(*(choices[layer] for layer in sorted(choices)), strict=True)
    names = ("ridge_L", "held_out_refitted_L", "held_out_plain_L")
    return {
        name: torch.tensor(column, dtype=torch.float64)
        for name, column in zip(names, columns, strict=True)
    }


def in_words(choices: "dict[int, Choice]") -> str:
    """What the layers chose, and what refitting is worth, in one sentence; empty if nothing was."""
    if not choices:
        return ""
    found = tensors(choices)
    ridge_L = found["ridge_L"]
    refitted, plain = found["held_out_refitted_L"].mean(), found["held_out_plain_L"].mean()
    return (
        f"ridge {ridge_L.min():g} to {ridge_L.max():g}, by held-out tokens: with half of the"
        f" neurons the FFNs' outputs are off by {refitted:.2%} of their energy, {plain:.2%} without"
        " refitting"
    )


def _errors(gram_II: Tensor, down_HI: Tensor, held_TI: Tensor) -> Tensor:
    """Squared errors of the held-out output, (R + 2,): with each ridge, without refitting, and of
    an output of zero.
    """
    output_TH = held_TI @ down_HI.T
    # those go whose own contribution to the output is least
    weight_I = gram_II.diagonal() * down_HI.square().sum(0)
    num_kept = max(1, round(TRIAL_KEEP * len(gram_II)))
    kept_K = weight_I.argsort(descending=True, stable=True)[:num_kept].sort().values
    held_TK, block_KK = held_TI[:, kept_K], gram_II[kept_K][:, kept_K]
    target_KH = gram_II[kept_K] @ down_HI.T
    mean = gram_II.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    columns = [
        *(_refitted(block_KK, target_KH, down_HI[:, kept_K], ridge * mean) for ridge in RIDGES),
        down_HI[:, kept_K].T,
        torch.zeros_like(target_KH),
    ]
    return torch.stack([(output_TH - held_TK @ each).square().sum() for each in columns])


def _refitted(block_KK: Tensor, target_KH: Tensor, down_HK: Tensor, added: Tensor) -> Tensor:
    """The kept neurons' columns, (K, H), by least squares with ``added`` on the diagonal."""
    block_KK = block_KK.clone()
    block_KK.diagonal().add_(added)
    # the ridge is in the target too: it draws the columns to those before, and not to zero
    target_KH = target_KH + added * down_HK.T
    return torch.cholesky_solve(target_KH, torch.linalg.cholesky(block_KK))
