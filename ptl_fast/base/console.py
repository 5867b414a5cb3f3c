"""Console output: print once for all ranks, and silence the libraries' messages."""

import os

from ptl_fast.base import distributed


def say(text: str) -> None:
    """Print to stdout on the main rank; the other ranks print nothing."""
    # flushed, as stdout is often a log file that somebody follows
    if distributed.is_main():
        print(text, flush=True)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class's name if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def quiet_libraries() -> None:
    """Silence warnings and log messages of libraries; progress bars and our own messages stay.

    Holds for the whole process, so it is for the command line and not for use as a library.
    """
    import logging
    import warnings

    import transformers

    # tokenizers would warn about each fork after its first use
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    # transformers has log levels and progress bars (of loading weights) of its own
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
