"""Console output: print once for all ranks, and silence the libraries' messages."""

import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator

from ptl_fast.base import distributed, progress


class _State:
    is_silent = False


_state = _State()


def say(text: str) -> None:
    """Print to stdout on the main rank; the other ranks print nothing."""
    # flushed, as stdout is often a log file that somebody follows
    if distributed.is_main() and not _state.is_silent:
        with progress.printing():
            print(wrapped(text, columns()), flush=True)


def open_streams() -> None:
    """Open nothing in place of standard streams that were closed before Python began: files of the
    run would get their numbers, and what libraries print would get into those files.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # the lowest number that is free: this one
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def tell_error(text: str) -> None:
    """Print what failed to stderr in one line; if that cannot be written, the exit code tells."""
    with contextlib.suppress(OSError):
        print("error:", " ".join(text.split()), file=sys.stderr, flush=True)


def lost_output() -> OSError | None:
    """Why stdout cannot be written, from where on nothing is; None if it can be.

    An empty line is written: what failed may be buffered no more.
    """
    try:
        print(flush=True)
    except OSError as error:
        # what it holds back would fail again when Python ends
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
        return error
    return None


def wrapped(text: str, width: int | None) -> str:
    """Break a text's sentences between words, where a terminal would break inside them.

    Lines of tables and of code are left as they are, and so are words longer than a line.

    Args:
        width: characters in a line; None breaks nothing.
    """
    if width is None:
        return text
    lines = []
    for line in text.split("\n"):
        if len(line) > width and not line.startswith(("|", " ")):
            lines += textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
        else:
            lines.append(line)
    return "\n".join(lines)


def columns() -> int | None:
    """Characters in a line of the terminal that ``say`` prints to; None if it is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """While this lasts ``say`` prints nothing, for --quiet."""
    _state.is_silent = True
    try:
        yield
    finally:
        _state.is_silent = False


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class's name if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def reason(error: BaseException) -> str:
    """All of an error's message in one line, never cut off, as libraries begin theirs with a line
    that says nothing; with its type where the message alone is no sentence.
    """
    text = " ".join(str(error).split())
    # KeyError('nope') is 'nope', "list index out of range" could be anything
    if len(text.split()) > 1 and not isinstance(error, LookupError | TypeError | AttributeError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def quieted(everything: bool = False) -> Iterator[None]:
    """Silence libraries' warnings and log messages inside, as ``quiet_libraries`` does for good.

    Args:
        everything: also our own messages and progress bars.
    """
    import logging
    import warnings

    disabled = logging.root.manager.disable
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        logging.disable(max(disabled, logging.WARNING))
        stack.callback(logging.disable, disabled)
        if everything:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


@contextlib.contextmanager
def no_library_bars() -> Iterator[None]:
    """Hide transformers' progress bars of loading and saving inside."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def quiet_libraries(level: str = "error") -> None:
    """Silence libraries below a level; progress bars and our own messages stay.

    Holds for the whole process, so it is for the command line and not for use as a library.

    Args:
        level: error, also without Python's warnings; or warning, info or debug.
    """
    import logging
    import warnings

    import transformers

    # tokenizers would warn about each fork after its first use
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    number = getattr(logging, level.upper())
    if number >= logging.ERROR:
        warnings.filterwarnings("ignore")
    else:
        logging.basicConfig(level=number)
    # all levels below it; the next one is ten higher
    logging.disable(number - 10)
    # these two have levels of their own, and transformers progress bars (of loading weights)
    logging.getLogger("datasets").setLevel(number)
    transformers.logging.set_verbosity(number)
    transformers.logging.disable_progress_bar()
