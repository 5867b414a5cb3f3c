"""Whatever is damaged, or another run's, the same command ends with the undisturbed result."""

import gc
import shutil
from pathlib import Path

from ptl_fast import compress
from support.damage import DAMAGES, files_of, run_until
from support.runs import RUN, without_seconds

SETTINGS = {**RUN, "rounds": 2, "recovery_tokens": 3000, "keep_optimizer_state": True}


def weights(folder: Path) -> bytes:
    return (folder / "final" / "model.safetensors").read_bytes()


def test_damage_to_any_file_changes_no_result(tiny_run: dict[str, str], tmp_path: Path) -> None:
    settings = {**tiny_run, **SETTINGS}
    undisturbed = compress(**settings, output=tmp_path / "whole")
    run_until("round-02", 2, settings, tmp_path / "stopped")
    gc.collect()
    names = files_of(tmp_path / "stopped")
    assert len(names) > 30
    # every other file, one kind each: which is all kinds of files, in turn
    for number, name in enumerate(names[::2]):
        kind = list(DAMAGES)[number % len(DAMAGES)]
        output = tmp_path / "again"
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(tmp_path / "stopped", output)
        DAMAGES[kind](output / name)
        report = compress(**settings, output=output)
        gc.collect()
        assert weights(output) == weights(tmp_path / "whole"), (kind, name)
        assert without_seconds(report) == without_seconds(undisturbed), (kind, name)


def test_what_is_of_another_run_changes_no_result(tiny_run: dict[str, str], tmp_path: Path) -> None:
    settings = {**tiny_run, **SETTINGS, "recovery_tokens": 1000}
    compress(**settings, output=tmp_path / "whole")
    compress(**{**settings, "seed": 1}, output=tmp_path / "other")
    assert weights(tmp_path / "whole") != weights(tmp_path / "other")
    run_until("round-02", 1, settings, tmp_path / "stopped")
    run_until("round-02", 1, {**settings, "seed": 1}, tmp_path / "other stopped")
    gc.collect()
    # whole folders, with their lists of checksums
    for other, name in (
        ("other", "round-01"),
        ("other stopped", "round-02"),
        ("other", "final"),
    ):
        output = tmp_path / "again"
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(tmp_path / "stopped", output)
        shutil.rmtree(output / name, ignore_errors=True)
        shutil.copytree(tmp_path / other / name, output / name)
        compress(**settings, output=output)
        gc.collect()
        assert weights(output) == weights(tmp_path / "whole"), (other, name)
