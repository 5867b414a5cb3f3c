"""Report to the trackers of --report-to what the original model and every finished round came to.

Read from the run's folder at a round's end. log/rounds/tracked.json says how many each tracker has,
so that a run that goes on logs no round twice.
"""

import uuid
from typing import TYPE_CHECKING, Any

from ptl_fast.base import distributed
from ptl_fast.base.console import reason, say
from ptl_fast.base.trackers import TRACKERS
from ptl_fast.run.folder import read_plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ptl_fast.base.run_files import RoundFolder
    from ptl_fast.run.context import RunContext

SIZE = {
    "num_parameters": "parameters",
    "flops_per_token": "flops_per_token",
    "width": "width",
    "num_layers": "layers",
}
"""{size in a record: what trackers call it}."""


def log_new(context: "RunContext") -> None:
    """Log the original model (as round 0) and the finished rounds that a tracker lacks.

    A tracker that fails is told, and tried again after the next round: the run goes on. All ranks
    must call this.
    """
    for name in context.config.trainer.trackers:
        tracked = context.folder.tracked.once(lambda: _begin(context))
        TRACKERS[name].prepare(context.folder.log, tracked["run"])
        first = tracked["logged"].get(name, 0)
        rows = [_values(context, number) for number in range(first, len(context.records) + 1)]
        if rows and _write(context, name, tracked["run"], first, rows):
            tracked["logged"][name] = first + len(rows)
            context.folder.tracked.write(tracked)


def name_of(context: "RunContext", part: str) -> str:
    """The name that a part of the run, such as a training, has in trackers."""
    tracked = context.folder.tracked.found()
    return f"{tracked['run']}/{part}" if tracked else part


def _begin(context: "RunContext") -> dict[str, Any]:
    """{"run": the run's name, "logged": {tracker: number of entries}}."""
    # a name that no other run has: trackers would go on with a run of the same name
    name = f"{context.folder.path.resolve().name}-{uuid.uuid4().hex[:6]}"
    return {"run": name, "logged": {}}


def _write(
    context: "RunContext", name: str, run: str, first: int, rows: "list[dict[str, float]]"
) -> bool:
    """Whether the main rank could log all of these rounds."""
    failure = None
    if distributed.is_main():
        try:
            for number, values in enumerate(rows, first):
                TRACKERS[name].write(context.folder.tracked.path.parent, run, number, values)
        except Exception as error:  # a network, a full disk: no reason to lose the run
            failure = reason(error)
            say(f"--report-to {name} failed, and is tried again after the next round: {failure}")
    return distributed.agree(failure) is None


def _values(context: "RunContext", number: int) -> dict[str, float]:
    """{name: value} of round ``number``; 0 is the original model."""
    record = context.records[number - 1] if number else context.dense
    values = {**_size(record, context.dense), **_evaluation("evaluation", record)}
    if number:
        values |= _of_round(context, record)
    return {name: float(value) for name, value in values.items()}


def _of_round(context: "RunContext", record: "Mapping[str, Any]") -> dict[str, float]:
    """What the original model has not."""
    return {
        **_evaluation("evaluation_pruned", record, "eval_pruned"),
        "recovery/tokens": record["recovery_tokens"],
        "recovery/steps": record["recovery_steps"],
        **{f"seconds/{stage}": each for stage, each in record["seconds"].items()},
        **_removed(context.folder.round(record["round"])),
    }


def _size(record: "Mapping[str, Any]", dense: "Mapping[str, Any]") -> dict[str, float]:
    own = {f"size/{name}": record[key] for key, name in SIZE.items()}
    of_dense = {
        f"size/{name}_of_original": record[key] / dense[key]
        for key, name in SIZE.items()
        if dense[key]
    }
    return {**own, **of_dense}


def _evaluation(title: str, record: "Mapping[str, Any]", key: str = "eval") -> dict[str, float]:
    """The metrics of an evaluation, by task."""
    return {
        f"{title}/{task}/{metric}": value
        for task, metrics in (record[key] or {}).items()
        for metric, value in metrics.items()
    }


def _removed(files: "RoundFolder") -> dict[str, float]:
    """How much of its score each layer lost with its neurons, and each layer's own score.

    Layers are numbered as the round found them.
    """
    plan = read_plan(files) if files.plan.exists() else None
    if plan is None:
        return {}
    values = {
        f"scores/layer-{layer:02d}": score for layer, score in enumerate(plan.layer_scores or [])
    }
    if plan.kept_neurons is None or not files.statistics.exists():
        return values
    scores_LI = files.statistics.read().get("scores")
    if scores_LI is None or scores_LI.dim() != 2 or len(scores_LI) != len(plan.kept_neurons):
        return values
    shares = _shares_removed(scores_LI, plan.kept_neurons)
    for layer, share in enumerate(shares):
        values[f"score_removed/layer-{layer:02d}"] = share
    if shares:
        values["score_removed/mean"] = sum(shares) / len(shares)
    return values


def _shares_removed(scores_LI: "Tensor", kept: list[list[int]]) -> list[float]:
    """The share of each layer's scores that went; empty where scores may be negative."""
    scores_LI = scores_LI.double()
    if bool((scores_LI < 0).any()):
        return []
    return [
        1 - float(scores_I[own].sum() / scores_I.sum()) if float(scores_I.sum()) else 0.0
        for scores_I, own in zip(scores_LI, kept, strict=True)
    ]
