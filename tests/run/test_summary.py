"""The verdict in words says what report.json does, and nothing that was not measured."""

from typing import Any

import pytest

from ptl_fast.run import summary


def report(before: dict, after: dict, **more: Any) -> dict[str, Any]:
    size = {"num_parameters": 1000, "flops_per_token": 2000, "eval": before}
    final = {"num_parameters": 600, "flops_per_token": 1500, "eval": after}
    return {"dense": size, "final": final, "rounds": [], **more}


def test_a_run_that_goes_on_has_no_verdict() -> None:
    assert summary.sentences({**report({}, {}), "final": None}) == []


def test_size_quality_and_what_was_not_measured() -> None:
    lines = summary.sentences(
        report({"nll": {"nll": 1.0}}, {"nll": {"nll": 1.2}}, bytes_on_disk=6 * 2**20)
    )
    assert "600 parameters instead of 1,000 (40.0% less), and 25.0% less" in lines[0]
    assert "not measured" in lines[1]
    assert lines[2] == "Worse: loss on held-out answers 1.2, 1 before."
    assert "6.0 MiB" in lines[3]
    assert "10.0 MiB" in lines[3]
    assert "more --recovery-tokens" in lines[4]


def test_measured_speed_is_told() -> None:
    chat = {"pass@1": 0.5, "seconds_per_answer": 3.0}
    lines = summary.sentences(
        report({"chat": chat}, {"chat": {"pass@1": 0.6, "seconds_per_answer": 2.0}})
    )
    assert "1.50 times as fast (3.00 s an answer before, 2.00 s now)" in lines[1]
    assert lines[2] == "Better: chat: answers right 60.0%, 50.0% before."


@pytest.mark.parametrize(
    ("metric", "before", "after", "expected"),
    [
        ("nll", 1.0, 1.04, 0),
        ("nll", 1.0, 1.06, -1),
        ("nll", 6.0, 5.9, 1),
        ("exact_match/strict", 0.5, 0.51, 0),
        ("exact_match/strict", 0.5, 0.4, -1),
        ("perplexity", 20.0, 20.5, 0),
        ("perplexity", 20.0, 22.0, -1),
        ("unheard-of", 1.0, 9.0, None),
    ],
)
def test_what_is_clear(metric: str, before: float, after: float, expected: int | None) -> None:
    assert summary.judged(metric, before, after) == expected


def test_a_round_that_held_its_quality_is_named() -> None:
    rows = [
        {"folder": "sizes/round-01", "eval": {"nll": {"nll": 1.01}}},
        {"folder": "sizes/round-02", "eval": {"nll": {"nll": 1.02}}},
        {"folder": "final", "eval": {"nll": {"nll": 1.5}}},
    ]
    told = summary.sentences(report({"nll": {"nll": 1.0}}, {"nll": {"nll": 1.5}}, sizes=rows))
    assert "take sizes/round-02/, whose quality held" in told[-1]


def test_a_stopped_run_says_how_to_go_further() -> None:
    told = summary.sentences(
        report({"nll": {"nll": 1.0}}, {"nll": {"nll": 1.0}}, stopped="Stopped.")
    )
    assert "--max-drop" in told[-1]
