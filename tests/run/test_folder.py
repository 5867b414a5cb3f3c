"""Files appear whole or not at all; what is there is not computed again; a folder that is not ours
is left alone.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ptl_fast.base.run_files import PLAN
from ptl_fast.run import folder as folder_module
from ptl_fast.run.folder import RunFolder, read_plan

STATE = {"config": {"keep": 0.5, "seed": 0}, "data": "abc"}


A_PLAN = dict.fromkeys(PLAN, 1)


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "run", STATE)
    first.open(False)
    with pytest.raises(ValueError, match="another process is working"):
        RunFolder(tmp_path / "run", STATE).open(False)
    first.lock.close()
    RunFolder(tmp_path / "run", STATE).open(False)


def test_what_was_read_before_another_process_ended_does_not_count(tmp_path: Path) -> None:
    """A job that is started while the one before it is ending waits for no lock."""
    ending, starting = RunFolder(tmp_path / "run", STATE), RunFolder(tmp_path / "run", STATE)
    ending.check(False)
    ending.open(False)
    starting.check(False)
    ending.write_report("a round more")
    ending.lock.close()
    with pytest.raises(ValueError, match="since this one began; give the same command again"):
        starting.open(False)
    starting.lock.close()
    again = RunFolder(tmp_path / "run", STATE)
    again.check(False)
    again.open(False)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda lock: lock.symlink_to("precious")])
def test_only_a_file_is_a_lock(make: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    make(tmp_path / ".lock")
    told = ""
    try:
        RunFolder(tmp_path, STATE).open(False)
    except ValueError as error:
        told = str(error)
    # a pipe can be locked
    assert told.startswith(f"{tmp_path / '.lock'} cannot be opened (") == (make is not os.mkfifo)
    assert (tmp_path / "precious").read_text() == "data"


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    for target in ("nothing", "out"):
        (tmp_path / "out").symlink_to(target)
        with pytest.raises(ValueError, match=f"is a link to {target}, which is not there"):
            RunFolder(tmp_path / "out", STATE).check(False)
        (tmp_path / "out").unlink()


def test_another_run_is_named(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", STATE).open(False)
    RunFolder(tmp_path / "run", STATE).check(False)
    with pytest.raises(ValueError, match=r"its --keep is 0\.5, now it is 0\.6"):
        RunFolder(tmp_path / "run", {**STATE, "config": {"keep": 0.6, "seed": 0}}).check(False)
    with pytest.raises(ValueError, match="other data"):
        RunFolder(tmp_path / "run", {**STATE, "data": "def"}).check(False)


def test_a_later_version_is_named(tmp_path: Path) -> None:
    later = {**STATE, "config": {**STATE["config"], "later": 3}}  # type: ignore[dict-item]
    RunFolder(tmp_path / "run", later).open(False)
    with pytest.raises(ValueError, match="another version of ptl_fast, with a setting later that"):
        RunFolder(tmp_path / "run", STATE).check(False)


def test_a_run_without_a_fingerprint_of_its_weights_goes_on(tmp_path: Path) -> None:
    """Older versions took none of .bin files and of the hub's models; others' they compare."""
    inputs = {"data": "abc", "weights": {}, "teacher": {}}
    now = {**inputs, "weights": {"pytorch_model.bin": "9-f"}}
    RunFolder(tmp_path / "old", {"config": {}, "inputs": inputs}).open(False)
    RunFolder(tmp_path / "old", {"config": {}, "inputs": now}).check(False)
    with pytest.raises(ValueError, match="other data"):
        RunFolder(tmp_path / "old", {"config": {}, "inputs": {**now, "data": "d"}}).check(False)
    RunFolder(tmp_path / "new", {"config": {}, "inputs": now}).open(False)
    with pytest.raises(ValueError, match="other data or weights"):
        RunFolder(tmp_path / "new", {"config": {}, "inputs": inputs}).check(False)


def test_a_run_without_a_fingerprint_of_its_tokenizer_goes_on(tmp_path: Path) -> None:
    inputs = {"data": "abc", "weights": {"w": "1"}}
    now = {**inputs, "model_files": {"config.json": "2", "tokenizer.json": "3"}}
    RunFolder(tmp_path, {"config": {}, "inputs": inputs}).open(False)
    run = RunFolder(tmp_path, {"config": {}, "inputs": now})
    run.check(False)
    run.lock_file.unlink()
    run.open(False)
    other = {**now, "data": "d", "model_files": {"config.json": "2", "tokenizer.json": "4"}}
    with pytest.raises(ValueError, match=r"weights \(data, tokenizer.json\); give"):
        RunFolder(tmp_path, {"config": {}, "inputs": other}).check(False)


def test_overwrite_never_deletes_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="not a run"):
        RunFolder(tmp_path, STATE).check(True)


def test_overwrite_empties_the_folder_but_not_a_busy_one(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "run", STATE)
    first.open(False)
    first.round(1).plan.write(A_PLAN)
    with pytest.raises(ValueError, match="another process is working"):
        RunFolder(tmp_path / "run", STATE).open(True)
    assert first.round(1).plan.read() == A_PLAN
    first.lock.close()
    RunFolder(tmp_path / "run", STATE).open(True)
    assert {file.name for file in (tmp_path / "run").iterdir()} == {
        ".lock",
        "state.json",
        "copies",
        "checksums.list",
    }


OURS = [
    "round-01.failed-1/plan.json",
    "final.tmp/config.json",
    "final/config.json",
    "log/x",
    "traces/00-00000.jsonl",
    "report.md",
    "dense.json.tmp",
]
FOREIGN = [
    "notes.txt",
    "other/x.py",
    "final.txt",
    "report.pdf",
    "final.mine/x",
    "log.old/x",
    "round-notes/x",
    "state.old.json",
]


def fill(folder: Path) -> None:
    RunFolder(folder, STATE).open(False)
    for name in [*OURS, *FOREIGN]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")


def test_overwrite_deletes_only_what_a_run_writes(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    fill(run)
    elsewhere.mkdir()
    (elsewhere / "weights").write_text("x")
    (run / "round-02").symlink_to(elsewhere)
    RunFolder(run, STATE).open(True)
    left = {
        str(file.relative_to(run)) for file in run.rglob("*") if file.is_file() or file.is_symlink()
    }
    assert left == {
        ".lock",
        "state.json",
        "copies/state.json",
        "copies/checksums.list",
        "checksums.list",
        *FOREIGN,
    }
    assert (elsewhere / "weights").read_text() == "x"


def test_an_interrupted_deletion_is_not_continued_as_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path)

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(folder_module.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            RunFolder(tmp_path, STATE).open(True)
    with pytest.raises(ValueError, match="--overwrite"):
        RunFolder(tmp_path, STATE).check(False)
    RunFolder(tmp_path, STATE).check(True)
    RunFolder(tmp_path, STATE).open(True)
    assert not (tmp_path / "final").exists()


def test_settings_that_only_round_otherwise_may_change_and_are_named(tmp_path: Path) -> None:
    def state(**config: int) -> dict:
        return {**STATE, "config": {**STATE["config"], **config}}

    RunFolder(tmp_path, state(eval_batch=16, micro_batch=2)).open(False)
    later = RunFolder(tmp_path, state(eval_batch=4, micro_batch=2))
    assert later.check(False) == {"eval_batch": (16, 4)}
    with pytest.raises(ValueError, match=r"its --seed is 0, now it is 1"):
        RunFolder(tmp_path, state(eval_batch=4, micro_batch=2, seed=1)).check(False)


def test_a_run_from_before_a_setting_goes_on_with_what_it_did(tmp_path: Path) -> None:
    """Absent in state.json, a setting counts as what was done without it, mostly its default."""
    RunFolder(tmp_path, STATE).open(False)

    def now(**config: float | str) -> RunFolder:
        return RunFolder(tmp_path, {**STATE, "config": {**STATE["config"], **config}})

    assert now(ridge=1e-4, score_once=False).check(False) == {}
    with pytest.raises(
        ValueError, match=r"its --ridge is 0\.0001, now it is auto; give --ridge 0\.0001 to"
    ):
        now(ridge="auto", score_once=False).check(False)
    with pytest.raises(ValueError, match=r"its --compensate-layers is False, now it is True"):
        now(ridge=1e-4, compensate_layers=True).check(False)
    with pytest.raises(ValueError, match=r"its --score-once is False, now it is True"):
        now(ridge=1e-4, score_once=True).check(False)


def test_settings_that_the_run_does_not_read_may_be_others(tmp_path: Path) -> None:
    """An older version kept them all."""
    kept = {**STATE, "config": {**STATE["config"], "opd_learning_rate": 1.0}}
    RunFolder(tmp_path, kept).open(False)
    assert RunFolder(tmp_path, STATE).check(False) == {}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is no folder that you may write to"):
        RunFolder(tmp_path / "file" / "run", STATE).check(False)


def test_crash_before_the_state_is_written_does_not_block(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "state.json.tmp").write_text("{")
    RunFolder(tmp_path, STATE).check(False)


def test_what_tensorboard_writes_into_a_deleted_folder_does_not_block(tmp_path: Path) -> None:
    log = tmp_path / "log" / "round-01"
    log.mkdir(parents=True)
    (log / "events.out.tfevents.17.host.1.0").touch()
    RunFolder(tmp_path, STATE).check(False)
    (log / "notes.txt").touch()
    with pytest.raises(ValueError, match="is not a run of ptl_fast"):
        RunFolder(tmp_path, STATE).check(False)


def test_damaged_state_is_named(tmp_path: Path) -> None:
    for content in ("{", "{}", "[]"):
        (tmp_path / "state.json").write_text(content)
        with pytest.raises(ValueError, match=r"state\.json and its copy, .* are damaged or lost"):
            RunFolder(tmp_path, STATE).check(False)


def test_a_lost_state_is_made_again_for_the_command_that_began_the_run(tmp_path: Path) -> None:
    begun = {"config": {"keep": 0.5, "micro_batch": 4}, "inputs": {"data": "abc"}}
    first = RunFolder(tmp_path, begun)
    first.open(False)
    first.round(1).plan.write(A_PLAN)
    first.lock.close()
    for file in (first.state_file.path, first.state_file.copy.path):
        file.unlink()
    # it is of rounding alone
    same = {**begun, "config": {**begun["config"], "micro_batch": 2}}
    for other in ({**begun, "inputs": {"data": "abd"}}, {**begun, "config": {"keep": 0.6}}):
        with pytest.raises(ValueError, match=r"give the command that began the run, another --out"):
            RunFolder(tmp_path, other).check(False)
    again = RunFolder(tmp_path, same)
    assert again.settings() == {}
    again.check(False)
    again.open(False)
    assert again.round(1).plan.exists()
    assert RunFolder(tmp_path).settings() == same["config"]


def test_rounds_of_which_nothing_says_whose_they_are_are_not_begun_again(tmp_path: Path) -> None:
    (tmp_path / "round-01").mkdir()
    (tmp_path / "round-01" / "plan.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has rounds of a run, and its state\.json, copies/ and"):
        RunFolder(tmp_path, STATE).check(True)


def test_lost_decisions_are_named_with_their_copy(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, STATE)
    run.open(False)
    run.decisions.write([])
    for file in (run.decisions.path, run.decisions.copy.path):
        file.unlink()
    with pytest.raises(ValueError, match=r"decisions\.json and its copy, .*put one of them back"):
        run.decisions.read()


def test_full_disk_is_noticed_before_work_begins(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="MiB free, and the run needs about"):
        RunFolder(tmp_path / "deep" / "run", STATE).check_disk(10**18)
    assert not (tmp_path / "deep").exists()


def test_a_plan_that_is_none_is_damaged(tmp_path: Path) -> None:
    files = RunFolder(tmp_path).round(1)
    files.plan.write({**A_PLAN, "other": 1})
    with pytest.raises(ValueError, match=r"plan.json is damaged .*unexpected.*; delete it"):
        read_plan(files)
