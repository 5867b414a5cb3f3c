"""ptl-fast and its subcommands."""

import importlib
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ptl_fast.run import start, subcommands
from ptl_fast.run.subcommands import SUBCOMMANDS, main, version
from support.runs import main as compress


def test_every_subcommand_is_there_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    for name, each in SUBCOMMANDS.items():
        assert callable(getattr(importlib.import_module(each.module), each.function))
        assert f"  {name} " in listed
    assert max(map(len, listed.splitlines())) <= 120


@pytest.mark.parametrize("name", sorted(SUBCOMMANDS))
def test_every_subcommand_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert "usage: ptl-fast" in capsys.readouterr().out


def test_a_wrong_name_comes_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["comprss"]) == 2
    assert "there is no ptl-fast comprss; " in (told := capsys.readouterr().err)
    assert told.endswith("did you mean compress?\n")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert compress(["--version"]) == 0
    assert capsys.readouterr().out == f"ptl-fast {version()}\n" * 2


def test_estimate_is_the_dry_run_of_compress(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["estimate", "--preset", "demo", "--keep", "0.25"]) == 0
    estimated = capsys.readouterr().out
    assert main(["compress", "--preset", "demo", "--keep", "0.25", "--dry-run"]) == 0
    assert capsys.readouterr().out == estimated
    assert main(["estimate", "--kepe", "1"]) == 2
    assert not list(tmp_path.iterdir())


def test_help_of_compress_begins_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        start.parse(["--help"])
    lines = capsys.readouterr().out.splitlines()
    options = lines.index("options:")
    assert options < 20, "no dump of usage"
    assert sum("  ptl-fast " in line for line in lines[:options]) == 3
    for group in ("model:", "goal:", "recovery:", "run:"):
        assert group in lines


@pytest.mark.parametrize(
    "content", ["[]", "{}", "3", '{"dense": [], "rounds": 1}', "{", "\xff", "["]
)
@pytest.mark.parametrize(
    "asked",
    [
        *("report RUN", "report RUN --follow", "compare RUN RUN", "inspect RUN --layer 0"),
        "export RUN --to gguf",
    ],
)
def test_a_folder_that_no_run_wrote_is_told_in_a_line(
    asked: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "final").mkdir()
    (tmp_path / "round-01").mkdir()
    for name in (
        *("state.json", "dense.json", "report.json", "report.md", "final/config.json"),
        *("round-01/plan.json", "round-01/record.json"),
    ):
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    code = main(asked.replace("RUN", str(tmp_path)).split())
    told = capsys.readouterr().err
    assert code == 0 or (told.startswith("error: ") and told.count("\n") == 1) or "follow" in asked


def test_a_reader_that_stops_early_gets_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("line\n" * 100_000)
    command = [sys.executable, "-m", "ptl_fast", "report", str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"line\n"
        process.stdout.close()
        assert process.stderr.read() == b""


def test_the_installed_command_leaves_with_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(subcommands, "leave", codes.append)
    monkeypatch.setattr("sys.argv", ["ptl-fast", "compres"])
    subcommands.command()
    assert codes == [2]


@pytest.mark.parametrize("streams", [">&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(streams: str) -> None:
    own = shlex.join([sys.executable, "-m", "ptl_fast", "report", "nowhere"])
    done = subprocess.run(["sh", "-c", f"{own} {streams}"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "NoneType" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's device for a full disk")
@pytest.mark.parametrize("module", ["ptl_fast", "ptl_fast.compress"])
def test_output_that_cannot_be_written_is_named(module: str) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", module, "--version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output cannot be written: [Errno 28] No space")
    assert done.stderr.count("\n") == 1


def test_an_error_is_one_line_whatever_a_name_holds(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["a\nb"], ["report", "a\nb"], ["compare", "a\nb", "c"]):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert told.count("\n") == 1
