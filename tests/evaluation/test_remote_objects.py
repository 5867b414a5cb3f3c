"""Objects of another process behave as they do there, and are not asked what is expected."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from ptl_fast.evaluation import program_process
from ptl_fast.evaluation.remote_objects import JudgesLink, Remote

PROGRAM = """
from collections import namedtuple
Pair = namedtuple("Pair", "a b")
class Vector:
    asked = []
    def __init__(self, x): self.x = x
    def __eq__(self, other): Vector.asked.append(other); return getattr(other, "x", None) == self.x
    def __add__(self, other): return Vector(self.x + getattr(other, "x", other))
    def __sub__(self, other): Vector.asked.append(other); return 0
    def __lt__(self, other): Vector.asked.append(other); return True
    def __contains__(self, value): Vector.asked.append(value); return True
    def __iter__(self): return iter([self.x])
    def __float__(self): return float(self.x)
class Number(int): pass
"""


@pytest.fixture(scope="module")
def link() -> Iterator[JudgesLink]:
    """The judge's end of a link to a process that runs PROGRAM, without a sandbox."""
    from_judge, to_program = os.pipe()
    from_program, to_judge = os.pipe()
    if (child := os.fork()) == 0:
        os.close(to_program)
        program_process.serve(from_judge, to_judge, [])
    os.close(from_judge)
    os.close(to_judge)
    link = JudgesLink(from_program, to_program)
    link.ask("run", PROGRAM)
    yield link
    os.close(to_program)
    assert os.waitpid(child, 0)[1] == 1 << 8, "it leaves when the judge has left"
    os.close(from_program)


@pytest.fixture
def vector(link: JudgesLink) -> Any:
    return link.ask("name", "Vector")


def test_plain_values_are_never_told_to_an_object(link: JudgesLink, vector: Any) -> None:
    found = vector(3)
    assert type(found) is Remote
    assert found != 3
    assert 3 != found  # noqa: SIM300
    assert 4 not in found
    assert 3 in found
    for compute in (lambda: found - 3, lambda: 3 - found, lambda: found < 3, lambda: found / 3):
        with pytest.raises(TypeError):
            compute()
    assert vector.asked == []


def test_objects_are_compared_and_computed_there(vector: Any) -> None:
    assert vector(3) == vector(3)
    assert vector(3) != vector(4)
    assert (vector(3) + vector(4)).x == 7
    assert (vector(3) + 4).x == 7
    assert float(vector(2)) == 2.0
    assert isinstance(vector(3), vector)


def test_a_class_that_extends_a_plain_type_is_compared_as_it(link: JudgesLink) -> None:
    pair, number = link.ask("name", "Pair")(1, 2), link.ask("name", "Number")(5)
    assert (pair.b, pair[0], pair + (3,)) == (2, 1, (1, 2, 3))  # noqa: RUF005
    assert pair == (1, 2)
    assert isinstance(pair, tuple)
    assert {pair: 1} == {(1, 2): 1}
    assert abs(number - 5.5) == 0.5
    assert 4 < number < 6


def test_the_program_calls_the_tests_functions_alone(link: JudgesLink) -> None:
    assert link.ask("call", lambda value: value * 2, 4) == 8
    with pytest.raises(TypeError, match="the tests' functions alone"):
        link._called(print, 1)
