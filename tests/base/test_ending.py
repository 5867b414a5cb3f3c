"""A process ends as it would by sys.exit, but for its objects' deallocation."""

import subprocess
import sys

SCRIPT = """
import atexit, sys, threading, time
from ptl_fast.base.ending import leave

class Told:
    def __del__(self):
        print("taken apart")

kept = Told()
atexit.register(print, "at exit")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
sys.stdout.write("written ")
leave(3)
"""


def test_threads_and_exit_functions_come_to_their_end() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (3, "written thread\nat exit\n"), ended.stderr
