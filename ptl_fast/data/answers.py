"""Is a response's final answer the right one? math-verify decides, in a child process with limits.

Answers that models make up, such as 9^{9^{9^9}}, can keep sympy busy for ever, inside C code that
no signal interrupts. So one child judges all answers; the kernel ends it where one takes too long
or too much memory, that answer counts as wrong, and another child goes on. It counts processor
time, so that a busy machine does not change results, and works from any thread.
"""

import functools
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from ptl_fast.base import restricted_child

CPU_SECONDS = 10  # for one answer
MEMORY_BYTES = 4 * 2**30
NUM_OPEN_FILES = 64
BOXED = re.compile(r"\\(?:boxed|fbox)\s*")
MARKED = re.compile(
    r"####\s*(.+)|\banswer is:?\s*(.+?)\s*(?:\.(?=\s|$)|$)", re.MULTILINE | re.IGNORECASE
)


def final_answer(response: str) -> str | None:
    """The response's answer: its last ``\\boxed{...}``; else what follows the last ``####`` or
    "answer is"; else None.
    """
    for match in reversed(list(BOXED.finditer(response))):
        boxed = _group(response[match.end() :])
        if boxed is not None:
            return boxed
    marked = list(MARKED.finditer(response))
    if not marked:
        return None
    return (marked[-1][1] or marked[-1][2]).strip().strip("$").strip()


def is_right(gold: str, response: str) -> bool:
    """Whether the response's final answer equals ``gold``, an answer in LaTeX or plain text.

    A response that marks no answer is searched for one as math-verify does: the last number or
    formula.

    Raises:
        ValueError: math-verify is not installed.
    """
    answer = final_answer(response)
    # the end of a response holds its answer; regular expressions over a very long one would only
    # take time
    return _judge().ask([gold, answer, response[-4000:]])


class _Judge:
    """The child process; started when first asked, and again after an answer that it did not
    survive.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.child: subprocess.Popen[str] | None = None

    def ask(self, question: list[str | None]) -> bool:
        with self.lock:
            if self.child is None:
                self.child = self._start()
            said = self._exchange(self.child, json.dumps(question) + "\n")
            if not said:
                self.child.wait()
                self.child = None
            return said == "true\n"

    def _start(self) -> "subprocess.Popen[str]":
        # the same modules as here, wherever Python has them from; the child ends when this process
        # does, for then its input does
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from ptl_fast.data.answers import serve;"
            f" serve({CPU_SECONDS})"
        )
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        pipe = subprocess.PIPE
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdin=pipe, stdout=pipe, env=environment, text=True
        )
        if self._exchange(child, "") != "ready\n":
            raise ValueError(
                "math-verify, which judges answers, cannot be started; pip install math-verify"
            )
        return child

    @staticmethod
    def _exchange(child: "subprocess.Popen[str]", line: str) -> str:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(line)
            child.stdin.flush()
        except BrokenPipeError:
            return ""
        return child.stdout.readline()


@functools.cache
def _judge() -> _Judge:
    return _Judge()


def serve(cpu_seconds: int) -> None:
    """The child's loop: a line [gold, answer, response] in, a line true or false out."""
    import resource

    import math_verify

    logging.disable()  # math-verify warns that its own time limit, which signals keep, is off
    restricted_child.restrict(MEMORY_BYTES, NUM_OPEN_FILES)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    print("ready", flush=True)
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(
            resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + cpu_seconds, hard)
        )
        print(json.dumps(_equal(math_verify, *json.loads(line))), flush=True)


def _equal(math_verify: Any, gold: str, answer: str | None, response: str) -> bool:
    """Whether math-verify finds the answer equal, read as LaTeX or, as in "18 dollars", as text."""
    parse: Callable[[str], list] = functools.partial(math_verify.parse, parsing_timeout=None)
    expected = parse(f"\\boxed{{{gold}}}")
    readings = [response] if answer is None else [f"\\boxed{{{answer}}}", answer]
    return any(
        math_verify.verify(expected, parse(reading), timeout_seconds=None) for reading in readings
    )


def _group(text: str) -> str | None:
    """What a leading {...} holds, with braces inside; without one the first token, as in ``\\boxed
    5``; None if it never closes.
    """
    if not text.startswith("{"):
        token = re.match(r"[^\s$]+", text)
        return token[0].rstrip(".,") if token else None
    depth = 0
    for position, letter in enumerate(text):
        escaped = position > 0 and text[position - 1] == "\\"
        depth += 0 if escaped else (letter == "{") - (letter == "}")
        if depth == 0:
            return text[1:position].strip()
    return None
