"""The rows of benchmarks.methods.compare, summed up: means and spreads over the seeds."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ptl_fast.run.tables import leading_metric

Results = dict[str, Any]
Row = dict[str, Any]

LOSSES = ("nll", "perplexity", "bits_per_byte")
FINISHED, FAILED, WAITING = "finished", "failed", "not run"
"""The status of a cell."""


@dataclass(frozen=True)
class Spread:
    """One number over the seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def lowest(self) -> float:
        return min(self.values)

    @property
    def highest(self) -> float:
        return max(self.values)

    @property
    def range(self) -> float:
        return self.highest - self.lowest

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{self.mean:.1f} (one seed)"
        return f"{self.mean:.1f} ({self.lowest:.1f} to {self.highest:.1f})"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One point over its seeds. Accuracies are in per cent."""

    study: str
    method: str
    keep: float
    """PTL's fraction of FFN neurons at this size."""
    x: float | None
    """Place on the figure's axis: recovery tokens, or rounds."""
    num_seeds: int
    """Seeds that were asked for; the scores have fewer values where cells failed or did not run."""
    errors: tuple[str, ...]
    num_parameters: int
    parameters: float
    """Share of the dense model's."""
    flops: float
    """Share of the dense model's, per token."""
    width: int
    dense_width: int
    num_layers: int
    slice_hidden: float | None
    """Fraction of the hidden dimensions that SliceGPT keeps."""
    num_rounds: int
    recovery_tokens: int
    recovery_s: float
    """Mean seconds of training."""
    total_s: float
    dense: dict[str, float]
    scores: dict[str, Spread]
    """{task: its first metric}."""
    lower_is_better: bool
    """Whether the first task's metric is a loss."""


def summarize(results: Results, study: str) -> list[Summary]:
    """A summary for each point of the study that has a finished seed, in the order of the grid."""
    return [
        summary
        for point in results["points"]
        if point["study"] == study
        if (summary := _summary(point, [results["cells"][name] for name in point["cells"]]))
        is not None
    ]


def _summary(point: Row, cells: Sequence[Row]) -> Summary | None:
    finished = [row for row in cells if row["status"] == FINISHED]
    if not finished:
        return None
    first = finished[0]  # sizes are the same for all seeds
    dense, final = first["dense"], first["final"]
    return Summary(
        study=point["study"],
        method=point["method"],
        keep=point["keep"],
        x=point["x"],
        num_seeds=len(cells),
        errors=tuple(row["error"] for row in cells if row["status"] == FAILED),
        num_parameters=final["num_parameters"],
        parameters=final["num_parameters"] / dense["num_parameters"],
        flops=final["flops_per_token"] / dense["flops_per_token"],
        width=final["width"],
        dense_width=dense["width"],
        num_layers=final["num_layers"],
        slice_hidden=first["settings"].get("slice_hidden"),
        num_rounds=len(first["rounds"]),
        # not the same for all seeds where a round may end early
        recovery_tokens=round(
            statistics.mean(
                sum(record["recovery_tokens"] for record in row["rounds"]) for row in finished
            )
        ),
        recovery_s=statistics.mean(
            sum(record["seconds"]["recover"] for record in row["rounds"]) for row in finished
        ),
        total_s=statistics.mean(
            sum(sum(record["seconds"].values()) for record in row["rounds"]) for row in finished
        ),
        dense=scores_of(dense["eval"]),
        scores={
            task: Spread(tuple(scores_of(row["final"]["eval"])[task] for row in finished))
            for task in final["eval"]
        },
        lower_is_better=_is_loss(leading_metric(dense)[1]),
    )


def scores_of(evaluation: dict[str, dict[str, float]]) -> dict[str, float]:
    """{task: its first metric}, in per cent unless it is a loss."""
    # lm-eval lists a task's leading metric first
    firsts = {task: next(iter(metrics.items())) for task, metrics in evaluation.items()}
    return {
        task: value if _is_loss(metric) else 100 * value for task, (metric, value) in firsts.items()
    }


def _is_loss(metric: str) -> bool:
    return any(name in metric for name in LOSSES)


def verdict(ours: Spread, theirs: Spread, lower_is_better: bool = False) -> str:
    """Whether ours is better by more than the spread: the difference of means against the larger
    range over seeds.
    """
    ahead = (theirs.mean - ours.mean) if lower_is_better else (ours.mean - theirs.mean)
    # a range over one seed is zero, and every difference would be above it
    if min(len(ours.values), len(theirs.values)) < 2:
        return f"{ahead:+.1f}: one seed has no spread"
    spread = max(ours.range, theirs.range)
    answer = (
        "yes"
        if ahead > spread
        else "no, behind by more than the spread"
        if -ahead > spread
        else "no"
    )
    return f"{ahead:+.1f}: {answer}"


def rounds_curves(results: Results) -> list[dict[str, Any]]:
    """For each size: the dense score, and each round's (share of parameters, recovery tokens,
    pruned, recovered).
    """
    curves = []
    for point in results["points"]:
        cells = (
            [results["cells"][name] for name in point["cells"]]
            if point["study"] == "rounds"
            else []
        )
        finished = [row for row in cells if row["status"] == FINISHED]
        if not finished:
            continue
        dense = finished[0]["dense"]
        task = next(iter(dense["eval"]))
        rounds = []
        # not strict: a budget of tokens may end some seeds' runs before their last round
        for records in zip(*(row["rounds"] for row in finished), strict=False):
            pruned, recovered = (
                Spread(tuple(scores_of(record[name])[task] for record in records))
                for name in ("eval_pruned", "eval")
            )
            share = records[0]["num_parameters"] / dense["num_parameters"]
            rounds.append((share, records[0]["recovery_tokens"], pruned, recovered))
        curves.append(
            {
                "keep": point["keep"],
                "task": task,
                "dense": scores_of(dense["eval"])[task],
                "rounds": rounds,
            }
        )
    return curves
