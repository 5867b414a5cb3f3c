"""Rules between settings of different groups.

Each group checks its own settings. Rules that depend on the chosen scorer or recovery method are in
ptl_fast.run.checks, as this package does not know the methods.
"""

from ptl_fast.config.checking import flag
from ptl_fast.config.data import DataSettings
from ptl_fast.config.gate import GateSettings
from ptl_fast.config.goal import GoalSettings
from ptl_fast.config.model import ModelSettings
from ptl_fast.config.prune import PruneSettings
from ptl_fast.config.recovery import RecoverySettings
from ptl_fast.config.traces import TracesSettings
from ptl_fast.config.trainer import TrainerSettings


def check(
    model: ModelSettings,
    data: DataSettings,
    prune: PruneSettings,
    goal: GoalSettings,
    recovery: RecoverySettings,
    trainer: TrainerSettings,
    gate: GateSettings,
    traces: TracesSettings,
    needs_data: bool,
) -> None:
    """Raise ValueError if two settings exclude each other, or if one is missing that another needs.

    Args:
        needs_data: whether --data must be given; a dry run can do without.
    """
    # where nothing at all is given the demo runs, which has both
    if model.model is None:
        raise ValueError(
            "--model is missing: give the folder or hub name of the model to compress, or --preset"
            " demo for the bundled one"
        )
    if model.model is not None and data.data is None and needs_data:
        raise ValueError(
            "--data is missing: give a file or hub name with the reasoning data that --model"
            " should keep its skill on"
        )
    if data.streaming and recovery.recovery_tokens is None:
        raise ValueError(
            "--streaming reads only as much as training needs; say how much with --recovery-tokens"
        )
    if goal.given:
        _check_goals(goal, prune)
    # Adam moments are pruned by parameter and neuron, which needs them in the parameters' shapes
    if recovery.keep_optimizer_state and trainer.deepspeed is not None:
        raise ValueError(
            "--keep-optimizer-state is not supported with --deepspeed yet: DeepSpeed keeps the"
            " moments in flat buffers, a part of them on each rank; leave one of the two out"
        )
    if gate.gate is not None and prune.threshold is not None:
        raise ValueError(
            "--gate halves the number of neurons that a round removes, which --threshold leaves to"
            " the scores; leave one of the two out"
        )
    if traces.traces_every_round and recovery.anticipate:
        raise ValueError(
            "--traces-every-round asks the model after a round, and --anticipate scores the next"
            " round's neurons before its end; leave one of the two out"
        )


def _check_goals(goal: GoalSettings, prune: PruneSettings) -> None:
    """Raise ValueError for a setting that decides the size beside the goals."""
    named = flag(goal.given[0])
    # 1 says that layers alone may go
    if prune.keep not in (1, PruneSettings.keep):
        raise ValueError(
            f"{named} and --keep {prune.keep} both decide how many neurons stay; leave one of them"
            " out (--keep 1 leaves all, and layers go)"
        )
    if prune.threshold is not None:
        raise ValueError(
            f"{named} is a size, and --threshold leaves the size to the scores; leave one of the"
            " two out"
        )
    if prune.keep_experts < 1:
        raise ValueError(
            f"{named} is solved into neurons and layers, and --keep-experts removes whole experts"
            " besides; leave one of the two out"
        )
    if prune.slice_hidden is not None:
        raise ValueError(
            f"{named} is solved into neurons and layers, and --slice-hidden removes neither; leave"
            " one of the two out"
        )
