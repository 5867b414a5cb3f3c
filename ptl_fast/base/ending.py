"""The end of a command's process."""

import atexit
import contextlib
import os
import sys
import threading
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End the process as sys.exit does: threads are waited for, what is to run at the end runs,
    output is flushed. But modules and objects are not taken apart one by one.

    With torch, transformers and datasets imported that took 1.3 seconds of a processor's time
    (2.13, 5.23; an idle Python 3.11 process that imported them, 6.85 s in all against 5.52).
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # whoever read the output may have gone
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)
