"""The tables of docs/reasoning.md are what the cells' files give."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.documents import reasoning_table
from benchmarks.documents.reasoning_table import COLUMNS
from benchmarks.harness.markdown import MISSING
from benchmarks.methods import reasoning_results
from support.reasoning import fake_result


def put(folder: Path, name: str, right: str, num_parameters: int = 800, **cell: Any) -> None:
    result = fake_result(name, right, **cell)
    result["size"] = {**result["size"], "num_parameters": num_parameters}
    reasoning_results.write(folder / f"{name}.json", result)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    own = tmp_path / "reasoning"
    own.mkdir()
    put(own, "dense", "111011", 1000, method="dense")
    put(own, "default_80_own_none_0", "110010", share=0.8)
    put(own, "default_80_own_none_1", "110011", share=0.8, seed=1)
    put(own, "wanda_80_own_none_0", "100000", 801, method="wanda", share=0.8)
    put(own, "default_80_own-math_none_0", "111000", share=0.8, calibration="own-math")
    put(own, "default_80_own_distill_0", "111010", share=0.8, recovery="distill")
    return tmp_path


def row(table: list[list[str]], start: str) -> dict[str, str]:
    """The first line of this model: that of the largest share."""
    found = next(line for line in table if line[0].startswith(start))
    return dict(zip(COLUMNS, found, strict=True))


def test_lines_are_compared_with_our_default_problem_by_problem(folder: Path) -> None:
    table = reasoning_table.make_tables(folder)["pruned"]()
    dense, ours, wanda = (row(table, name) for name in ("dense", "our default, 2", "Wanda"))
    assert (dense["GSM8K right %"], dense["MBPP right %"]) == ("75.0", "100.0")
    assert (dense["parameters"], dense["of dense %"], dense["prefill"]) == ("100.0%", "100", "1.00")
    # two seeds: 2 of 4 and 1.5 of 2
    assert (ours["GSM8K right %"], ours["MBPP right %"], ours["both %"]) == ("50.0", "75.0", "58.3")
    assert (ours["of dense %"], ours["default ahead ± standard error"]) == ("70", "")
    assert wanda["model"] == "Wanda, structured ([2306.11695](https://arxiv.org/abs/2306.11695))"
    # differences 0, 1, 0, 0, 1, 0.5: mean 5/12, standard deviation 0.4916
    assert wanda["default ahead ± standard error"] == "+41.7 ± 20.1"
    assert wanda["p"] == "0.25"
    assert wanda["parameters"] == "80.1%"
    assert wanda["s an answer"] == "1.0"


def test_what_is_not_finished_keeps_its_line(folder: Path) -> None:
    table = reasoning_table.make_tables(folder)["pruned"]()
    assert row(table, "SliceGPT")["both %"] == MISSING
    lines = [dict(zip(COLUMNS, line, strict=True)) for line in table]
    missing = [line for line in lines if line["both %"] == MISSING]
    shares = [line["parameters"] for line in missing if line["model"] == "our default"]
    assert shares == ["65%", "90%", "50%"]


def test_other_tables_have_their_lines(folder: Path) -> None:
    makers = reasoning_table.make_tables(folder)
    skills, recovered = makers["skills"](), makers["recovered"]()
    assert [line[0] for line in skills[1:]] == [
        "our default, 2 seeds",
        "our default, own answers, mathematics alone",
        "our default, the data's answers, both tasks",
    ]
    assert row(skills, "our default, own answers, m")["default ahead ± standard error"] != ""
    assert row(recovered, "our default, `distill`")["of dense %"] == "80"
    assert len(makers["development"]()) == 1
    assert makers["origin"]()[1][0] == "m"


def test_speedups_are_those_of_the_same_size(folder: Path) -> None:
    sizes = {"compressed": {"num_parameters": 801, "num_layers": 4, "width": 64}}
    rows = [
        {"work": work, "status": "ok", "batch_size": batch, "prompt_length": 8, "speedup": speedup}
        for work, batch, speedup in (("prefill", 1, 1.1), ("prefill", 8, 1.3), ("decode", 1, 1.2))
    ]
    file = folder / "reasoning" / "speed_64.json"
    file.write_text(json.dumps({"sizes": sizes, "rows": rows}))
    table = reasoning_table.make_tables(folder)["pruned"]()
    wanda, ours = row(table, "Wanda"), row(table, "our default, 2")
    assert (wanda["prefill"], wanda["decode"]) == ("1.30", "1.20")
    assert ours["prefill"] == MISSING


def test_the_document_is_what_the_results_give() -> None:
    reasoning_table.main(["--check"])


def test_other_numbers_of_calibration_tokens_are_named(folder: Path) -> None:
    file = folder / "reasoning" / "wanda_80_own_none_0.json"
    result = json.loads(file.read_text())
    result["setup"]["settings"] = {"calibration_tokens": 4096}
    file.write_text(json.dumps(result))
    table = reasoning_table.make_tables(folder)["pruned"]()
    assert row(table, "Wanda")["model"].endswith(", 4,096 tokens")
