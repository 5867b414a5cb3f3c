"""What a run says about trainings on answers of the model itself, rewarded or judged by a teacher.

These methods count steps of their own, and keep curves of a value per step in the round's record.
"""

from collections.abc import Callable
from typing import Any

from ptl_fast.base import markdown
from ptl_fast.recovery.registry import RECOVERIES, Recovery
from ptl_fast.run.tables import show

Details = dict[str, Any]
"""What such a method wrote into a round's record."""

REWARDED = [
    "round",
    "steps",
    "rollouts",
    "reward at first",
    "at last",
    "truncated at last",
    "response tokens at last",
]
JUDGED = [
    "round",
    "steps",
    "rollouts",
    "divergence at first",
    "at last",
    "ended by itself at last",
    "repeating at last",
    "response tokens at last",
]


def num_steps(recovery: dict[str, Any]) -> int:
    """Optimizer steps of a recovery's methods that count their own."""
    return sum(recovery[name]["steps"] for name in RECOVERIES.keys() & recovery.keys())


def sections(rounds: list[dict[str, Any]]) -> list[str]:
    """The report's sections about such trainings; none if the run had none."""
    parts = []
    rewarded = _trainings(rounds, lambda method: method.is_rewarded)
    if rewarded:
        parts.append("## Reinforcement learning\n\n" + _reinforcement(rewarded))
    judged = _trainings(rounds, lambda method: method.on_problems and method.has_teacher)
    if judged:
        parts.append("## On-policy distillation\n\n" + _on_policy(judged))
    return parts


def unrewarded_line(number: int, details: Details, extension: int = 0) -> str:
    """Say in one sentence that a reward was 0 in all rollouts of a round, and what to try.

    Args:
        extension: number of the quality gate's extension; 0 for the round itself.
    """
    names, verb = (
        " and ".join(details["always_zero"]),
        "was" if len(details["always_zero"]) == 1 else "were",
    )
    found = (
        f"Round {number}{_extension(extension)}: {names} {verb} 0 for each of"
        f" {details['rollouts']} rollouts"
    )
    if not any(details["reward"]):
        found += ", so there was nothing to learn from"
    # a truncated response has no final answer, so rewards of 0 say little about the model
    cut_off = sum(details["truncated"]) / len(details["truncated"])
    if cut_off > 0.5:
        return (
            f"{found}; {cut_off:.0%} of the responses were cut off: try a higher"
            " --grpo-response-tokens first."
        )
    return (
        f"{found}; try more continual pre-training first (--recovery cpt,grpo with more"
        " --recovery-tokens), or a smaller step"
        " (more --rounds)."
    )


def _trainings(
    rounds: list[dict[str, Any]], chosen: Callable[[Recovery], bool]
) -> list[tuple[int, int, Details]]:
    """(round, extension, details) of every training by the chosen methods, in order."""
    names = [name for name, method in RECOVERIES.items() if chosen(method)]
    return [
        (record["round"], extension, recovery[name])
        for record in rounds
        # a round's own recovery is number 0, its extensions follow
        for extension, recovery in enumerate([record, *record.get("extra_recovery", [])])
        for name in names
        if name in recovery
    ]


def _reinforcement(trainings: list[tuple[int, int, Details]]) -> str:
    """The table of GRPO trainings: rewards over the first and the last fifth of the steps.

    A row per round, or extension, with GRPO; below the table, rewards that were always 0.
    """
    rows, lines = [REWARDED], []
    for number, extension, details in trainings:
        means = [
            show(_at_first(details, "reward")),
            show(_at_last(details, "reward")),
            show(_at_last(details, "truncated")),
        ]
        rows.append([*_beginning(number, extension, details), *means, _last_length(details)])
        if details["always_zero"]:
            lines.append(f"- {unrewarded_line(number, details, extension)}")
    return "\n".join([markdown.table(rows), *([""] if lines else []), *lines])


def _on_policy(trainings: list[tuple[int, int, Details]]) -> str:
    """The table of on-policy distillations: nats per token over the first and the last fifth of the
    steps, and shares of the answers.
    """
    rows = [JUDGED]
    for number, extension, details in trainings:
        means = [
            show(_at_first(details, "divergence")),
            *(show(_at_last(details, name)) for name in ("divergence", "finished", "repeating")),
        ]
        rows.append([*_beginning(number, extension, details), *means, _last_length(details)])
    return markdown.table(rows)


def _beginning(number: int, extension: int, details: Details) -> list[str]:
    """A row's first cells: which training, its steps, its rollouts."""
    return [f"{number}{_extension(extension)}", str(details["steps"]), str(details["rollouts"])]


def _last_length(details: Details) -> str:
    return f"{_at_last(details, 'response_tokens'):.0f}"


def _at_first(details: Details, name: str) -> float:
    few = _few(details)
    return float(sum(details[name][:few]) / few)


def _at_last(details: Details, name: str) -> float:
    few = _few(details)
    return float(sum(details[name][-few:]) / few)


def _few(details: Details) -> int:
    # a fifth, rounded up: single steps are too noisy to compare
    return int(-(-details["steps"] // 5))


def _extension(number: int) -> str:
    """The suffix that names an extension by the quality gate; empty for the round itself."""
    return f", extension {number}" if number else ""
