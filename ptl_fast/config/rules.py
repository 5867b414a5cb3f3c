"""Rules between settings of different groups that need no knowledge of a stage's methods.

What depends on which scorers and recoveries there are is checked in ptl_fast.run.checks.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptl_fast.config.config import Config


def check(config: "Config") -> None:
    """Raise ValueError where two settings exclude one another, or one lacks another."""
    model, data = config.model.model, config.data.data
    if model is not None and data is None and not config.run.dry_run:
        raise ValueError(
            "--data is missing: give a file or hub name with the reasoning data that --model"
            " should keep its skill on"
        )
    if config.data.streaming and config.recovery.recovery_tokens is None:
        raise ValueError(
            "--streaming reads only as much as training needs; say how much with --recovery-tokens"
        )
    if config.recovery.keep_optimizer_state and config.trainer.deepspeed is not None:
        raise ValueError(
            "--keep-optimizer-state is not supported with --deepspeed yet: DeepSpeed keeps the"
            " moments in flat buffers, a part of them on each rank; leave one of the two out"
        )
    score = config.score
    if score.score_during_recovery and (score.score_once or config.recovery.anticipate):
        raise ValueError(
            "--score-during-recovery takes statistics from the end of each round; --score-once"
            " needs none after the first round, and --anticipate needs them before the end; leave"
            " it out"
        )
    if config.gate.gate is not None and config.prune.threshold is not None:
        raise ValueError(
            "--gate halves the number of neurons that a round removes, which --threshold leaves to"
            " the scores; leave one of the two out"
        )
