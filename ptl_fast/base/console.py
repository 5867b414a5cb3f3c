"""What a run says to people: one-line messages, and libraries that keep quiet."""

import os

from ptl_fast.base import distributed


def say(text: str) -> None:
    """Print, once for all ranks."""
    if distributed.is_main():
        print(text, flush=True)


def first_line(error: Exception) -> str:
    """What an error says, for a message of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def quiet_libraries() -> None:
    """Leave only progress bars and our own messages on the screen."""
    import logging
    import warnings

    import transformers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
