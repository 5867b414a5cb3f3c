"""Names and files are checked before anything heavy is imported."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptl_fast.config.config import Config
from ptl_fast.run import early_checks
from support.files import write_rows
from support.models import DEMO_MODEL

LIGHT = """
import sys
from ptl_fast.run.command import main
assert main(sys.argv[1:]) == 2
assert not {"torch", "transformers", "lm_eval", "datasets"} & set(sys.modules)
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """Settings in a folder with a model and data whose answers are in a column of their own."""
    monkeypatch.chdir(tmp_path)
    Path("mymodel").symlink_to(DEMO_MODEL)
    write_rows(tmp_path / "data.jsonl", {"question": "1 + 1?", "reply": "2"})

    def make(**values: Any) -> Config:
        given = {"model": "mymodel", "data": "data.jsonl", "answer_column": "reply", **values}
        return Config.from_flat(**given)

    return make


def test_a_run_does_not_write_into_its_data(settings: Callable[..., Config]) -> None:
    Path("rows").mkdir()
    write_rows(Path("rows") / "a.jsonl", {"question": "1 + 1?", "reply": "2"})
    Path("link").symlink_to("rows")
    early_checks.check(settings(data="rows", output="rows-out"))
    for more in ({"data": "rows"}, {"protect": "link"}, {"eval_tasks": "nll=rows"}):
        with pytest.raises(ValueError, match=r"rows/out lies in (rows|link), which is read"):
            early_checks.check(settings(**more, output="rows/out"))


def test_what_is_there_passes(settings: Callable[..., Config]) -> None:
    early_checks.check(settings())
    early_checks.check(settings(eval_tasks="nll,gsm8k_cot"))


def test_a_data_set_in_a_cache_passes_without_the_hub(
    settings: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="no file OWNER/Some-Set, and no such data set on the"):
        early_checks.check(settings(data="OWNER/Some-Set"))
    (tmp_path / "cache" / "owner___some_set").mkdir(parents=True)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    early_checks.check(settings(data="OWNER/Some-Set:train"))


WRONG = [
    ({"model": "mymodl"}, "--model mymodl cannot be loaded: no such folder, .* mean mymodel"),
    ({"model": "./mymodl"}, "--model ./mymodl cannot be loaded: no such folder; did you mean my"),
    ({"model": "data.jsonl"}, "--model data.jsonl is a file; give the model's folder"),
    ({"recovery": "distill", "teacher": "a/b/c"}, "--teacher a/b/c cannot be loaded"),
    ({"data": "dat.jsonl"}, r"no file dat.jsonl; did you mean data.jsonl\?"),
    ({"data": "data.jsonl,b.jsonl"}, "no file b.jsonl .*commas separate"),
    ({"answer_column": "repyl"}, r"--answer-column repyl does not fit them; did you mean reply\?"),
    ({"answer_column": None}, "beside question|expected a question"),
    ({"data": "datta"}, "no file datta, and no such data set on the hub or in its cache"),
    ({"protect": "general.txt"}, "no file general.txt"),
    ({"eval_tasks": "hellaswg"}, r"unknown evaluation task hellaswg; .* did you mean hellaswag\?"),
    ({"eval_tasks": "nll=dta.jsonl"}, r"no file dta.jsonl; did you mean data.jsonl\?"),
    ({"device": "cdua"}, r"unknown --device cdua; .*did you mean cuda\?"),
    ({"template": "papre"}, r"unknown --template 'papre'; .*did you mean paper\?"),
    ({"gate": "nl:nll", "max_drop": 0.1}, r"nl is none of --eval-tasks; .*did you mean nll\?"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_what_is_not_there_is_named_with_what_is_like_it(
    values: dict[str, Any], message: str, settings: Callable[..., Config]
) -> None:
    with pytest.raises(ValueError, match=message):
        early_checks.check(settings(**values))


def test_a_dry_run_looks_at_files_and_asks_no_hub_for_data(
    settings: Callable[..., Config],
) -> None:
    early_checks.check(settings(data="owner/nowhere", dry_run=True))
    early_checks.check(settings(eval_tasks="ptl_gsm8k=owner/nowhere", dry_run=True))
    early_checks.check(settings(data="nowhere.jsonl", dry_run=True), looks_at_data=False)
    for values, message in (
        ({"data": "nowhere.jsonl"}, "no file nowhere.jsonl"),
        ({"data": "/dev/null"}, "/dev/null is a device or a pipe"),
        ({"answer_column": "nope"}, "--answer-column nope does not fit"),
        ({"protect": "/"}, "/ holds more than .* files and folders"),
        ({"eval_tasks": "hellaswg"}, "unknown evaluation task"),
        ({"eval_tasks": "nll=/dev/zero"}, "/dev/zero is a device or a pipe"),
        ({"eval_tasks": "ptl_gsm8k=nowhere.jsonl"}, "ptl_gsm8k: no file nowhere.jsonl"),
        ({"eval_tasks": "ptl_gsm8k=data.jsonl"}, "ptl_gsm8k: data.jsonl line 1 .*answer"),
    ):
        with pytest.raises(ValueError, match=message):
            early_checks.check(settings(**values, dry_run=True))


@pytest.mark.parametrize(
    "flags", ["--data dat.jsonl", "--model mymodl", "--eval-tasks hellaswg", "--answer-column x"]
)
def test_nothing_heavy_is_imported_first(
    flags: str, settings: Callable[..., Config], environment: dict[str, str]
) -> None:
    command = ["--model", "mymodel", "--data", "data.jsonl", "--answer-column", "reply"]
    command += flags.split()
    subprocess.run([sys.executable, "-c", LIGHT, *command], check=True, env=environment)
