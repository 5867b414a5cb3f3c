"""What a plan reads out of a round's statistics."""

import torch

from ptl_fast.run import neuron_scores
from support.settings import settings

SCORES_LI = torch.tensor([[2.0, 8.0, 4.0, 6.0]], dtype=torch.float64)


def test_scores_alone_protect_nothing_and_leave_the_number_to_the_schedule() -> None:
    config = settings(scorer="activation")
    found = neuron_scores.of_tensors(config, {"scores": SCORES_LI})
    assert torch.equal(found.values, SCORES_LI)
    assert found.protected_LK is found.redundant_LI is None
    assert not found.redundant_only
    assert found.width_multiple == 128


def test_the_highest_of_the_protected_text_are_protected() -> None:
    config = settings(scorer="activation", protect_share=0.5)
    kept = {"scores": SCORES_LI, "protect_scores": -SCORES_LI}
    found = neuron_scores.of_tensors(config, kept)
    assert found.protected_LK is not None
    assert sorted(found.protected_LK[0].tolist()) == [0, 2]


def test_a_threshold_is_per_token() -> None:
    config = settings(scorer="activation", threshold=2.0)
    kept = {"scores": SCORES_LI, "num_tokens": torch.tensor(4)}
    found = neuron_scores.of_tensors(config, kept)
    assert found.redundant_LI is not None
    assert found.redundant_LI.tolist() == [[True, False, True, False]]
    assert found.redundant_only
