"""Progress of a run: what every long loop reports to, and how it is shown.

Nothing is shown unless ``shown()`` is entered, as the command line does: used as a library, the
loops are silent. Then, on the main rank:

- a terminal has two lines at its bottom: the run's bar with the share done and the time left, and
  under it the stage with the innermost loop's count. A thread draws them anew twice a second, so
  that elapsed time moves also where a stage has no steps. ``printing()`` clears them while
  something else is printed.
- anything else gets a line with the time of day where a stage begins and ends and, inside it, one
  every LINE_SECONDS at most; no control characters.

``progress(iterable, description)`` and ``Steps(description, total)`` are loops, ``stage(name)`` is
what they belong to. The share of the whole run comes from whoever knows it: ``stage``'s share_of.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

from ptl_fast.base import distributed

T = TypeVar("T")
Share = Callable[[float, float | None], tuple[float, float | None]]
"""(seconds in the stage, seconds that its innermost loop still needs) -> (share of the run, seconds
left); None: not known
"""

DRAW_SECONDS, LINE_SECONDS = 0.5, 30.0
BAR_WIDTH = 24
LEAST_SHARE = 0.03


class Steps:
    """A loop's progress, from the call until ``close``: ``n`` of ``total`` steps.

    Args:
        description: what the loop does.
        total: number of steps; None if not known.
        initial: steps that were done before.
        unit: what a step is, if it is worth telling.
        hidden: not to be shown.
    """

    def __init__(
        self,
        description: str = "",
        total: float | None = None,
        *,
        initial: float = 0,
        unit: str = "",
        hidden: bool = False,
    ) -> None:
        self.description, self.total, self.n, self.unit = description, total, initial, unit
        self.note, self.initial, self.began = "", initial, time.monotonic()
        if not hidden:
            _open.append(self)

    def update(self, steps: float = 1) -> None:
        """Move on by so many steps."""
        self.n += steps

    def close(self) -> None:
        """The loop has ended. Safe to repeat."""
        # by identity, as loops of the same description may be open
        _open[:] = [each for each in _open if each is not self]

    def left(self) -> float | None:
        """Seconds that the other steps need if they take as long; None while that is not known."""
        done = self.n - self.initial
        # the first steps are too few to tell
        if not self.total or done < LEAST_SHARE * self.total:
            return None
        return max(0.0, self.total - self.n) * (time.monotonic() - self.began) / done

    def text(self) -> str:
        """The loop in a few words, such as "dense: nll 3/12"."""
        count = f"{int(self.n):,}/{int(self.total):,}{self.unit}" if self.total else ""
        return " ".join(part for part in (self.description, count, self.note) if part)

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def progress(
    iterable: Iterable[T],
    description: str = "",
    total: float | None = None,
    hidden: bool = False,
) -> Iterator[T]:
    """Yield the items, each of which is a step; arguments as for ``Steps``."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with Steps(description, total, hidden=hidden) as steps:
        for item in iterable:
            yield item
            steps.update()


@contextmanager
def stage(name: str, share_of: Share | None = None, lines: bool = True) -> Iterator[None]:
    """While this lasts, loops belong to the stage ``name``, such as "round 2 of 4: recovering".

    Args:
        share_of: how far the whole run is; without it only the stage is shown.
        lines: whether it is told where there is no terminal.
    """
    outer = _display.stage
    _display.begin(_Stage(name, share_of, lines))
    try:
        yield
    finally:
        _display.end(outer)


@contextmanager
def shown(stream: TextIO | None = None) -> Iterator[None]:
    """Show progress while this lasts.

    Args:
        stream: None takes stderr if that is a terminal, else stdout, so that a file of errors has
            errors alone.
    """
    usual = sys.stderr if sys.stderr.isatty() else sys.stdout
    _display.start(stream if stream is not None else usual)
    try:
        yield
    finally:
        _display.stop()


@contextmanager
def printing() -> Iterator[None]:
    """Clear what is drawn while something is printed, and draw it again after that."""
    with _display.lock:
        _display.clear()
        try:
            yield
        finally:
            _display.draw()


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours if there are any: 0:07, 12:30, 3:02:00."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Stage:
    def __init__(self, name: str, share_of: Share | None, lines: bool) -> None:
        self.name, self.share_of, self.began = name, share_of, time.monotonic()
        self.lines = lines

    def seconds(self) -> float:
        return time.monotonic() - self.began


class _Display:
    """What is shown where; shows nothing until ``start``."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.stream: TextIO | None = None
        self.stage: _Stage | None = None
        self.is_terminal, self.num_drawn, self.last_line, self.began = False, 0, 0.0, 0.0
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None

    def start(self, stream: TextIO) -> None:
        # the launcher's variable, as the ranks have not joined yet
        if self.stream is not None or distributed.launched_rank() != 0:
            return
        self.stream, self.began = stream, time.monotonic()
        self.last_line = self.began
        self.is_terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, args=(self.ended,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.ended.set()
        with self.lock:
            self.clear()
            self.stream = None

    def begin(self, stage: _Stage) -> None:
        with self.lock:
            self.stage = stage
            self._line(stage.name)
            self.draw()

    def end(self, outer: _Stage | None) -> None:
        with self.lock:
            if self.stage is not None:
                failed = " stopped" if sys.exc_info()[0] is not None else " done"
                self._line(f"{self.stage.name}:{failed} after {duration(self.stage.seconds())}")
            self.stage = outer
            self.draw()

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(DRAW_SECONDS):
            # whoever prints does it for as long as it takes: there is a next time
            if not self.lock.acquire(blocking=False):
                continue
            try:
                if self.stream is None or ended.is_set():
                    return
                self.draw()
                if time.monotonic() - self.last_line >= LINE_SECONDS:
                    self._line(self._text())
            except (OSError, ValueError):
                return  # the terminal has gone; the run goes on
            finally:
                self.lock.release()

    def _line(self, text: str) -> None:
        """One line for what is no terminal."""
        if self.stream is None or self.is_terminal or not text:
            return
        if self.stage is not None and not self.stage.lines:
            return
        self.last_line = time.monotonic()
        self._write(f"{time.strftime('%H:%M:%S')} {text}\n")

    def _text(self) -> str:
        """Stage, innermost loop and, where known, the share of the run."""
        parts = [self.stage.name] if self.stage else []
        parts += [each.text() for each in _innermost()]
        share, left = self._share()
        if share is not None:
            parts.append(f"{share:.0%} of the run" + _left(left))
        return "; ".join(part for part in parts if part)

    def _share(self) -> tuple[float | None, float | None]:
        if self.stage is None or self.stage.share_of is None:
            return None, None
        lefts = [each.left() for each in _innermost()]
        return self.stage.share_of(self.stage.seconds(), lefts[0] if lefts else None)

    def clear(self) -> None:
        if self.num_drawn:
            # up to the first line that was drawn, then everything below goes
            up = f"\x1b[{self.num_drawn - 1}A" if self.num_drawn > 1 else ""
            self._write(f"\r{up}\x1b[J")
            self.num_drawn = 0

    def draw(self) -> None:
        if self.stream is None or not self.is_terminal:
            return
        # one less: a full line would wrap on some terminals
        width = max(20, shutil.get_terminal_size().columns - 1)
        lines = [line[:width] for line in self._lines() if line]
        self.clear()
        if lines:
            self._write("\n".join(lines))
            self.num_drawn = len(lines)

    def _lines(self) -> list[str]:
        share, left = self._share()
        lines = []
        if share is not None:
            full = round(share * BAR_WIDTH)
            bar = "█" * full + "░" * (BAR_WIDTH - full)
            gone = duration(time.monotonic() - self.began)
            lines.append(f"{bar} {share:4.0%}  {gone} gone{_left(left)}")
        loops = [each.text() for each in _innermost()]
        if self.stage is not None:
            loops = [self.stage.name, duration(self.stage.seconds()), *loops]
        lines.append("  ".join(part for part in loops if part))
        return lines

    def _write(self, text: str) -> None:
        stream: Any = self.stream
        if stream is None:
            return
        try:
            stream.write(text)
        except UnicodeEncodeError:  # a terminal without blocks
            stream.write(text.replace("█", "#").replace("░", "."))
        stream.flush()


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f", about {duration(seconds)} left"


def _innermost() -> list[Steps]:
    """The loop that was opened last, if there is one; loops end while the thread looks."""
    return _open[-1:]


_open: list[Steps] = []
_display = _Display()
