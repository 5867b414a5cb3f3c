"""Weights of tokens, to be told apart by every test that sums over them."""

import dataclasses

import torch

from ptl_fast.data.packing import PackedTokens


def with_weights(tokens: PackedTokens) -> PackedTokens:
    """The same tokens with random weights, some of them 0; padding has a weight too, which must not
    count.
    """
    generator = torch.Generator().manual_seed(9)
    weights = torch.rand(tokens.mask.shape, generator=generator) * 3
    return dataclasses.replace(tokens, weights=weights.where(weights > 0.3, 0.0))
