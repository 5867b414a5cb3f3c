"""What GRPO samples follows from its settings."""

from ptl_fast.recovery.grpo.rollouts import rollouts_of
from support.recovery import grpo_config


def test_longest_rollout_and_their_number_are_the_settings() -> None:
    own = rollouts_of(grpo_config().grpo)
    assert (own.per_step, own.longest, own.steps) == (8, 70, 4)
    assert own.gold is not None
    assert own.gold("so #### 7") == "7"
