"""The sandbox's child process: gives up its rights, then executes the program and its tests.

The job comes as JSON on standard input. Success is reported on a separate pipe with a random word
from the parent, so a program cannot pass by printing something or by exiting with status 0.
"""

import json
import os
import sys
import types

from ptl_fast.base import restricted_child


def main() -> None:
    """Run the job on standard input; ``sys.argv[1]`` is the report pipe's file descriptor."""
    report = int(sys.argv[1])
    write, leave = os.write, os._exit  # the program may replace these
    job = json.loads(sys.stdin.buffer.read())
    # the job holds the word: the program must not read it again
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # the parent may be killed while the program runs, and then enforces no time limit
    restricted_child.die_with_parent()
    missing = restricted_child.restrict(**job["limits"])
    write(report, json.dumps(missing).encode() + b"\n")
    module = types.ModuleType("program")
    sys.modules["program"] = module
    sys.argv[1:] = []  # the pipe's number
    for source in job["sources"]:
        exec(compile(source, "program", "exec", dont_inherit=True), module.__dict__)
    write(report, job["word"].encode())
    # at once: no exit handlers of the program's
    leave(0)
