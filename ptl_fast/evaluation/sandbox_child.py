"""What the sandbox's child process runs: it gives up its rights, then executes the program and its
tests.

It is told on standard input what to run; that the tests passed it tells on a pipe of its own, with a
word that the parent made up, so neither printing nor a successful exit counts as passing.
"""

import json
import os
import sys
import types

from ptl_fast.base import restricted_child


def main() -> None:
    report = int(sys.argv[1])
    write, leave = os.write, os._exit  # the program may replace these
    job = json.loads(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the job names the word
    restricted_child.die_with_parent()
    missing = restricted_child.restrict(**job["limits"])
    write(report, json.dumps(missing).encode() + b"\n")
    module = types.ModuleType("program")
    sys.modules["program"] = module
    sys.argv[1:] = []
    for source in job["sources"]:
        exec(compile(source, "program", "exec", dont_inherit=True), module.__dict__)
    write(report, job["word"].encode())
    leave(0)
