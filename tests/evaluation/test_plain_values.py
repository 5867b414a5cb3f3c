"""Plain values come out as they went in; others stay, and are known by their numbers."""

import json
from collections import Counter, OrderedDict, deque, namedtuple
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from ptl_fast.evaluation import plain_values
from ptl_fast.evaluation.plain_values import MAX_TEXT, Table, view

Pair = namedtuple("Pair", "a b")


class Loud(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__
    __eq__.__module__ = plain_values.UNTRUSTED[0]


class OwnError(ValueError):
    pass


def table() -> Table:
    """A table whose objects of the other's are (number, base)."""
    return Table(lambda number, base: ("theirs", number, base), lambda value: None)


def sent(value: Any) -> Any:
    return table().decode(json.loads(json.dumps(table().encode(value))))


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 0, -(2**63), 10**50, 1.5, float("inf"), 2j, "a\ud83d", b"\x00\xff"),
        *([], [1, [2]], (1,), {1, "a"}, frozenset([(1, 2)]), {(1,): {"a": None}}, range(1, 9, 2)),
        *(..., Decimal("1.50"), Fraction(-1, 3), Counter("aab"), deque([1, 2], 3)),
        *(OrderedDict(a=1), date(2024, 2, 29), datetime(2024, 1, 2, 3), timedelta(1, 2, 3)),
        *(bytearray(b"a"), int, ValueError),
    ],
)
def test_values_travel_as_what_they_are(value: Any) -> None:
    found = sent(value)
    assert found == value
    assert type(found) is type(value)


def test_arrays_and_numpys_numbers_travel() -> None:
    found = sent(np.arange(6.0).reshape(2, 3))
    assert (found == [[0, 1, 2], [3, 4, 5]]).all()
    assert found.dtype == np.float64
    assert sent([np.int64(3), np.bool_(True)]) == [3, True]


def test_other_objects_stay() -> None:
    own = table()
    first, second = object(), Pair(1, 2)
    encoded = own.encode([first, second, first, Loud(3), "x" * (MAX_TEXT + 1)])
    assert table().decode(json.loads(json.dumps(encoded))) == [
        ("theirs", 0, ""),
        ("theirs", 1, "tuple"),
        ("theirs", 0, ""),
        ("theirs", 2, ""),
        ("theirs", 3, "str"),
    ]
    assert own.decode([plain_values.YOURS, 1]) is second


def test_what_contains_itself_stays() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    assert sent(ring) == [1, ("theirs", 0, "list")]


def test_exceptions_of_the_others_can_be_caught() -> None:
    own, other = table(), table()
    first, again = (other.decode(own.encode(OwnError)) for _ in range(2))
    assert issubclass(first, ValueError)
    assert first is again
    assert first.__name__ == "OwnError"


def test_the_plain_view_is_not_the_classs() -> None:
    class Numbers(list[int]):
        def __iter__(self) -> Any:
            return iter([7])

    assert view(Numbers([1, 2])) == [1, 2]
    assert view(Pair(1, 2)) == (1, 2)
    assert view(object()) is None
    assert view(Loud(3)) is None, "it decides itself what equals it"


@pytest.mark.parametrize(
    "data", [["type", "eval"], ["type", "__name__"], ["os.system", "x"], ["yours", 0], [], [["a"]]]
)
def test_nothing_else_is_decoded(data: Any) -> None:
    with pytest.raises((KeyError, AssertionError, IndexError, ValueError, TypeError)):
        table().decode(data)
