"""A round's learning rate: a cosine, a place in the run's cosine, or flat until recovered."""

from pathlib import Path

import torch
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from ptl_fast.recovery import (
    learning_rate,
)
from ptl_fast.recovery.task import (
    TrainingOptions,
)
from ptl_fast.recovery.token_budget import ClosingPhase
from support.recovery import held_out, train_steps


def rates(logs: list[dict]) -> list[float]:
    return [log["learning_rate"] for log in logs]


def cosine(num_steps: int) -> list[float]:
    """transformers' own schedule at a peak of 1e-2."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-2)
    scheduler = get_cosine_schedule_with_warmup(optimizer, int(0.05 * num_steps), num_steps)
    values = []
    for _ in range(num_steps):
        values.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return values


def test_rate_of_a_round_that_may_end_early_is_flat_and_then_falls() -> None:
    closing = ClosingPhase(40, 100.0, held_out())
    rate = learning_rate.learning_rate(TrainingOptions(held_out=closing.held_out), closing)
    assert [rate(step) for step in (0, 1, 2, 20, 30, 35, 39)] == [0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.1]
    closing.note(12, 0.0)
    assert [rate(step) for step in (11, 12, 13, 14, 15)] == [1.0, 1.0, 0.75, 0.5, 0.25]


def test_each_round_has_a_cosine_of_its_own(llama: PreTrainedModel, tmp_path: Path) -> None:
    _, logs = train_steps(llama, tmp_path / "round-01", 23, TrainingOptions())
    assert rates(logs) == cosine(23)


def test_schedule_of_the_run_goes_on_across_rounds(llama: PreTrainedModel, tmp_path: Path) -> None:
    """Three rounds of 5, 6 and 29 steps: together they are one cosine over 40, with one warm-up."""
    seen = []
    for number, (before, steps, after) in enumerate([(0, 5, 35), (5, 6, 29), (11, 29, 0)]):
        _, logs = train_steps(
            llama,
            tmp_path / f"round-{number}",
            steps,
            TrainingOptions(schedule_position=(before, after)),
        )
        seen += rates(logs)
    assert seen == cosine(40)
