"""One damaged round is computed again; whether several are is the user's choice."""

import json
import shutil
from pathlib import Path

import pytest

from ptl_fast import compress
from ptl_fast.run import repair
from ptl_fast.run.folder import RunFolder
from support.damage import DAMAGES, run_until
from support.runs import RUN, without_seconds

SETTINGS = {**RUN, "recovery_tokens": 4000}


def result(folder: Path) -> bytes:
    return (folder / "final" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def stopped(
    tiny_run: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """(a finished run, the same stopped in round 3)"""
    folder = tmp_path_factory.mktemp("runs")
    compress(**tiny_run, **SETTINGS, output=folder / "whole")
    run_until("round-03", 1, {**tiny_run, **SETTINGS}, folder / "stopped")
    return folder / "whole", folder / "stopped"


def test_more_than_one_round_is_computed_again_only_if_the_user_wants(
    stopped: tuple[Path, Path], tiny_run: dict[str, str], tmp_path: Path
) -> None:
    whole, run = stopped[0], Path(shutil.copytree(stopped[1], tmp_path / "run"))
    DAMAGES["flip"](run / "round-02" / "model" / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors does not hold") as told:
        compress(**tiny_run, **SETTINGS, output=run)
    assert f"delete {run}/round-01, {run}/round-02, and give the same command" in str(told.value)
    for number in (1, 2):
        shutil.rmtree(run / f"round-{number:02d}")
    report = compress(**tiny_run, **SETTINGS, output=run)
    assert result(run) == result(whole)
    undisturbed = json.loads((whole / "report.json").read_text())
    assert without_seconds(report) == without_seconds(undisturbed)


def test_a_finished_runs_deleted_last_round_is_not_taken_for_one_to_come(
    stopped: tuple[Path, Path], tiny_run: dict[str, str], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(stopped[0], tmp_path / "run"))
    shutil.rmtree(run / "round-03")
    with pytest.raises(ValueError, match="are those of the original model") as told:
        compress(**tiny_run, **SETTINGS, output=run)
    assert f"delete {run}/round-01, {run}/round-02, and give the same command" in str(told.value)


def test_a_round_whose_start_was_kept_is_computed_again(
    tiny_run: dict[str, str], stopped: tuple[Path, Path], tmp_path: Path
) -> None:
    kept = {**tiny_run, **SETTINGS, "keep_rounds": 2}
    run_until("round-03", 1, kept, tmp_path / "run")
    DAMAGES["halve"](tmp_path / "run" / "round-02" / "model" / "model.safetensors")
    compress(**kept, output=tmp_path / "run")
    assert result(tmp_path / "run") == result(stopped[0])


def test_a_damaged_record_is_made_again(stopped: tuple[Path, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(stopped[0], tmp_path / "run"))
    folder = RunFolder(run)
    DAMAGES["halve"](folder.round(1).record.path)
    assert folder.num_finished_rounds() == 3
    DAMAGES["delete"](folder.round(3).record.path)
    assert repair.usable_rounds(folder, False) == 3


@pytest.mark.parametrize("content", ["{}", "[]", '{"round": 1, "eval": {}}'])
def test_a_record_that_is_none_is_made_again_without_checksums_too(
    stopped: tuple[Path, Path], tiny_run: dict[str, str], tmp_path: Path, content: str
) -> None:
    run = Path(shutil.copytree(stopped[1], tmp_path / "run"))
    for name in ("round-01/record.json", "dense.json", "log/rounds/tracked.json", "state.json"):
        (run / name).write_text(content)
        (run / name).with_name("checksums.list").unlink(missing_ok=True)
    report = compress(**tiny_run, **SETTINGS, output=run)
    assert result(run) == result(stopped[0])
    undisturbed = json.loads((stopped[0] / "report.json").read_text())
    assert without_seconds(report) == without_seconds(undisturbed)


def decision(round_number: int, action: str) -> dict:
    shared = {"attempt": 1, "extension": 0, "task": "nll", "metric": "nll", "step": 8, "tokens": 1}
    shared |= {"kind": "neurons", "dense": 1.0, "higher_is_better": False}
    return {"round": round_number, "action": action, **shared, "measured": 1.0, "limit": 1.0}


def test_decisions_on_rounds_that_are_computed_again_are_forgotten(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    made = [
        decision(1, "pass"),
        decision(2, "back-off"),
        decision(2, "extend"),
        decision(2, "pass"),
        decision(3, "back-off"),
    ]
    for number in (1, 2):
        folder.round(number).plan.write({})
        folder.round(number).record.write({})
    folder.round(3).plan.write({})
    assert repair.decisions_until(made, folder, 2) == made
    assert repair.decisions_until(made, folder, 1) == made[:2]
    assert repair.decisions_until(made, folder, 0) == []
    for number in (2, 3):
        folder.failed(number, 1).record.write({})
    repair.forget_rounds(folder, 1)
    left = sorted(path.name for path in tmp_path.glob("round-*"))
    assert left == ["round-01", "round-02.failed-1"]
