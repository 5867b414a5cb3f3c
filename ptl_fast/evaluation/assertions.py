"""A program's tests, step by step, so that a wrong answer does not pass for a right one.

``assert f(2) == 4`` in the program's own hands says little: an object whose ``==`` says yes equals
everything, and while ``f`` runs, the code that called it holds the 4. So the two sides of such an
assertion are two pieces of code, and this module compares what they come to.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, WrapperDescriptorType
from typing import Any

PROGRAM = "program"
"""Name of the module that program and tests run in, and of their file."""
# unittest.mock.ANY equals everything
UNTRUSTED = (PROGRAM, "unittest.mock")
CONTAINERS: tuple[Any, ...] = (list, tuple, set, frozenset)


@dataclass(frozen=True)
class Step:
    """A statement of the tests, or the two sides of an assertion that they are equal."""

    codes: tuple[CodeType, ...]

    def run(self, execute: Callable[..., None], evaluate: Callable[..., Any], names: Any) -> None:
        """Execute it among the names; raises AssertionError if two sides are not equal.

        Args:
            execute, evaluate: Python's exec and eval, which a program may have replaced.
        """
        if len(self.codes) == 1:
            execute(self.codes[0], names)
            return
        left, right = (evaluate(code, names) for code in self.codes)
        # one side's class decides what is equal to it, so the other must be of that class too
        if not left == right or own_classes(left) != own_classes(right):
            raise AssertionError


def steps(source: str, compiled: Callable[..., Any] = compile) -> list[Step]:
    """The steps of a source; raises SyntaxError, or ValueError for what is no text."""
    return [Step(tuple(_codes(each, compiled))) for each in ast.parse(source).body]


def _codes(statement: ast.stmt, compiled: Callable[..., Any]) -> Iterator[CodeType]:
    if isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Compare):
        sides = [statement.test.left, *statement.test.comparators]
        if len(sides) == 2 and isinstance(statement.test.ops[0], ast.Eq):
            for side in sides:
                yield compiled(ast.Expression(side), PROGRAM, "eval", dont_inherit=True)
            return
    yield compiled(ast.Module([statement], []), PROGRAM, "exec", dont_inherit=True)


def own_classes(value: Any) -> set[type]:
    """The classes of a value, and of what it contains, that decide themselves what equals them."""
    found: set[type] = set()
    seen, waiting = set(), [value]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if _compares_itself(type(each)):
            found.add(type(each))
        if isinstance(each, dict):
            waiting += [*dict.keys(each), *dict.values(each)]
        for kind in CONTAINERS:
            if isinstance(each, kind):
                waiting += kind.__iter__(each)
    return found


def _compares_itself(kind: type) -> bool:
    """Whether ``==`` of a class is the program's: not Python's own, nor a library's."""
    equals = next((vars(base)["__eq__"] for base in kind.__mro__ if "__eq__" in vars(base)), None)
    if isinstance(equals, WrapperDescriptorType):
        return False
    return not isinstance(equals, FunctionType) or equals.__module__ in UNTRUSTED
