"""The sandbox's child process: gives up its rights, then executes the program and its tests.

The job comes as JSON on standard input. Success is reported on a separate pipe with a random word
from the parent, so a program cannot pass by printing something or by exiting with status 0.
"""

import builtins
import json
import os
import sys
import types

from ptl_fast.base import restricted_child
from ptl_fast.evaluation import assertions


def main() -> None:
    """Run the job on standard input; ``sys.argv[1]`` is the report pipe's file descriptor."""
    report = int(sys.argv[1])
    # the program may replace these
    write, leave, execute, evaluate = os.write, os._exit, exec, eval
    job = json.loads(sys.stdin.buffer.read())
    # the job holds the word: the program must not read it again
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # the parent may be killed while the program runs, and then enforces no time limit
    restricted_child.die_with_parent()
    missing = restricted_child.restrict(**job["limits"])
    write(report, json.dumps(missing).encode() + b"\n")
    module = types.ModuleType(assertions.PROGRAM)
    sys.modules[assertions.PROGRAM] = module
    sys.argv[1:] = []  # the pipe's number
    word, names = job["word"].encode(), module.__dict__
    # before the program runs, which could leave out or change its tests
    program = compile(job.pop("program"), assertions.PROGRAM, "exec", dont_inherit=True)
    tests = iter(assertions.steps(job.pop("tests")))
    python = dict(vars(builtins))
    execute(program, names)
    vars(builtins).update(python)
    for step in tests:
        step.run(execute, evaluate, names)
    write(report, word)
    # at once: no exit handlers of the program's
    leave(0)
