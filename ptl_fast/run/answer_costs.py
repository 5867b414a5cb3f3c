"""The report's table of what an answer to each chat task costs, beside how many are right."""

from collections.abc import Sequence

from ptl_fast.base import markdown
from ptl_fast.evaluation.chat import CUT_OFF, REPEATING, SECONDS, TOKENS

HEADER = [
    "task",
    "",
    "right",
    "tokens",
    "cut off",
    "repeating",
    "seconds an answer",
    "right answers a minute",
]
Evaluation = dict[str, dict[str, float]]
"""{task: {metric: value}}"""


def table(stages: Sequence[tuple[str, Evaluation]]) -> str:
    """Return a row for each chat task and model; empty text if no task is one.

    "Right answers a minute" joins both: how many answers are right, and how long one takes.

    Args:
        stages: (name, evaluation) of each model, the dense one first.
    """
    tasks = [task for task, values in stages[0][1].items() if SECONDS in values]
    rows = [_row(task, name, values[task]) for task in tasks for name, values in stages]
    return markdown.table([HEADER, *rows]) if rows else ""


def _row(task: str, name: str, values: dict[str, float]) -> list[str]:
    # pass@1 is the first metric
    right = next(iter(values.values()))
    return [
        task,
        name,
        f"{right:.1%}",
        f"{values[TOKENS]:.0f}",
        f"{values[CUT_OFF]:.1%}",
        f"{values[REPEATING]:.1%}",
        f"{values[SECONDS]:.2f}",
        f"{60 * right / values[SECONDS]:.1f}",
    ]
