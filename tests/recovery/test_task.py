"""What a recovery is given."""

from pathlib import Path

from ptl_fast.recovery.task import TrainingOptions
from support.recovery import config, packed, task


def test_the_sequence_length_is_that_of_the_tokens(tmp_path: Path) -> None:
    assert task(packed(), 100, config(), tmp_path / "recovery").sequence_length == 32


def test_options_as_they_stand_spend_all_tokens_from_a_fresh_optimizer() -> None:
    options = TrainingOptions()
    assert options.held_out is None
    assert options.optimizer_state is None
    assert not options.keep_optimizer_state
