"""Check a response's final answer with math-verify, in a child process with resource limits.

Answers that models make up, such as 9^{9^{9^9}}, can keep sympy busy for ever, inside C code that
Python's signal handlers cannot interrupt. So one child process judges all answers. The kernel kills
it when an answer takes too much processor time; an answer that the child does not survive counts as
wrong, and a new child judges the next one. Limits are on processor time and not on wall time, so
that a busy machine does not change results. Any thread may ask, which math-verify's own time limit,
being a signal handler, would not allow.
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

# Below a question, so that the model marks its final answer; as Qwen's model cards ask for it.
BOXED_REQUEST = "Please reason step by step, and put your final answer within \\boxed{}."
CPU_SECONDS = 10  # per answer
MEMORY_BYTES = 4 * 2**30  # address space of the child
NUM_OPEN_FILES = 64
SHORT_ANSWER = 32  # characters: a number, a formula
BRACE = re.compile(r"(?<!\\)[{}]")
TOKEN = re.compile(r"[^\s$]+")
BOXED = re.compile(r"\\(?:boxed|fbox)\s*")
# GSM8K's "#### 18", or "The answer is 18." up to the end of the sentence (not the dot in 18.5)
MARKED = re.compile(
    r"####\s*(.+)|\banswer is:?\s*(.+?)(?:\.(?=\s|$)|$)", re.MULTILINE | re.IGNORECASE
)


def final_answer(response: str) -> str | None:
    """Extract a response's final answer, or None if it marks none.

    That is its last ``\\boxed{...}``, or else what follows the last ``####`` or "answer is".
    """
    ends = _closing_braces(response)
    # backwards: a response that was cut off may end with a box that never closes
    for match in reversed(list(BOXED.finditer(response))):
        boxed = _group(response, match.end(), ends)
        if boxed is not None:
            return boxed
    marked = list(MARKED.finditer(response))
    if not marked:
        return None
    return (marked[-1][1] or marked[-1][2]).strip().strip("$").strip()


def checkable_answer(answer: str) -> str | None:
    """The final answer of a data set's answer: what it marks, or all of a short line that holds a
    number; None if there is nothing that could be compared.

    >>> checkable_answer("2+3=5;#### 5"), checkable_answer("8.5"), checkable_answer("It depends.")
    ('5', '8.5', None)
    """
    marked = final_answer(answer)
    if marked is None and len(answer) <= SHORT_ANSWER and re.search(r"\d", answer):
        return answer.strip() if "\n" not in answer else None
    return marked or None


def is_right(gold: str, response: str) -> bool:
    """Return whether the response's final answer equals ``gold`` mathematically.

    If the response marks no answer, math-verify looks for one: the last number or formula.

    Args:
        gold: the right answer, in LaTeX or plain text.

    Raises:
        ValueError: math-verify is not installed.

    Costs at most CPU_SECONDS of processor time; an answer that needs more counts as wrong.
    """
    answer = final_answer(response)
    # an unmarked answer is at the end, and math-verify's regular expressions are slow on long texts
    return _judge().ask([gold, answer, response[-4000:]])


class _Judge:
    """The parent's side: starts the child at the first question, and again after it was killed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.child: subprocess.Popen[str] | None = None

    def ask(self, question: list[str | None]) -> bool:
        """Send [gold, answer, response] and return the verdict: False if the child dies over it."""
        with self.lock:
            if self.child is None:
                self.child = self._start()
            said = self._exchange(self.child, json.dumps(question) + "\n")
            if not said:
                self.child.wait()
                self.child = None
            return said == "true\n"

    def _start(self) -> "subprocess.Popen[str]":
        """Start a child and wait until it has imported math-verify."""
        # with this process's sys.path, so that the child imports the same modules. It needs no
        # clean-up: when this process ends its standard input closes, which ends its loop
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from ptl_fast.data.answers import serve;"
            f" serve({CPU_SECONDS})"
        )
        # sympy's results can depend on the order of sets, and so on the seed of str hashes
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
        """Write a line and return the next line of output: empty if the child has ended."""
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
    """The one judge of this process."""
    return _Judge()


def serve(cpu_seconds: int) -> None:
    """The child's loop: read [gold, answer, response] from a line, print true or false.

    Args:
        cpu_seconds: processor time per answer, after which the kernel kills this process.
    """
    import resource

    import math_verify

    # math-verify warns at every answer that its own time limit is off
    logging.disable()
    restricted_child.restrict(MEMORY_BYTES, NUM_OPEN_FILES)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    print("ready", flush=True)
    for line in sys.stdin:
        # RLIMIT_CPU counts from the start of the process, so the limit moves with each answer; only
        # the soft one, because a hard limit cannot be raised again
        used = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(
            resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + cpu_seconds, hard)
        )
        print(json.dumps(_equal(math_verify, *json.loads(line))), flush=True)


def _equal(math_verify: Any, gold: str, answer: str | None, response: str) -> bool:
    """Whether math-verify finds the answer equal to ``gold``, read as LaTeX or as plain text.

    Plain text helps with answers such as "18 dollars". Without an answer the response is searched.
    """
    # no time limits: math-verify's rely on signals; the processor time limit of ``serve`` holds
    parse: Callable[[str], list] = functools.partial(math_verify.parse, parsing_timeout=None)
    expected = parse(f"\\boxed{{{gold}}}")
    readings = [response] if answer is None else [f"\\boxed{{{answer}}}", answer]
    return any(
        math_verify.verify(expected, parse(reading), timeout_seconds=None) for reading in readings
    )


def _closing_braces(text: str) -> dict[int, int]:
    """{position of an opening brace: that of its closing one}, in one pass; those that never close
    are left out. \\{ and \\} are text.
    """
    ends: dict[int, int] = {}
    starts: list[int] = []
    for match in BRACE.finditer(text):
        if match[0] == "{":
            starts.append(match.start())
        elif match[0] == "}" and starts:
            ends[starts.pop()] = match.start()
    return ends


def _group(text: str, start: int, ends: dict[int, int]) -> str | None:
    """The content of the braces that open at ``start``; None if they never close.

    Without braces, the first token: LaTeX also takes ``\\boxed 5``.
    """
    if not text.startswith("{", start):
        token = TOKEN.match(text, start)
        return token[0].rstrip(".,") if token else None
    # counted, as an answer may hold more of them, such as \frac{1}{2}
    end = ends.get(start)
    return None if end is None else text[start + 1 : end].strip()
