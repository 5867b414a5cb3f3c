"""What the files of a round say, as one record."""

from typing import TYPE_CHECKING, Any

from ptl_fast.base import distributed
from ptl_fast.pruning.plan import PruningPlan
from ptl_fast.run import sizes

if TYPE_CHECKING:
    from ptl_fast.run.context import RunContext
    from ptl_fast.run.folder import RoundFolder

FROM_PLAN = ("num_redundant", "dropped_layers", "highest_removed", "lowest_kept")


def of_round(context: "RunContext", files: "RoundFolder") -> dict[str, Any]:
    """A finished round's record, or that of one that was undone; all ranks agree on it."""
    plan = PruningPlan(**files.plan.read())
    num_extensions = files.num_extensions()
    extra = [files.recovery(number + 1).read() for number in range(num_extensions)]
    length = context.config.data.sequence_length
    record = {
        **sizes.predicted_size(context.original, plan, length),
        "eval": files.recovered(num_extensions).read(),
        "round": plan.round,
        "kind": plan.kind,
        "seconds": files.seconds.read(),
        "eval_pruned": files.pruned.read(),
        **files.recovery().read(),
        **({"extra_recovery": extra} if extra else {}),
        **{name: getattr(plan, name) for name in FROM_PLAN},
    }
    return distributed.agree(record)
