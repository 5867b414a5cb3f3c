"""Exit codes, and one line for what the user can mend."""

import io
import signal
import sys

import pytest

from ptl_fast.base import distributed, progress
from ptl_fast.base.console import say
from ptl_fast.config.config import Config
from ptl_fast.run import start
from ptl_fast.run.command import main


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: Config, quiet: bool) -> None:
        raise error

    monkeypatch.setattr(start, "run", fail)


@pytest.mark.parametrize("error", [ValueError("one\n two"), OSError("one two")])
def test_what_the_user_can_mend_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(error, monkeypatch)
    assert main([]) == 2
    assert capsys.readouterr().err == "error: one two\n"


def test_no_flag_is_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "run", lambda config, quiet: None)
    assert main([]) == 0


def test_only_the_main_rank_tells_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    failing(ValueError("one"), monkeypatch)
    assert main([]) == 2
    assert capsys.readouterr().err == ""
    failing(MemoryError(), monkeypatch)  # the others may have had enough
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("error: out of memory: MemoryError. ")


def test_a_rank_that_finds_no_others_says_so_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a shell has kept the variables of a launcher."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setattr(start, "run", lambda config, quiet: distributed.join("cpu"))
    assert main([]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: RANK 1 cannot join the 2 processes that the environment names (")
    assert "MASTER_ADDR" in told
    assert told.endswith("start it by torchrun, or unset RANK and WORLD_SIZE\n")


def test_an_interruption_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(KeyboardInterrupt(), monkeypatch)
    assert main([]) == 130
    assert "the same command continues from here" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("a setting")])
def test_debug_shows_where_it_happened(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(error, monkeypatch)
    with pytest.raises(type(error), match=str(error)):
        main(["--debug"])


def test_what_nobody_expected_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(KeyError("nope"), monkeypatch)
    assert main([]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: KeyError: 'nope' (in ptl_fast/run/command.py, line ")
    assert told.endswith("the same command continues from here; --debug shows the traceback.\n")


def test_a_signal_says_how_to_go_on_and_is_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGHUP)
    for number in (signal.SIGTERM, signal.SIGHUP):
        monkeypatch.setattr(
            start, "run", lambda config, quiet, number=number: signal.raise_signal(number)
        )
        assert main([]) == 128 + number
        told = f"stopped by {signal.Signals(number).name}; the same command continues from here\n"
        assert capsys.readouterr().err == told
    assert signal.getsignal(signal.SIGHUP) == before


def test_a_run_gets_the_flags_and_ends_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Config, bool]] = []
    monkeypatch.setattr(start, "run", lambda config, quiet: given.append((config, quiet)))
    assert main(["--keep", "0.5"]) == 0
    assert [(config.prune.keep, quiet) for config, quiet in given] == [(0.5, True)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def loop(config: Config, quiet: bool) -> None:
    for _ in progress.progress([1], "calibrate"):
        say("a message")


def test_a_runs_loops_are_seen_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "run", loop)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert main([]) == 0
    assert "calibrate 0/1" in terminal.getvalue()


def test_without_a_terminal_stderr_has_errors_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(start, "run", loop)
    assert main([]) == 0
    assert capsys.readouterr() == ("a message\n", "")


def test_quiet_leaves_only_errors(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def talk(config: Config, quiet: bool) -> None:
        with progress.stage("saving"):
            say("a message")
            raise ValueError("a mistake")

    monkeypatch.setattr(start, "run", talk)
    assert main(["--quiet"]) == 2
    assert capfd.readouterr() == ("", "error: a mistake\n")
    assert main([]) == 2
    out, err = capfd.readouterr()
    assert "saving: stopped" in out
    assert "a message\n" in out
    assert err == "error: a mistake\n"
