"""Sizes that settings lead to."""

from benchmarks.methods.setup import Setup, num_parameters, planned
from support.demo_sizes import demo_parameters


def test_parameters_are_the_hand_computed_ones(setup: Setup) -> None:
    assert num_parameters({**setup.base, "keep": 0.5}) == demo_parameters(4, 384)
    assert planned(setup.base)[0]["num_parameters"] == demo_parameters(4, 768)
