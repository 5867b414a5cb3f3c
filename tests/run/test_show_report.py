"""ptl-fast report."""

from pathlib import Path

import pytest

from ptl_fast.run.show_report import main


def test_the_report_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.md").write_text("# Report\n")
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "# Report\n\n"


def test_where_there_is_none_it_is_said_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    assert main([str(tmp_path / "mien")]) == 2
    assert f"no folder {tmp_path}/mien; did you mean {tmp_path}/mine?" in capsys.readouterr().err
    assert main([str(tmp_path / "mine")]) == 2
    assert "holds no run of ptl_fast" in capsys.readouterr().err
    (tmp_path / "mine" / "state.json").write_text("{}")
    assert main([str(tmp_path / "mine")]) == 2
    assert "has no report yet" in capsys.readouterr().err


def test_a_run_that_has_stopped_is_not_followed_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state.json").write_text("{}")
    assert main([str(tmp_path), "--follow"]) == 1
    assert "it stopped at: evaluating the original model" in capsys.readouterr().out
