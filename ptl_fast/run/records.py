"""The record of a round, record.json: one JSON object made of what the round's other files say."""

from typing import TYPE_CHECKING, Any

from ptl_fast.base import distributed
from ptl_fast.run import layers_left, sizes
from ptl_fast.run.folder import read_plan

if TYPE_CHECKING:
    from ptl_fast.base.run_files import RoundFolder
    from ptl_fast.run.context import RunContext

# fields of the plan that the record repeats, so that the report needs no other file
FROM_PLAN = ("num_redundant", "dropped_layers", "highest_removed", "lowest_kept")


def of_round(context: "RunContext", files: "RoundFolder") -> dict[str, Any]:
    """The record of a round that is finished, or that the quality gate has undone.

    Read from the files alone, so a resumed run gives the same record. All ranks must call this and
    get the main rank's record.
    """
    plan = read_plan(files)
    num_extensions = files.num_extensions()
    # one entry per extension; the round's own recovery is extension 0, and its numbers stand at the
    # record's top level
    extra = [files.recovery(number + 1).read() for number in range(num_extensions)]
    length = context.config.data.sequence_length
    weights = files.token_weights.read()
    folded = files.folded_layers.read()
    worse = files.worse_recovery.read()
    record = {
        **sizes.predicted_size(context.original, plan, length, layers_left.after(context, plan)),
        # the last extension's, which is the model that the round leaves
        "eval": files.recovered(num_extensions).read(),
        "round": plan.round,
        "kind": plan.kind,
        "seconds": files.seconds.read(),
        "eval_pruned": files.pruned.read(),
        **files.recovery().read(),
        **({"extra_recovery": extra} if extra else {}),
        **{name: getattr(plan, name) for name in FROM_PLAN},
        **({"worse_recovery": worse} if worse else {}),
        **({"token_weights": weights} if weights else {}),
        **({"folded_layers": folded} if folded else {}),
    }
    return distributed.agree(record)
