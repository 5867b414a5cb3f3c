"""A run that is killed in any stage goes on with the same command, and ends bit-identical to one
that was not.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ptl_fast import compress
from support.processes import kill_when
from support.runs import RUN, as_flags, main, without_seconds

STAGES = [
    "dense.json",
    "round-01/plan.json",
    "round-01/pruned.json",
    "round-01/recovery/checkpoint-*/complete",
    "round-01/model.tmp",
    "round-01/model",
    "round-01/record.json",
    "round-02/statistics.safetensors",
    "round-02/plan.json",
    "round-02/recovery/checkpoint-*",
    "round-02/model",
    "round-02/record.json",
]


def test_killed_run_goes_on_and_ends_bit_identical(
    tiny_run: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Killed with -9, at each stage once."""
    monkeypatch.chdir(tmp_path)
    shape = {"rounds": 1, "keep": 0.75, "drop_layers": 1, "order": "layers-then-neurons"}
    flags = as_flags({**tiny_run, **RUN, **shape, "recovery_tokens": 6000})
    assert main([*flags, "--output", "undisturbed"]) == 0
    again = [*flags, "--output", "run"]
    kills = [stage for stage in STAGES if kill_when(f"run/{stage}", again, tmp_path)]
    # a folder that lives for milliseconds may be missed; every file that stays may not
    assert set(STAGES) - set(kills) <= {"round-01/model.tmp"}, kills
    capsys.readouterr()
    assert main(again) == 0
    assert "continuing after round" in capsys.readouterr().out
    runs = [tmp_path / "undisturbed", tmp_path / "run"]
    for name in (
        "final/model.safetensors",
        "final/config.json",
        "round-01/plan.json",
        "round-02/statistics.safetensors",
    ):
        first, second = [(run / name).read_bytes() for run in runs]
        assert first == second, name
    reports = [json.loads((run / "report.json").read_text()) for run in runs]
    assert without_seconds(reports[0]) == without_seconds(reports[1])
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert sorted(path.parent.name for path in (tmp_path / "run").glob("round-*/model")) == [
        "round-02"
    ]


@pytest.mark.parametrize("stage", ["statistics.safetensors", "plan.json", "pruned.json"])
def test_weights_of_tokens_and_columns_in_order_are_the_same_after_a_kill(
    stage: str,
    tiny_run: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed with -9 before the second round is planned, before it is pruned, and after: what the
    weights and the columns follow from is made again, or read.
    """
    monkeypatch.chdir(tmp_path)
    weights = {"token_weights": "divergence", "rounds": 2, "recovery_tokens": 3000}
    in_order = {"compensate_inputs": "pruned", "ridge": "auto"}
    flags = as_flags({**tiny_run, **RUN, **weights, **in_order})
    assert main([*flags, "--output", "undisturbed"]) == 0
    again = [*flags, "--output", "run"]
    assert kill_when(f"run/round-02/{stage}", again, tmp_path)
    assert main(again) == 0
    for name in (
        "final/model.safetensors",
        "round-02/plan.json",
        "round-02/statistics.safetensors",
        "round-02/token_weights.json",
    ):
        first, second = ((tmp_path / run / name).read_bytes() for run in ("undisturbed", "run"))
        assert first == second, name


def test_a_run_goes_on_with_smaller_batches(
    tiny_run: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As after running out of memory: in the middle of recovery, with the same weights in the end,
    to rounding.
    """
    monkeypatch.chdir(tmp_path)
    flags = as_flags({**tiny_run, **RUN, "rounds": 1, "global_batch": 8, "micro_batch": 8})
    assert main([*flags, "--output", "undisturbed"]) == 0
    again = [*flags, "--output", "run"]
    assert kill_when("run/round-01/recovery/checkpoint-*/complete", again, tmp_path)
    smaller = ["--micro-batch", "2", "--eval-batch", "3", "--gradient-checkpointing", "true"]
    capsys.readouterr()
    assert main([*again, *smaller]) == 0
    assert "--micro-batch was 8 and is 2 from here" in capsys.readouterr().out
    first, second = (
        load_file(tmp_path / run / "final" / "model.safetensors") for run in ("undisturbed", "run")
    )
    for name, weight in first.items():
        assert (second[name] - weight).norm() <= 1e-5 * weight.norm(), name
    assert json.loads((tmp_path / "run" / "state.json").read_text())["config"]["micro_batch"] == 2


def test_finished_run_answers_at_once_and_another_is_refused(
    tiny_run: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {**tiny_run, **RUN, "rounds": 1, "recovery": "none", "output": "run"}
    flags = as_flags(settings)
    assert main(flags) == 0
    weights = (tmp_path / "run" / "final" / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert main([*flags, "--checkpoint-minutes", "3"]) == 0
    assert "Result: run/final" in capsys.readouterr().out
    assert main([*flags, "--keep", "0.75"]) == 2
    refusal = "run holds another run: its --keep is 0.5, now it is 0.75"
    assert refusal in capsys.readouterr().err
    assert (tmp_path / "run" / "final" / "model.safetensors").stat().st_mtime_ns == weights
    assert main([*flags, "--keep", "0.75", "--overwrite"]) == 0
    config = json.loads((tmp_path / "run" / "final" / "config.json").read_text())
    assert config["intermediate_size"] == 32


def test_library_use(tmp_path: Path) -> None:
    """``from ptl_fast import compress`` is a function."""
    settings = {
        "recovery": "none",
        "recovery_tokens": 9000,
        "sequence_length": 128,
        "eval_limit": 5,
        "calibration_tokens": 2000,
    }
    report = compress(
        preset="demo", **settings, rounds=1, device="cpu", output=str(tmp_path / "run")
    )
    assert report["final"]["width"] == 384
