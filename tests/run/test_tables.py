"""Tables of runs and dry runs, by hand."""

from typing import Any

import pytest

from ptl_fast.run import tables

DENSE: dict[str, Any] = {
    "width": 768,
    "num_layers": 4,
    "num_parameters": 1_417_216,
    "flops_per_token": 2_834_432,
    "eval": {"nll": {"nll": 0.25, "perplexity": 1.28}, "other": {"acc": 50.0}},
}


def test_a_run_by_hand() -> None:
    record = {
        **DENSE,
        "width": 384,
        "round": 1,
        "kind": "neurons",
        "eval_pruned": {"nll": {"nll": 1.5}},
        "seconds": {"calibrate": 1.2, "recover": 10.4},
    }
    lines = tables.table(DENSE, [record]).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")][6:9] == [
        "nll pruned",
        "nll recovered",
        "seconds",
    ]
    assert [cell.strip() for cell in lines[2].split("|")][1:-1] == [
        "dense",
        "768",
        "4",
        "1.417M",
        "2.834M",
        "",
        "0.2500",
        "",
    ]
    assert [cell.strip() for cell in lines[3].split("|")][1:-1] == [
        "1 neurons",
        "384",
        "4",
        "1.417M",
        "2.834M",
        "1.5000",
        "0.2500",
        "12",
    ]


def test_experts_have_a_column_where_there_are_some() -> None:
    dense = {**DENSE, "num_experts": 8, "eval": {}}
    header, _, row = tables.table(dense, []).splitlines()
    assert [cell.strip() for cell in header.split("|")][2:5] == ["width", "experts", "layers"]
    assert [cell.strip() for cell in row.split("|")][2:5] == ["768", "8", "4"]


def test_the_first_metric_of_the_first_task_leads() -> None:
    assert tables.leading_metric(DENSE) == ("nll", "nll")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1k"), (8.03e9, "8.03G"), (1.5e15, "1500T")],
)
def test_counts_have_four_digits_and_a_prefix(count: float, text: str) -> None:
    assert tables.short(count) == text


def test_a_dry_run_without_recovery_tokens_says_that_the_data_decides() -> None:
    row = {
        **DENSE,
        "name": "dense",
        "prompt_tokens": {"gsm8k": 100},
        "prompt_flops": {"gsm8k": 3e8},
        "serving_bytes": 2**30,
        "training_bytes": 3 * 2**30,
        "recovery_tokens": None,
    }
    known = {**row, "name": "2", "recovery_tokens": 12_000, "recovery_hours": 1.25}
    lines = tables.schedule_table([row, {**row, "name": "1"}, known]).splitlines()
    assert "gsm8k (100)" in lines[0]
    cells = [[cell.strip() for cell in line.split("|")][1:-1] for line in lines[2:]]
    assert [row[-4:] for row in cells] == [
        ["1.0", "3.0", "", ""],
        ["1.0", "3.0", "its part of the data", "?"],
        ["1.0", "3.0", "12,000", "1.2"],
    ]


@pytest.mark.parametrize(
    ("hours", "text"),
    [(0, "0.0"), (0.0123, "0.012"), (0.5, "0.5"), (12.34, "12.3"), (990.6, "990.6")],
)
def test_short_hours_say_something(hours: float, text: str) -> None:
    assert tables.show_hours(hours) == text


def test_a_new_round_is_a_new_row_under_those_that_were_shown() -> None:
    record = {
        **DENSE,
        "round": 1,
        "kind": "neurons",
        "eval_pruned": {"nll": {"nll": 1.5}},
        "seconds": {"recover": 10.4},
    }
    rounds = [record, {**record, "round": 2}]
    whole = tables.table(DENSE, rounds)
    assert tables.new_rows(DENSE, rounds, 0) == f"\n{whole}"
    assert tables.new_rows(DENSE, rounds, 1) == whole.splitlines()[-1]


@pytest.mark.parametrize("width", [70, 80, 100, 200, None])
def test_a_table_fits_the_terminal_and_keeps_its_columns_in_every_row(width: int | None) -> None:
    record = {
        **DENSE,
        "round": 1,
        "kind": "neurons",
        "eval": {"task": {"exact_match/final-number": 1.0}},
        "eval_pruned": {"task": {"exact_match/final-number": 1.0}},
        "seconds": {"recover": 10.4},
    }
    dense, rounds = {**DENSE, "eval": record["eval"]}, [record, {**record, "round": 2}]
    first = tables.new_rows(dense, rounds[:1], 0, width)
    second = tables.new_rows(dense, rounds, 1, width)
    assert second.count("\n") == 0
    assert max(map(len, [*first.splitlines(), second])) <= (width or 1000)
    assert "exact_match/final-number" in first
    assert second.count("|") == first.splitlines()[-1].count("|")
    # the metric is the last thing to go
    assert [cell.strip() for cell in second.split("|")][-4:-1] == ["1.0000", "1.0000", "10"]
