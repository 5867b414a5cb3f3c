"""The process in the sandbox that runs a program: it answers calls, and judges nothing.

It never holds what the tests expect. Whatever the program does here, also to this module, can only
change the values that it gives (remote_objects.py has the other side).
"""

import copy
import operator
import os
import random
import sys
import types
from collections.abc import Callable
from typing import Any

from ptl_fast.evaluation.linked_processes import Broken, Link
from ptl_fast.evaluation.plain_values import Table, view

PROGRAM = "program"
"""Name of the module that a program runs in, and of its file."""
BUILTINS: tuple[Callable[..., Any], ...] = (
    *(getattr, setattr, delattr, isinstance, issubclass, iter, next, reversed, len, bool, hash),
    *(str, repr, float, int, complex, round, abs, dir, divmod, copy.copy, copy.deepcopy),
)
OPERATORS = (
    *("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "matmul", "truediv", "floordiv"),
    *("mod", "pow", "and_", "or_", "xor", "lshift", "rshift", "neg", "pos", "invert", "index"),
    *("getitem", "setitem", "delitem"),
)


class Callback:
    """A function of the tests, given to the program."""

    def __init__(self, link: Link, number: int) -> None:
        self.link, self.number = link, number

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self.link.ask("call", self, *given, **named)


def serve(reading: int, writing: int, missing: list[str]) -> None:
    """Do what the judge asks for; does not return before the judge has ended.

    Args:
        reading, writing: descriptors of the pipes from and to the judge.
        missing: the protections that this process lacks.
    """
    module = types.ModuleType(PROGRAM)
    sys.modules[PROGRAM] = module
    names = module.__dict__

    def run(source: str) -> None:
        # what the sandbox is for: serve begins once this process has given up its rights
        exec(compile(source, PROGRAM, "exec", dont_inherit=True), names)

    def name(wanted: str) -> Any:
        if wanted == PROGRAM:
            return module
        if wanted not in names:
            raise NameError(f"name {wanted!r} is not defined")
        return names[wanted]

    operations: dict[str, Callable[..., Any]] = {
        **{each.__name__: each for each in BUILTINS},
        **{each: getattr(operator, each) for each in OPERATORS},
        "call": lambda function, *given, **named: function(*given, **named),
        "view": view,
        "seed": random.seed,
        "missing": lambda: missing,
        "run": run,
        "name": name,
    }
    table = Table(
        lambda number, _: Callback(link, number),
        lambda value: value.number if type(value) is Callback else None,
    )
    link = Link(reading, writing, table, operations)
    leave = os._exit
    try:
        link.serve()
    except Broken:
        leave(1)
