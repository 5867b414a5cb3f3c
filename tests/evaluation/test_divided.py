"""Ranks that evaluate together find what one finds alone, and each answers a part of it."""

import json
from typing import Any

import pytest

from support.evaluation_on_ranks import FOUND, evaluate_here
from support.ranks import call_on_ranks


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """By the number of ranks, 1 and 3: what each rank has found."""
    every = []
    for num_ranks in (1, 3):
        folder = tmp_path_factory.mktemp(f"ranks-{num_ranks}")
        call_on_ranks(evaluate_here, folder, num_ranks)
        every.append([json.loads((folder / FOUND.format(n)).read_text()) for n in range(num_ranks)])
    return every


def test_several_ranks_find_what_one_finds(found: list[list[dict[str, Any]]]) -> None:
    (alone,), together = found
    assert [each["results"] for each in together] == [together[0]["results"]] * 3
    for label, metrics in alone["results"].items():
        # time is not the same twice; all else is, bit for bit but for lm-eval's batches
        for each in (metrics, together[0]["results"][label]):
            each.pop("seconds_per_answer", None)
        assert together[0]["results"][label] == pytest.approx(metrics, rel=1e-5), label
    assert together[0]["results"]["nll"] == alone["results"]["nll"]
    assert together[0]["answers"] == alone["answers"]


def test_each_rank_answers_a_share(found: list[list[dict[str, Any]]]) -> None:
    (alone,), together = found
    rows = [each["rows"] for each in together]
    assert min(rows) > 0.15 * alone["rows"]
    assert max(rows) < 0.6 * alone["rows"]
