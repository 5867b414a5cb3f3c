"""Signals end a run at once, or after the step of the training that they come in."""

import os
import signal
import subprocess
import sys

import pytest

from ptl_fast.base import interruption


def test_outside_training_a_signal_ends_the_run_where_it_is() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        with pytest.raises(interruption.Stopped) as stopped, interruption.handling():
            os.kill(os.getpid(), number)
        assert stopped.value.number == number


def test_inside_training_it_waits_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "GRACE_SECONDS", 0.2)
    with interruption.handling():
        with interruption.waiting():
            os.kill(os.getpid(), signal.SIGTERM)
            assert interruption.asked() == signal.SIGTERM
        with pytest.raises(interruption.Stopped):
            signal.pause()  # until the time is up
    with interruption.handling():
        assert interruption.asked() == 0


def test_signals_that_are_ignored_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with interruption.handling():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


STUBBORN = """
import os, signal, time
from ptl_fast.base import interruption
with interruption.handling():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        print("saving", flush=True)
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
"""


def test_a_second_interruption_ends_at_once_without_a_traceback() -> None:
    ended = subprocess.run([sys.executable, "-c", STUBBORN], capture_output=True, text=True)
    assert ended.returncode == 130
    assert ended.stdout == "saving\n"
    assert ended.stderr == "interrupted again: ended at once\n"
