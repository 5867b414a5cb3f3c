"""What a run says before it works: its plan, and how long this machine takes for it."""

from typing import TYPE_CHECKING

from ptl_fast.base import distributed
from ptl_fast.base.progress import duration
from ptl_fast.model import flops
from ptl_fast.run import recover_step, recovery_costs, sizes, this_machine
from ptl_fast.run.tables import short

if TYPE_CHECKING:
    from ptl_fast.run.context import RunContext


def line(context: "RunContext") -> str | None:
    """The rounds that are left, where they lead, and an estimate of their training's time; None if
    none is left.
    """
    left = context.rounds.schedule[len(context.records) :]
    if not left:
        return None
    last = sizes.config_after(context.original, left[-1])
    parameters = [
        short(flops.count_weights(each).num_parameters) for each in (context.original, last)
    ]
    rounds = "1 round" if len(left) == 1 else f"{len(left)} rounds"
    more = " more" if context.records else ""
    # the scores decide
    least = "at least " if context.config.prune.threshold is not None else ""
    before, after = parameters
    return f"Plan: {rounds}{more}, from {before} to {least}{after} parameters. {_training(context)}"


def _training(context: "RunContext") -> str:
    """How long the rounds that are left train on this machine."""
    rounds = []
    left = context.rounds.schedule[len(context.records) :]
    for step, num_tokens in zip(left, recover_step.tokens_left(context), strict=True):
        smaller, names = sizes.config_after(context.original, step), context.recoveries(step)
        costs = (smaller, context.original, context.config, names, num_tokens)
        rounds.append((recovery_costs.estimates(*costs), smaller))
    parts = [part for each, _ in rounds for part in each]
    if any(part.num_tokens is None for part in parts):
        return "How long it trains depends on the problems in the data."
    if not any((part.num_tokens or 0) * part.flops_per_token for part in parts):
        others = "scoring and evaluation take" if context.tasks else "scoring takes"
        return f"Nothing is trained; {others} the time."
    found = this_machine.of_device(context.device)
    if found is None:
        return "How long it trains is not known: this GPU is none of those that are known here."
    number, device = found
    # every rank is a process with a device of its own
    devices = min(number, distributed.world_size()), device
    hours = sum(
        recovery_costs.training_hours(own, smaller, context.config, *devices) or 0
        for own, smaller in rounds
    )
    others = "scoring and evaluation come" if context.tasks else "scoring comes"
    return (
        f"Training takes about {duration(3600 * hours)} on this machine ({device.name}), by its"
        f" FLOPs; {others} on top."
    )
