"""Metrics have names that people read, and a direction where there is one."""

import pytest

from ptl_fast.run import metric_names


@pytest.mark.parametrize(
    ("metric", "name", "better", "shown"),
    [
        ("nll", "loss on held-out answers", False, "0.8752"),
        ("exact_match/final-number", "answers right", True, "87.5%"),
        ("pass@1", "answers right", True, "87.5%"),
        ("pass@4", "problems solved in 4 tries", True, "87.5%"),
        ("acc", "choices right", True, "87.5%"),
        ("brier/none", "brier/none", None, "0.8752"),
    ],
)
def test_how_metrics_are_read(metric: str, name: str, better: bool | None, shown: str) -> None:
    read = metric_names.reading(metric)
    assert (read.name, read.higher_is_better) == (name, better)
    assert read.show(0.87519) == shown
    assert read.how.endswith(".")


def test_a_task_of_the_metrics_own_name_is_not_said_twice() -> None:
    assert metric_names.titled("nll", "nll") == "loss on held-out answers"
    assert metric_names.titled("gsm8k", "pass@1") == "gsm8k: answers right"
