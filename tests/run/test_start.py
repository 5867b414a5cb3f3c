"""Runs begin the same way from flags and from Python; what only prints imports nothing heavy."""

import subprocess
import sys

import pytest

import ptl_fast
from ptl_fast.config.config import Config
from ptl_fast.run import loop, start
from support.models import DEMO_MODEL


def test_flags_and_keywords_give_the_same_settings() -> None:
    flags = start.parse(["--model", str(DEMO_MODEL), "--data", "x", "--keep", "0.5"])
    assert flags == start.make_config(model=DEMO_MODEL, data="x", keep=0.5)


def test_the_public_functions_check_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Config] = []
    monkeypatch.setattr(loop, "run", lambda config, callbacks: given.append(config) or {"final": 1})
    assert ptl_fast.compress(preset="demo", keep=0.5) == {"final": 1}
    assert given[0].prune.keep == 0.5
    with pytest.raises(ValueError, match=r"--keep 2\.0 is outside"):
        ptl_fast.compress(keep=2.0)
    with pytest.raises(ValueError, match="unknown --scorer best"):
        ptl_fast.compress(preset="demo", scorer="best")
    assert len(given) == 1


def test_planned_sizes_need_no_weights() -> None:
    sizes = ptl_fast.planned_sizes(model=DEMO_MODEL, keep=0.5, rounds=2, sequence_length=128)
    assert [size["width"] for size in sizes][::2] == [768, 384]
    counts = [size["num_parameters"] for size in sizes]
    assert counts == sorted(counts, reverse=True)


def test_a_dry_run_prints_on_the_main_rank_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = start.make_config(dry_run=True)
    assert start.run(config) == {}
    assert " dense | " in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert start.run(config) == {}
    assert capsys.readouterr().out == ""


def test_starting_imports_nothing_heavy() -> None:
    code = "import sys, ptl_fast.run.start; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
