"""The sandbox's child process: the judge, which runs tests, and its own child runs the program.

Both have given up their rights. The judge reads the job once the program's process has begun: that
never held the tests, nor the pipe on which success is reported, and has no way into the judge's
memory.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from ptl_fast.base import restricted_child
from ptl_fast.evaluation import judge, program_process
from ptl_fast.evaluation.remote_objects import JudgesLink

PASSED = b"passed"
FILTER = "seccomp"
OF_JUDGE, OF_PROGRAM = (FILTER,), ("signal scope", FILTER)


def main() -> NoReturn:
    """Run the job on standard input, JSON of program and tests. Arguments: the report pipe's file
    descriptor, and the limits of restricted_child.restrict, as JSON.
    """
    report, limits = int(sys.argv[1]), json.loads(sys.argv[2])
    sys.argv[1:] = []
    run(report, limits, lambda: json.loads(sys.stdin.buffer.read()))


def run(report: int, limits: dict[str, Any], job: Callable[[], dict[str, str]]) -> NoReturn:
    """Write to the report the missing protections, as JSON in a line, and PASSED if the tests of a
    job pass; end this process.
    """
    # the parent may be killed while the program runs, and then enforces no time limit
    restricted_child.die_with_parent()
    restricted_child.confine_reading()
    # all but the filter, which lets no process start: so the judge's own death may end the program,
    # which then bars its own signals
    protections = list(restricted_child.PROTECTIONS)
    missing = restricted_child.protect([each for each in protections if each != FILTER])
    judge_process = os.getpid()
    from_judge, to_program = os.pipe()
    from_program, to_judge = os.pipe()
    if os.fork() == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor in (report, to_program, from_program):
            os.close(descriptor)
        restricted_child.die_with_parent()
        if os.getppid() == judge_process:
            program_process.serve(from_judge, to_judge, _restrict(limits, OF_PROGRAM))
        os._exit(1)
    os.close(from_judge)
    os.close(to_judge)
    missing += _restrict(limits, OF_JUDGE)
    link = JudgesLink(from_program, to_program)
    missing += link.ask("missing")
    missing = [each for each in protections if each in missing]
    os.write(report, json.dumps(missing).encode() + b"\n")
    judge.judge(**job(), link=link)
    os.write(report, PASSED)
    os._exit(0)


def _restrict(limits: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    """Limit this process, and give up its last rights; return the protections that it lacks."""
    restricted_child.limit_resources(**limits)
    known = [each for each in names if each in restricted_child.PROTECTIONS]
    return restricted_child.protect(known)
