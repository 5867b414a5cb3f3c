"""The command line of the study on recovery."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.recovery import distillation, reinforcement, study


def test_validation_rows_do_not_overwrite_the_committed_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        study.main(["--split", "validation"])
    assert "--split validation needs a --json of its own" in capsys.readouterr().err


def test_each_section_has_files_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[Path] = []
    monkeypatch.setattr(reinforcement, "measure", lambda options: files.append(options.json))

    def measure(split: str, task: str, seeds: Any, file: Path, names: Any) -> None:
        files.append(file)

    monkeypatch.setattr(distillation, "measure", measure)
    assert study.main([]) == 0
    assert study.main(["--section", "distillation", "--split", "validation"]) == 0
    names = [file.name for file in files]
    assert names == ["recovery_demo.json", "recovery_distill_validation.json"]
