"""Progress: silent until it is shown; two lines on a terminal, plain lines elsewhere."""

import io
import re
import time

import pytest

from ptl_fast.base import progress
from ptl_fast.base.console import say, silent
from ptl_fast.base.progress import Steps


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_loops_are_silent_unless_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with progress.stage("work"):
        assert list(progress.progress("abc", "letters")) == ["a", "b", "c"]
    assert capfd.readouterr() == ("", "")


def test_what_is_no_terminal_gets_a_line_with_the_time_for_each_event() -> None:
    stream = io.StringIO()
    with progress.shown(stream), progress.stage("round 1 of 2: scoring"):
        list(progress.progress(range(100), "pass"))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"\d\d:\d\d:\d\d round 1 of 2: scoring", lines[0])
    assert lines[1].endswith("round 1 of 2: scoring: done after 0:00")
    assert stream.getvalue().replace("\n", "").isprintable()


def test_a_stage_without_lines_is_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for stream, drawn in ((io.StringIO(), False), (Terminal(), True)):
        with progress.shown(stream), progress.stage("planning", lines=False):
            pass
        assert ("planning" in stream.getvalue()) == drawn


def test_a_long_stage_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "DRAW_SECONDS", 0.01)
    stream = io.StringIO()
    with (
        progress.shown(stream),
        progress.stage("recovering", lambda *_: (0.25, 61.0)),
        Steps("train", 4, initial=1) as steps,
    ):
        steps.note = "loss 2.5"
        steps.update()
        while "train 2/4" not in stream.getvalue():
            time.sleep(0.01)
    told = "recovering; train 2/4 loss 2.5; 25% of the run, about 1:01 left"
    assert told in stream.getvalue()


def test_what_a_loop_still_needs_follows_from_its_own_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([100.0, 130.0, 130.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    # steps before a restart took none of this time
    with Steps("train", 100, initial=40) as steps:
        assert steps.left() is None
        steps.update(30)
        assert steps.left() == pytest.approx(30.0)


def test_a_stage_that_fails_is_not_done() -> None:
    stream = io.StringIO()
    with pytest.raises(OSError, match="full"), progress.shown(stream), progress.stage("saving"):
        raise OSError("full")
    assert stream.getvalue().splitlines()[-1].endswith("saving: stopped after 0:00")


@pytest.mark.parametrize("columns", [40, 80, 100, 200])
def test_a_terminal_has_two_lines_that_fit_and_are_cleared(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with (
        progress.shown(stream),
        progress.stage("round 2 of 4: recovering", lambda *_: (0.5, 3600.0)),
        Steps("a description that is long " * 10, 10),
    ):
        say("a message")
        drawn = stream.getvalue().split("\x1b[J")[-1]
    run, stage = drawn.split("\n")
    assert "50%" in run
    assert stage.startswith("round 2 of 4: recovering  0:00  a desc")
    assert max(map(len, (run, stage))) < columns
    # cleared in the end, from the first of the two lines on
    assert stream.getvalue().endswith("\r\x1b[1A\x1b[J") or stream.getvalue().endswith("\r\x1b[J")


def test_a_message_is_printed_above_the_bars(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress.shown(stream), progress.stage("saving"):
        before = stream.getvalue()
        say("a message")
        assert "\x1b[J" in stream.getvalue()[len(before) :]
        assert stream.getvalue().endswith("saving  0:00")
    assert capsys.readouterr().out == "a message\n"


def test_silence_is_for_messages_too(capsys: pytest.CaptureFixture[str]) -> None:
    with silent():
        say("nobody hears this")
    say("this, everybody")
    assert capsys.readouterr().out == "this, everybody\n"


def test_other_ranks_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    stream = io.StringIO()
    with progress.shown(stream), progress.stage("scoring"):
        pass
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.9, "0:07"), (750, "12:30"), (3 * 3600 + 120, "3:02:00")]
)
def test_duration(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
