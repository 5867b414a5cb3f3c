"""The judge's side: tests run here, on objects of the program's that live in its own process.

``assert f(2) == 4`` is evaluated here, where the program is not: it is asked for ``f(2)``, gives a
value, and what that is compared with never leaves this process. An object of a class of the
program's cannot decide what equals a plain value: it is compared as the plain type that its class
extends, or is unequal.
"""

import operator
import os
from collections.abc import Callable, Iterator
from typing import Any

from ptl_fast.evaluation.linked_processes import Broken, Link
from ptl_fast.evaluation.plain_values import BASES, Table

PLAIN = {base.__name__: base for base in BASES}
# What may be asked of the program with a plain value beside its object: not a difference or a
# quotient, by which tests compare with what they expect, as in abs(f(2) - 0.5) < 1e-6.
WITH_PLAIN = ("add", "mul", "matmul", "floordiv", "mod", "pow", "and_", "or_", "xor")
ORDER = ("lt", "le", "gt", "ge")
ARITHMETIC = (*WITH_PLAIN, "sub", "truediv", "lshift", "rshift")
# Values of classes that extend these are the same plain value for ever.
CONSTANT, TEXTS = ("str", "bytes", "int", "float"), ("str", "bytes")
# By these NumPy is told an address, which it would read in this process.
ADDRESSES = ("__array_interface__", "__array_struct__")


class JudgesLink(Link):
    """The judge's end: nothing but functions of the tests' can be called from the other, and no
    test survives the program's process.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self.stand_ins: dict[tuple[int, str], Remote] = {}
        # of values that may change, only until the program is asked for something else
        self.views: dict[int, Any] = {}
        self.constants: dict[int, Any] = {}
        table = Table(
            self._stand_in,
            lambda value: self._number_of(value),
            gives_iterators=True,
        )
        super().__init__(reading, writing, table, {"call": self._called})

    def ask(self, operation: str, *given: Any, **named: Any) -> Any:
        """As Link.ask; the end of the program's process is the end of this one.

        Raises:
            RuntimeError: also for StopIteration of what is no iterator, as from a generator: around
                it, such as in ``all(map(...))``, it would end the tests before they were made.
        """
        if operation != "view":
            self.views.clear()
        try:
            return super().ask(operation, *given, **named)
        except StopIteration as stop:
            if operation == "next":
                raise
            raise RuntimeError("the program raised StopIteration") from stop
        except Broken:
            # not an exception, which tests could catch
            os._exit(1)

    def plain(self, value: "Remote") -> Any:
        """The plain value of an object whose class extends a plain type; None of others.

        It is asked for once: in ``3 < f(2) < 5`` a program cannot be large first and then small.
        """
        if not value._base:
            return None
        kept = self.constants if value._base in CONSTANT else self.views
        if value._number not in kept:
            found = self.ask("view", value)
            kept[value._number] = None if type(found) is Remote else found
        return kept[value._number]

    def _stand_in(self, number: int, base: str) -> "Remote":
        """The same for the same object, as tests ask whether one ``is`` another."""
        return self.stand_ins.setdefault((number, base), Remote(self, number, base))

    def _number_of(self, value: Any) -> int | None:
        if type(value) is Remote:
            return value._number
        for number, each in self.table.exceptions.items():
            if value is each:
                return number
        return None

    def _called(self, function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        if not any(function is each for each in self.table.objects):
            raise TypeError("the program may call the tests' functions alone")
        return function(*given, **named)


class Remote:
    """Stands for an object in the program's process."""

    __slots__ = ("_base", "_link", "_number")

    def __init__(self, link: JudgesLink, number: int, base: str) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_base", base)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # so that isinstance(value, tuple) holds for a named tuple
        return PLAIN.get(self._base, Remote)

    def _ask(self, operation: str, *given: Any, **named: Any) -> Any:
        return self._link.ask(operation, self, *given, **named)

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._ask("call", *given, **named)

    def __getattr__(self, name: str) -> Any:
        if name in ADDRESSES:
            raise AttributeError(name)
        return self._ask("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", name, value)

    def __delattr__(self, name: str) -> None:
        self._ask("delattr", name)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("setitem", key, value)

    def __delitem__(self, key: Any) -> None:
        self._ask("delitem", key)

    def __contains__(self, value: Any) -> bool:
        # a part of a text is more than one of its characters
        if self._base in TEXTS:
            return value in self._link.plain(self)
        # one by one: which value is looked for is not told
        return any(each is value or each == value for each in self)

    def __iter__(self) -> Iterator[Any]:
        return self._ask("iter")

    def __hash__(self) -> int:
        plain = self._link.plain(self)
        return self._ask("hash") if plain is None else hash(plain)

    def __copy__(self) -> Any:
        return self._ask("copy")

    def __deepcopy__(self, memo: Any) -> Any:
        return self._ask("deepcopy")

    def __instancecheck__(self, value: Any) -> bool:
        return self._ask_about(value, "isinstance")

    def __subclasscheck__(self, value: Any) -> bool:
        return self._ask_about(value, "issubclass")

    def _ask_about(self, value: Any, operation: str) -> bool:
        return bool(self._link.ask(operation, value, self))


def _equals(self: Remote, other: Any) -> bool:
    if type(other) is Remote:
        return bool(self._link.ask("eq", self, other))
    plain = self._link.plain(self)
    return plain is not None and bool(plain == other)


def _differs(self: Remote, other: Any) -> bool:
    return not _equals(self, other)


def _ordered(name: str) -> Callable[[Remote, Any], Any]:
    def compare(self: Remote, other: Any) -> Any:
        if type(other) is Remote:
            return self._link.ask(name, self, other)
        plain = self._link.plain(self)
        return NotImplemented if plain is None else getattr(operator, name)(plain, other)

    return compare


def _computed(name: str, reflected: bool) -> Callable[[Remote, Any], Any]:
    def compute(self: Remote, other: Any) -> Any:
        plain = None if type(other) is Remote else self._link.plain(self)
        if plain is not None:
            sides = (other, plain) if reflected else (plain, other)
            return getattr(operator, name)(*sides)
        if type(other) is not Remote and name not in WITH_PLAIN:
            return NotImplemented
        return self._link.ask(name, *((other, self) if reflected else (self, other)))

    return compute


def _asked(name: str) -> Callable[..., Any]:
    return lambda self, *given: self._ask(name, *given)


for _name in ORDER:
    setattr(Remote, f"__{_name}__", _ordered(_name))
for _name in ARITHMETIC:
    _method = _name.strip("_")
    setattr(Remote, f"__{_method}__", _computed(_name, reflected=False))
    setattr(Remote, f"__r{_method}__", _computed(_name, reflected=True))
for _name in (
    *("len", "bool", "str", "repr", "float", "int", "complex", "round", "abs", "dir", "next"),
    *("reversed", "index", "neg", "pos", "invert", "getitem"),
):
    setattr(Remote, f"__{_name}__", _asked(_name))
Remote.__eq__ = _equals  # type: ignore[method-assign, assignment]
Remote.__ne__ = _differs  # type: ignore[method-assign, assignment]
