"""Every round's model is a result of its own, whatever happens to the run in between."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ptl_fast import compress
from ptl_fast.run import publish, size_folders
from support.runs import RUN, as_flags, kill_at
from support.settings import settings

UNTRAINED = {**RUN, "recovery": "none"}


def weights(folder: Path) -> dict[str, str]:
    """A hash of every model's weights below a folder, by place."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("model.safetensors"))
    }


@pytest.fixture(scope="module")
def run(tiny_run: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three rounds."""
    output = tmp_path_factory.mktemp("sizes") / "run"
    compress(**tiny_run, **UNTRAINED, output=output)
    return output


def test_every_round_loads_and_is_as_small_as_the_table_says(run: Path) -> None:
    rows = json.loads((run / "sizes" / "sizes.json").read_text())
    assert [row["folder"] for row in rows] == ["sizes/round-01", "sizes/round-02", "final"]
    for row in rows:
        model = AutoModelForCausalLM.from_pretrained(run / row["folder"])
        AutoTokenizer.from_pretrained(run / row["folder"])
        assert model.num_parameters() == row["num_parameters"]
        assert row["bytes"] == (run / row["folder"] / "model.safetensors").stat().st_size
        card = (run / row["folder"] / "README.md").read_text()
        # the card of a round knows nothing of later ones
        assert card.count(" neurons |") == row["round"]
    assert not (run / "sizes" / "round-03").exists()
    table = (run / "sizes" / "README.md").read_text()
    assert all(f" {row['folder']} |" in table for row in rows)
    assert json.loads((run / "report.json").read_text())["sizes"] == rows


def test_a_size_shares_no_storage_with_what_the_run_reads(run: Path) -> None:
    for file in (run / "sizes").rglob("*"):
        assert file.is_dir() or file.stat().st_nlink == 1, file


@pytest.mark.parametrize(
    ("attribute", "call"),
    [
        pytest.param("write_report", 1, id="before-round-1-is-published"),
        pytest.param("_write_sizes", 2, id="before-round-2-is-published"),
        pytest.param("finish", 1, id="before-the-result"),
    ],
)
def test_a_killed_run_ends_with_the_same_sizes(
    attribute: str, call: int, run: Path, tiny_run: dict[str, str], tmp_path: Path
) -> None:
    flags = as_flags({**tiny_run, **UNTRAINED, "output": tmp_path / "run"})
    kill_at(attribute, publish, call, flags)
    compress(**tiny_run, **UNTRAINED, output=tmp_path / "run")
    assert weights(tmp_path / "run" / "sizes") == weights(run / "sizes")
    assert weights(tmp_path / "run" / "final") == weights(run / "final")


def test_a_run_without_sizes_has_the_same_result_and_no_word_of_them(
    run: Path, tiny_run: dict[str, str], tmp_path: Path
) -> None:
    report = compress(**tiny_run, **UNTRAINED, keep_sizes=False, output=tmp_path / "run")
    assert "sizes" not in report
    assert not (tmp_path / "run" / "sizes").exists()
    assert weights(tmp_path / "run" / "final") == weights(run / "final")


def test_what_was_not_kept_is_said(tiny_run: dict[str, str], tmp_path: Path) -> None:
    """A run that began without sizes goes on with them: its first rounds' weights are gone."""
    flags = {**tiny_run, **UNTRAINED, "output": tmp_path / "run"}
    kill_at("write_report", publish, 2, as_flags({**flags, "keep_sizes": False}))
    report = compress(**flags)
    assert [row["folder"] for row in report["sizes"]] == [None, "sizes/round-02", "final"]
    assert "round 1 (not kept)" in (tmp_path / "run" / "sizes" / "README.md").read_text()


def test_a_damaged_size_is_copied_again_while_its_round_is_kept(
    run: Path, tiny_run: dict[str, str], tmp_path: Path
) -> None:
    settings = {**tiny_run, **UNTRAINED, "keep_rounds": 9, "output": tmp_path / "run"}
    compress(**settings)
    (tmp_path / "run" / "sizes" / "round-01" / "model.safetensors").write_bytes(b"not it")
    compress(**settings)
    assert weights(tmp_path / "run" / "sizes") == weights(run / "sizes")


def test_only_tasks_that_every_row_has_are_columns() -> None:
    dense: dict[str, Any] = {
        "num_parameters": 1000,
        "flops_per_token": 2000,
        "eval": {"nll": {"nll": 0.5}, "other": {"acc": 1.0}},
    }
    row = {
        "round": 1,
        "folder": "final",
        "bytes": 2**20,
        "num_parameters": 500,
        "flops_per_token": 1500,
        "eval": {"nll": {"nll": 0.75}},
        "seconds": 3.4,
    }
    last = size_folders.to_markdown(dense, [row]).splitlines()[-1]
    assert [cell.strip() for cell in last.split("|")][1:-1] == [
        "final",
        "500",
        "50.0%",
        "1.5k",
        "75.0%",
        "1.0",
        "0.7500",
        "3",
    ]


def test_dry_run_says_what_the_results_take() -> None:
    rows = [{"num_parameters": count} for count in (2**31, 2**30, 2**29)]
    told = size_folders.prediction(settings(), rows, 2)
    assert "in 2 bytes a weight: 1.074 GB (1 GiB) in final/, and 2.147 GB (2 GiB)" in told
    assert "4.295 GB (4 GiB) in final/, and" in size_folders.prediction(settings(), rows, 8)
    assert size_folders.prediction(settings(), rows[:2], 2).endswith("(2 GiB) in final/.")
    alone = size_folders.prediction(settings(keep_sizes=False), rows, 2)
    assert "1.074 GB (1 GiB) (--keep-sizes false" in alone


def test_weights_of_every_format_count(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    expected = (tmp_path / "pytorch_model.bin").stat().st_size
    assert size_folders.weights_bytes(tmp_path) == expected
