"""Whether a recovery has left a round clearly worse than pruning alone did, and how that is told.

Clearly is more than noise: for negative log-likelihood, measured on the same documents before and
after, MARGIN nats; for a share of right answers, two standard errors of the difference. The first
evaluation task decides, unless another one has become clearly better.
"""

import math
from typing import TYPE_CHECKING, Any

from ptl_fast.evaluation import tasks as eval_tasks
from ptl_fast.evaluation.chat import LoadedChat
from ptl_fast.evaluation.nll import NLL
from ptl_fast.recovery.registry import RECOVERIES
from ptl_fast.run import metric_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ptl_fast.evaluation.tasks import LoadedTask
    from ptl_fast.run.context import RunContext

MARGIN = 0.05  # nats per token, and the least change of a share that is clear
FEW_STEPS = 10  # optimizer steps; fewer leave Adam's moments and the warm-up hardly begun
# Calibration tokens for each neuron of an FFN. Qwen2.5-Coder-0.5B-Instruct, a fifth of it removed,
# kept 67% of its right answers with 3.4 and 79% with 12 (docs/reasoning.md).
FEW_TOKENS = 4
MOST_SEQUENCES = 10**9  # of a round: at 4,096 tokens each, 4 trillion tokens

Evaluation = dict[str, dict[str, float]]


def is_worse(
    context: "RunContext", names: "Sequence[str]", pruned: Evaluation, recovered: Evaluation
) -> bool:
    """Whether a round's recovery by these methods has made the model clearly worse."""
    # a policy that learns from rewards moves away from the data's own words, and may answer better
    rewarded = any(RECOVERIES[name].is_rewarded for name in names)
    labels = [label for label in pruned if label in context.inputs.loaded_tasks or not rewarded]
    if not labels:
        return False
    changes = [
        change(
            context.inputs.loaded_tasks.get(label),
            context.config.evaluation.eval_limit,
            pruned[label],
            recovered[label],
        )
        for label in labels
    ]
    return changes[0] < 0 and not any(each > 0 for each in changes[1:])


def change(
    loaded: "LoadedTask | None",
    limit: int | None,
    before: dict[str, float],
    after: dict[str, float],
) -> int:
    """1 if a task's first metric has become clearly better, -1 if clearly worse, else 0."""
    metric = next(iter(before))
    better = eval_tasks.metrics(loaded).get(metric)
    # of a metric without a direction nothing is clear
    if better is None:
        return 0
    gained = (after[metric] - before[metric]) * (1 if better else -1)
    margin = MARGIN if metric == NLL else _noise(loaded, limit, before[metric], after[metric])
    return 0 if abs(gained) <= margin else int(math.copysign(1, gained))


def _noise(loaded: "LoadedTask | None", limit: int | None, *values: float) -> float:
    """Two standard errors of the difference between two shares; a tenth of what is no share."""
    if not all(0 <= value <= 1 for value in values):
        return max(map(abs, values)) / 10
    # a share of 0 or 1 has an error too: as if one more answer of each kind had been seen
    number = _num_examples(loaded, limit)
    shares = [(value * number + 1) / (number + 2) for value in values]
    return max(MARGIN, 2 * math.sqrt(sum(each * (1 - each) for each in shares) / number))


def _num_examples(loaded: "LoadedTask | None", limit: int | None) -> int:
    """Number of problems that a task's metric rests on, at least 1."""
    if isinstance(loaded, LoadedChat):
        return max(1, len(loaded.problems))
    numbers = [len(task.eval_docs) for task in loaded["tasks"].values()] if loaded else []
    number = sum(numbers) if limit is None else min(sum(numbers), limit * len(numbers))
    return max(1, number)


def sentence(record: dict[str, Any], task: str, metric: str) -> str:
    """Say of a round's record that its recovery was worse than none, what was kept, what to change.

    Args:
        task, metric: those of the tables.
    """
    worse = record["worse_recovery"]
    kept = (
        "the pruned model was kept (--undo-recovery false keeps the trained one)"
        if worse["undone"]
        else "the trained model was kept (--undo-recovery false)"
    )
    show = metric_names.reading(metric).show
    return (
        f"Round {record['round']}: recovery made the model worse,"
        f" {metric_names.titled(task, metric)} {show(record['eval_pruned'][task][metric])} before"
        f" and {show(worse['eval'][task][metric])} after it ({record['recovery_steps']} optimizer"
        f" steps):"
        f" {kept}. Lower --learning-rate, give more --recovery-tokens or a smaller --global-batch,"
        " or train on more of what is evaluated."
    )


def sentences(records: list[dict[str, Any]], task: str, metric: str) -> list[str]:
    """``sentence`` of each round that had such a recovery."""
    return [sentence(each, task, metric) for each in records if each.get("worse_recovery")]


def check_steps(steps: dict[int, int], global_batch: int) -> None:
    """Raise ValueError if a round would train on more sequences than their order fits in memory.

    Args:
        steps: {round: optimizer steps on text that it is going to have}.
    """
    for number, count in steps.items():
        if count * global_batch > MOST_SEQUENCES:
            raise ValueError(
                f"round {number} would train on {count * global_batch:,} sequences, more than"
                f" {MOST_SEQUENCES:,}; lower --recovery-tokens or --global-batch"
            )


def few_steps_line(steps: dict[int, int]) -> str | None:
    """Say which rounds train for too few optimizer steps to recover; None if none does.

    Args:
        steps: {round: optimizer steps on text that it is going to have}.
    """
    few = {number: count for number, count in steps.items() if 0 < count < FEW_STEPS}
    if not few:
        return None
    told = ", ".join(f"{count} in round {number}" for number, count in few.items())
    return (
        f"Recovery is going to have few optimizer steps: {told}. Fewer than about {FEW_STEPS} may"
        " leave a round worse than pruning alone; give more --recovery-tokens or data, fewer"
        " --rounds, or a smaller --global-batch."
    )


def few_tokens_line(tokens: dict[int, int], width: int) -> str | None:
    """Say which rounds refit their FFNs to so few tokens that these are learned by heart; None if
    none does.

    Args:
        tokens: {round: calibration tokens that count in it}.
        width: neurons of an FFN now.
    """
    few = {number: count for number, count in tokens.items() if count < FEW_TOKENS * width}
    if not few:
        return None
    told = ", ".join(f"{count:,} in round {number}" for number, count in few.items())
    return (
        f"Calibration is going to have few tokens: {told}, for {width:,} neurons in each FFN. Least"
        f" squares learns fewer than about {FEW_TOKENS} a neuron by heart, and the model unlearns"
        " what is not among them; give more --calibration-tokens or data, or try --ridge auto."
    )
