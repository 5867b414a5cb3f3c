"""Signals that ask a run to end: SIGTERM and SIGHUP, of a job that is pre-empted, and Ctrl-C.

Outside training all of them end the run at once: what was finished is on disk. Inside training
SIGTERM and SIGHUP wait for the end of the optimizer step, where a checkpoint can be saved, but no
longer than GRACE_SECONDS: schedulers often kill after 30. Ctrl-C does not wait, and a second one
ends the process.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

GRACE_SECONDS = 20.0
POLITE = ("SIGTERM", "SIGHUP")
GO_ON = "the same command continues from here"


class Stopped(BaseException):
    """A signal has asked the run to end. Not an Exception: no stage handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class _State:
    waits = False
    """Whether a stage asks for signals itself, at moments that suit it."""
    asked: int = 0
    """The signal that waits; 0 if none does."""
    interrupted = False
    """Whether Ctrl-C was pressed."""


_state = _State()


@contextlib.contextmanager
def handling() -> Iterator[None]:
    """Handle the signals inside: a run of the command line. Does nothing outside the main thread.

    Raises:
        Stopped, KeyboardInterrupt: inside, where the signal arrives.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.asked, _state.interrupted = 0, False
    before = {}
    for name in POLITE:
        number = getattr(signal, name)
        # nohup has the process ignore SIGHUP
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, _stop)
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, _time_is_up)
    # a shell's background jobs ignore Ctrl-C
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            # a second Ctrl-C may come while Python shuts down
            if not (number == signal.SIGINT and _state.interrupted):
                signal.signal(number, handler)


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Let SIGTERM and SIGHUP wait inside: the caller looks at ``asked`` after every step."""
    _state.waits = True
    try:
        yield
    finally:
        # one that nobody has answered ends the run when its time is up: saving goes on until then
        _state.waits = False


def asked() -> int:
    """The number of the signal that waits; 0 if none does."""
    return _state.asked


def _stop(number: int, frame: FrameType | None) -> None:
    if not _state.waits:
        raise Stopped(number)
    if not _state.asked:
        _state.asked = number
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)


def _time_is_up(number: int, frame: FrameType | None) -> None:
    if _state.asked:
        raise Stopped(_state.asked)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _state.interrupted:
        os.write(2, b"interrupted again: ended at once\n")
        os._exit(128 + number)
    _state.interrupted = True
    raise KeyboardInterrupt
