"""What a run says of its experts' tokens."""

import torch

from ptl_fast.run.expert_choice import spread_line


def test_the_spread_is_of_each_layers_own_tokens() -> None:
    tokens_ME = torch.tensor([[1, 3, 0, 4], [100, 100, 100, 100]])
    assert spread_line(2, tokens_ME) == (
        "Round 2: of a layer's routed tokens, 0.0% to 50.0% went to an expert (1 of 8 got none)."
    )
