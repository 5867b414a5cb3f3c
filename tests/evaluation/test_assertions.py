"""Assertions of equality are compared outside of the program, which sees no expected values."""

from collections import Counter
from decimal import Decimal
from fractions import Fraction
from typing import Any
from unittest.mock import ANY

import pytest

from ptl_fast.evaluation import assertions


def runs(tests: str, **names: Any) -> bool:
    """Whether the tests hold among the names."""
    names["__name__"] = assertions.PROGRAM
    try:
        for step in assertions.steps(tests):
            step.run(exec, eval, names)
    except AssertionError:
        return False
    return True


def made(program: str) -> dict[str, Any]:
    """The names that a program defines."""
    names: dict[str, Any] = {"__name__": assertions.PROGRAM}
    exec(program, names)
    return {name: value for name, value in names.items() if not name.startswith("__")}


POINT = made(
    "class Point:\n"
    "    def __init__(self, x): self.x = x\n"
    "    def __eq__(self, other): return isinstance(other, Point) and self.x == other.x\n"
    "class Yes(Point):\n"
    "    def __eq__(self, other): return True\n"
)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (4, "4"),
        (4.0, "4"),
        (Fraction(4), "4"),
        (Decimal(4), "4"),
        (Counter("aab"), "{'a': 2, 'b': 1}"),
        ([(1, {2: {3}})], "[(1, {2: {3}})]"),
        (POINT["Point"](3), "Point(3)"),
        ([POINT["Point"](3)], "[Point(3)]"),
    ],
)
def test_what_equals_the_expected_is_right(found: Any, expected: str) -> None:
    assert runs(f"assert f == {expected}", f=found, **POINT)
    assert runs(f"assert {expected} == f", f=found, **POINT)
    assert not runs("assert f == 5", f=found)


@pytest.mark.parametrize("found", [POINT["Yes"](0), ANY, [ANY], {1: POINT["Yes"](0)}, (1, ANY)])
def test_what_equals_everything_is_wrong(found: Any) -> None:
    for expected in ("4", "[4]", "{1: 4}", "(1, 4)"):
        assert not runs(f"assert f == {expected}", f=found)
        assert not runs(f"assert {expected} == f", f=found)


def test_all_that_is_no_equality_runs_as_it_is_written() -> None:
    tests = "import math\nx = []\nfor i in range(3):\n    x.append(i)\nassert x[1:] == [1, 2], 'no'"
    assert runs(f"{tests}\nassert math.isclose(0.5, 0.5)\nassert (y := len(x)) == 3\nassert y > 2")
    assert not runs(f"{tests}\nassert len(x) < 3")
    assert not runs("assert 1 == 2 == 2")
    assert runs("assert 1 != 2")


def test_a_value_that_contains_itself_is_compared() -> None:
    own: list[Any] = [1]
    own.append(own)
    assert runs("assert f == f", f=own)
