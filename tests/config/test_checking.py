"""The checks that groups share name the flag and the value."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from ptl_fast.config.checking import (
    as_text,
    check_at_least_one,
    check_finite,
    flag,
    nearest,
    nearest_file,
    unknown,
)


def test_flags_have_dashes() -> None:
    assert flag("grpo_micro_batch") == "--grpo-micro-batch"


def test_paths_become_text_and_nothing_stays_nothing() -> None:
    assert as_text(Path("a") / "b") == "a/b"
    assert as_text("a") == "a"
    assert as_text(None) is None


def test_numbers_below_one_are_refused_and_words_are_no_numbers() -> None:
    given = SimpleNamespace(a=1, b=None, c="auto", too_few=0)
    check_at_least_one(given, ["a", "b", "c"])
    with pytest.raises(ValueError, match="--too-few 0 must be at least 1"):
        check_at_least_one(given, ["a", "too_few"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    check_finite(SimpleNamespace(a=-1.5), ["a"])
    with pytest.raises(ValueError, match=f"--a {value} must be a finite number"):
        check_finite(SimpleNamespace(a=value), ["a"])


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert as_text("~/runs") == "/home/me/runs"
    assert as_text(Path("~")) == "/home/me"
    assert as_text("a/~b") == "a/~b"


def test_the_nearest_choice_is_offered_and_nothing_far() -> None:
    assert nearest("bf16", ["auto", "float32", "bfloat16"]) == "; did you mean bfloat16?"
    assert nearest("Keep-Round", ["keep_rounds"]) == "; did you mean keep_rounds?"
    assert nearest("hope", ["none", "cpt", "distill"]) == ""
    assert unknown("--scorer", "randm", ["magnitude", "random"]) == (
        "unknown --scorer randm; choose magnitude, random; did you mean random?"
    )


def test_the_nearest_file_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    assert nearest_file(tmp_path / "trian.jsonl") == f"; did you mean {tmp_path}/train.jsonl?"
    assert nearest_file(tmp_path / "no" / "train.jsonl") == ""
