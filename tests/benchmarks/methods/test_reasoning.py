"""The command: which cells it runs, how it goes on, and the whole path with a tiny model."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.methods import reasoning, reasoning_results
from support.reasoning import SETTINGS


@pytest.fixture
def command(reasoning_world: Path, traces: list[str], tmp_path: Path) -> list[str]:
    folders = ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
    world = ["--model", str(reasoning_world / "model"), "--data", str(reasoning_world / "data")]
    return [*world, *folders, *traces, *SETTINGS]


def test_all_kinds_of_cells_from_pruning_to_answers(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neurons, layers, slices, and what recovers; a method that this version lacks is left out."""
    few = ["--shares", "0.8", "--more-shares", "--cells", "dense", "default_80_*", "s*_none_*"]
    few += ["minitron*"]
    config = tmp_path / "settings.yaml"
    config.write_text("learning_rate: 0.001\n")
    code = reasoning.main([*command, *few, "--config", str(config)])
    said = capsys.readouterr()
    assert code == 0, said.err
    found = reasoning_results.finished(reasoning_results.read_all(tmp_path / "results"))
    names = {"dense", "default_80_own_none_0", "shortgpt_80_own_none_0", "slicegpt_80_own_none_0"}
    names |= {"default_80_own-math_none_0", "default_80_written_none_0", "default_80_own_distill_0"}
    assert names <= found.keys()
    left_out = set(re.findall(r"(\S+): left out, as this version lacks", said.out))
    reasoning.main([*command, *few, "--config", str(config), "--list"])
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {name for name, status in listed.items() if status != "finished"} == left_out
    assert found["default_80_own_distill_0"]["setup"]["settings"]["learning_rate"] == 0.001
    assert all(len(reasoning_results.right(each, each["answers"])) == 8 for each in found.values())


def test_out_of_time_it_stops_between_batches_and_goes_on(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ["--cells", "dense"]
    assert reasoning.main([*command, *only, "--seconds", "0"]) == 0
    assert "stopped after 0 s; the same command continues" in capsys.readouterr().out
    assert not list((tmp_path / "results").iterdir())
    assert reasoning.main([*command, *only]) == 0
    assert re.search(r"dense: gsm8k \d right of 4 \(of 4\), mbpp", capsys.readouterr().out)


def test_development_is_measured_elsewhere(
    command: list[str], tmp_path: Path, reasoning_world: Path
) -> None:
    results = str(tmp_path / "chosen")
    flags = ["--development", "--cells", "dense", "--results", results]
    assert reasoning.main([*command, *flags]) == 0
    assert reasoning.main([*command, "--cells", "dense"]) == 0
    digests = {
        json.loads((tmp_path / folder / "dense.json").read_text())["setup"]["problems"]
        for folder in ("chosen", "results")
    }
    assert len(digests) == 2
    standard = reasoning.parse(["--model", "m", "--development", "--allow-code-execution"])
    assert standard.results.name == "reasoning_development"


def test_a_cell_that_fails_does_not_stop_the_others(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--shares", "0.8", "--more-shares", "--variant", "bad:sequence_length=5000"]
    code = reasoning.main([*command, *few, "--cells", "[bp]a*_none_*"])
    assert code == 1
    assert "bad_80_own_none_0: failed: --sequence-length: 5000" in capsys.readouterr().err
    assert (tmp_path / "results" / "paper_80_own_none_0.json").is_file()


def test_without_traces_the_model_makes_some(
    reasoning_world: Path, tmp_path: Path, traces: list[str]
) -> None:
    """The bundled model ends its answers to the questions that it knows."""
    folders = ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
    world = ["--model", str(reasoning_world / "model"), "--data", str(reasoning_world / "data")]
    given = [each for each in traces if each.startswith("mbpp")]
    flags = [*world, *folders, "--traces", *given, "--num-traced", "6", *SETTINGS]
    assert reasoning.main([*flags, "--max-tokens", "120", "--cells", "dense"]) == 0
    (file,) = (tmp_path / "work").glob("*/traces/gsm8k.jsonl")
    assert len(file.read_text().splitlines()) == 6


def test_small_is_two_cells(reasoning_world: Path) -> None:
    flags = ["--model", str(reasoning_world / "model"), "--small", "--allow-code-execution"]
    options = reasoning.parse(flags)
    assert [cell.name for cell, _ in reasoning.chosen(options)] == [
        "dense",
        "default_80_own_none_0",
    ]
    assert (options.problems, options.calibration_tokens) == (32, 8192)
    assert options.results.name == "reasoning_small"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "allow it with --allow-code-execution"),
        (["--allow-code-execution", "--traces", "svamp=x"], "BENCHMARK of gsm8k, mbpp"),
        (["--allow-code-execution", "--variant", "x"], "NAME:SETTING=VALUE"),
    ],
)
def test_wrong_flags_name_the_fix(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        reasoning.main(["--model", "m", *flags])
    assert message in capsys.readouterr().err
