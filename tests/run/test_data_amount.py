"""A dry run without --recovery-tokens guesses them from the size of the data's files."""

import gzip
from pathlib import Path

import pytest

from ptl_fast.run import data_amount
from ptl_fast.run.dry_run import dry_run
from ptl_fast.run.start import parse
from support.settings import settings


@pytest.fixture
def data(tmp_path: Path) -> str:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "ten bytes."}\n' * 4000)  # 23 bytes each
    return str(file)


def test_tokens_follow_from_bytes_of_all_files(data: str, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("x" * 4000)
    assert data_amount.guess(settings(data=data)) == 30_666
    assert data_amount.guess(settings(data=f"{data}@2,{tmp_path}/more.txt@1")) == 32_000


def test_nothing_is_guessed_where_bytes_tell_nothing(data: str, tmp_path: Path) -> None:
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(b"{}"))
    for values in (
        {"data": str(packed)},
        {"data": str(tmp_path)},
        {"data": "owner/name"},
        {"data": None},
        {"data": data, "recovery_tokens": 1000},
        {"data": data, "recovery": "none"},
        {"data": data, "traces": True},
    ):
        assert data_amount.guess(settings(**values)) is None


def test_the_dry_run_has_hours_and_says_that_they_are_a_guess(data: str) -> None:
    flags = ["--model", "ptl-demo", "--data", data, "--keep", "0.5", "--sequence-length", "256"]
    text = dry_run(parse([*flags, "--dry-run"]))
    assert "all of --data once, about 30.67k by its size" in text
    assert "?" not in text
    assert "not known here" not in text
