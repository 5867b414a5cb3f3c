"""The files of a run have the names that runs on disk have, and only whole ones count."""

from pathlib import Path

from ptl_fast.base.run_files import WRITTEN, Checkpoint, RecoveryFolder, RunFiles


def test_half_written_checkpoint_is_not_used(tmp_path: Path) -> None:
    folder = RecoveryFolder(tmp_path)
    for step in (3, 12, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert folder.newest_checkpoint() is None
    for step in (3, 12):
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"moments")
        (tmp_path / f"checkpoint-{step}" / "complete").write_text('{"optimizer.pt": 7}')
    assert folder.newest_checkpoint() == Checkpoint(tmp_path / "checkpoint-12")
    (tmp_path / "checkpoint-12" / "optimizer.pt").write_bytes(b"mom")  # as after a power failure
    newest = folder.newest_checkpoint()
    assert newest is not None
    assert newest.step == 3
    folder.remove_checkpoints(but=newest)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_names_are_those_of_runs_on_disk() -> None:
    """A run that an older version began is continued only under the same names."""
    run = RunFiles(Path("run"))
    own, extension = run.round(1), run.round(12).recovery_folder(2)
    names = {
        run.state_file.path: "state.json",
        run.final.path: "final",
        run.failed(3, 1).record.path: "round-03.failed-1/record.json",
        run.size(1).path: "sizes/round-01",
        run.sizes.path: "sizes/sizes.json",
        own.plan.path: "round-01/plan.json",
        own.recovery().path: "round-01/recovery.json",
        own.recovered(1).path: "round-01/recovered-extra-1.json",
        own.model(1).path: "round-01/model-extra-1",
        own.optimizer_state().path: "round-01/optimizer.safetensors",
        own.next_statistics().path: "round-01/next_statistics.safetensors",
        own.recovery_folder().checkpoint(8).statistics.path: (
            "round-01/recovery/checkpoint-8/watched.pt"
        ),
        extension.checkpoint(8).closing.path: "round-12/recovery-extra-2/checkpoint-8/closing.json",
        extension.teacher_part(3).path: "round-12/recovery-extra-2/teacher/part-00003.safetensors",
        extension.method("cpt").weights.path: "round-12/recovery-extra-2/cpt/weights.pt",
        extension.method("cpt").result.path: "round-12/recovery-extra-2/cpt/result.json",
    }
    for path, name in names.items():
        assert path == Path("run") / name


def test_all_at_the_top_is_what_overwrite_deletes() -> None:
    run = RunFiles(Path())
    stored = [each.path for each in vars(run).values() if hasattr(each, "path")]
    folders = [run.round(1).path, run.round(100).path, run.failed(2, 1).path]
    # what lies in a folder at the top, such as sizes/, goes with it
    stored = [Path(path.parts[0]) for path in stored]
    for path in [*stored, *folders, run.log, run.report_text, run.page, run.sizes.path.parent]:
        assert WRITTEN.fullmatch(path.name), path
