"""The studies' points."""

import pytest

from benchmarks.methods import studies
from benchmarks.methods.setup import Setup


def test_steps_keep_the_ratio_of_the_last_share_to_the_first(setup: Setup) -> None:
    """4 rounds that grow fourfold end at 64 times the first."""
    assert (
        studies.same_first_to_last_ratio(setup, 4)
        == studies.same_first_to_last_ratio(setup, 1)
        == {}
    )
    assert studies.same_first_to_last_ratio(setup, 2) == {"recovery_growth": 64.0}
    assert studies.same_first_to_last_ratio(setup, 8)["recovery_growth"] ** 7 == pytest.approx(
        64, rel=1e-3
    )
