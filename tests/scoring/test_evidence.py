"""What a scorer says of itself: which passes a round makes for it, and whether scores grow."""

import torch
from torch import Tensor

from ptl_fast.scoring.evidence import DURING_RECOVERY, Evidence, Scorer


def compute(evidence: Evidence) -> Tensor:
    raise AssertionError("only what is said of the scorer counts")


def test_statistics_of_a_recovery_serve_scorers_that_need_no_more() -> None:
    assert not Scorer(compute=compute).needs_own_pass
    assert not Scorer(compute=compute, needs=DURING_RECOVERY).needs_own_pass
    assert Scorer(compute=compute, needs=frozenset({"gradients"})).needs_own_pass
    assert Scorer(compute=compute, reads_grams=True).needs_own_pass
    assert Scorer(compute=compute, reads_samples=True).needs_own_pass


def test_a_root_of_a_sum_becomes_a_root_of_a_mean() -> None:
    scores_LI, num_tokens = torch.tensor([[6.0, 8.0]]), torch.tensor(4.0)
    grows = Scorer(compute=compute, grows_with_tokens=True)
    assert grows.per_token(scores_LI, num_tokens).tolist() == [[3.0, 4.0]]
    assert Scorer(compute=compute).per_token(scores_LI, num_tokens) is scores_LI
