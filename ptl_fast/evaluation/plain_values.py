"""Values as plain JSON, for two processes of which one does not trust the other.

Numbers, texts, Python's own containers and a few types of the standard library and NumPy travel as
what they are; nothing that is decoded runs code of the other side. Whatever else (an object of a
program's class, a function, an iterator) stays where it is, and travels as its number.
"""

import builtins
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType, WrapperDescriptorType
from typing import Any

# Larger texts, and integers that JSON's reader might refuse, do not travel as they are.
MAX_TEXT, MAX_INTEGER = 2**22, 2**63
# Classes of these modules are the program's: their == is not believed.
UNTRUSTED = ("program", "unittest.mock")
OWN, YOURS = "own", "yours"
Encoded = Any
"""A JSON value: null, a number or a text for itself; anything else is a list, its kind first."""


@dataclass(frozen=True)
class Kind:
    """A type whose values travel as what they are."""

    take: Callable[[Any], list[Any]]
    """A value's parts."""

    make: Callable[..., Any]
    """The value of these parts."""


def _imported(module: str, name: str) -> Callable[..., Any]:
    """What makes values of a type, imported only where one arrives."""
    return lambda *parts: getattr(importlib.import_module(module), name)(*parts)


def _pairs(value: Any) -> list[Any]:
    return [each for pair in dict.items(value) for each in pair]


def _paired(*parts: Any) -> dict[Any, Any]:
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _array(value: Any) -> list[Any]:
    return [value.dtype.str, list(value.shape), value.ravel().tolist()]


def _as_array(dtype: str, shape: list[int], flat: list[Any]) -> Any:
    import numpy as np

    return np.array(flat, dtype=np.dtype(dtype)).reshape(shape)


def _seconds(value: Any) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _moment(value: Any) -> list[Any]:
    return [value.isoformat()]


def _from_text(name: str) -> Callable[[str], Any]:
    return lambda text: getattr(importlib.import_module("datetime"), name).fromisoformat(text)


KINDS: dict[str, Kind] = {
    "builtins.list": Kind(list, lambda *parts: list(parts)),
    "builtins.tuple": Kind(list, lambda *parts: parts),
    "builtins.set": Kind(list, lambda *parts: set(parts)),
    "builtins.frozenset": Kind(list, lambda *parts: frozenset(parts)),
    "builtins.dict": Kind(_pairs, _paired),
    "builtins.int": Kind(lambda value: [hex(value)], lambda text: int(text, 16)),
    "builtins.complex": Kind(lambda value: [value.real, value.imag], complex),
    "builtins.bytes": Kind(lambda v: [v.decode("latin-1")], lambda t: t.encode("latin-1")),
    "builtins.bytearray": Kind(
        lambda v: [v.decode("latin-1")], lambda t: bytearray(t.encode("latin-1"))
    ),
    "builtins.range": Kind(lambda v: [v.start, v.stop, v.step], range),
    "builtins.ellipsis": Kind(lambda _: [], lambda: ...),
    "builtins.NotImplementedType": Kind(lambda _: [], lambda: NotImplemented),
    "decimal.Decimal": Kind(lambda v: [str(v)], _imported("decimal", "Decimal")),
    "fractions.Fraction": Kind(
        lambda v: [v.numerator, v.denominator], _imported("fractions", "Fraction")
    ),
    "collections.Counter": Kind(lambda v: [dict(v.items())], _imported("collections", "Counter")),
    "collections.OrderedDict": Kind(
        lambda v: [list(v.items())], _imported("collections", "OrderedDict")
    ),
    "collections.defaultdict": Kind(_pairs, _paired),
    "collections.deque": Kind(lambda v: [list(v), v.maxlen], _imported("collections", "deque")),
    "array.array": Kind(lambda v: [v.typecode, v.tolist()], _imported("array", "array")),
    "datetime.date": Kind(_moment, _from_text("date")),
    "datetime.datetime": Kind(_moment, _from_text("datetime")),
    "datetime.time": Kind(_moment, _from_text("time")),
    "datetime.timedelta": Kind(_seconds, _imported("datetime", "timedelta")),
    "numpy.ndarray": Kind(_array, _as_array),
}
MUTABLE = tuple(
    f"{module}.{name}"
    for module, names in {
        "builtins": ("list", "dict", "set", "bytearray"),
        "collections": ("Counter", "OrderedDict", "defaultdict", "deque"),
    }.items()
    for name in names
)
# {a type that a program's class may extend, and whose values are compared as the plain ones: how a
# value is read as that, whatever the class has made of it}
BASES: dict[type, Callable[[Any], Any]] = {
    list: lambda value: list(list.__iter__(value)),
    tuple: lambda value: tuple(tuple.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    str: str.__str__,
    bytes: lambda value: bytes(memoryview(value)),
    int: int.__int__,
    float: float.__float__,
}


class Table:
    """Which objects of this process the other knows by number, and what its own are here."""

    def __init__(
        self,
        stand_in: Callable[[int, str], Any],
        number_of: Callable[[Any], Any],
        gives_iterators: bool = False,
    ) -> None:
        """
        Args:
            stand_in: makes what stands here for the other's object: (its number, the plain type
                that its class extends, or "").
            number_of: the number of an object that such a value stands for, None for others.
            gives_iterators: send what an iterator yields, instead of its number.
        """
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.stand_in, self.number_of = stand_in, number_of
        self.gives_iterators = gives_iterators
        self.exceptions: dict[int, type[BaseException]] = {}

    def encode(self, value: Any, inside: tuple[int, ...] = ()) -> Encoded:
        """The value as JSON; RecursionError if it is nested too deeply.

        Args:
            inside: ids of the containers around it: one that contains itself stays where it is.
        """
        kind = type(value)
        if value is None or kind in (bool, float) or (kind is str and len(value) <= MAX_TEXT):
            return value
        if kind is int and -MAX_INTEGER < value < MAX_INTEGER:
            return value
        if (theirs := self.number_of(value)) is not None:
            return [YOURS, theirs]
        if isinstance(value, type):
            return self._class(value)
        if kind.__module__ == "numpy" and (item := _item(value)) is not None:
            return self.encode(item)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if self.gives_iterators and isinstance(value, Iterator):
            return ["iterator", self.encode(list(value))]
        if name not in KINDS or id(value) in inside or not _fits(value):
            return self._own(value, _base(kind))
        around = (*inside, id(value))
        return [name, *(self.encode(part, around) for part in KINDS[name].take(value))]

    def decode(self, data: Encoded) -> Any:
        """The value of such JSON; raises whatever comes of JSON that no ``encode`` wrote."""
        if not isinstance(data, list):
            return data
        tag, *parts = data
        if tag == YOURS:
            return self.objects[parts[0]]
        if tag == OWN:
            return self.stand_in(int(parts[0]), str(parts[1]))
        if tag == "type":
            found = vars(builtins)[parts[0]]
            assert isinstance(found, type)
            return found
        if tag == "iterator":
            return iter(self.decode(parts[0]))
        if tag == "exception":
            return self._exception(*parts)
        return KINDS[tag].make(*map(self.decode, parts))

    def _own(self, value: Any, *more: str) -> Encoded:
        number = self.numbers.setdefault(id(value), len(self.objects))
        # kept, so that no other object gets its id
        if number == len(self.objects):
            self.objects.append(value)
        return [OWN, number, *more]

    def _class(self, value: type) -> Encoded:
        if vars(builtins).get(value.__name__) is value:
            return ["type", value.__name__]
        if not issubclass(value, BaseException):
            return self._own(value, "")
        base = next(each for each in value.__mro__[1:] if issubclass(each, BaseException))
        return ["exception", *self._own(value)[1:], value.__name__, self._class(base)]

    def _exception(self, number: int, name: str, base: Encoded) -> type[BaseException]:
        """A class that stands for the other's exception class: it can be caught."""
        if number not in self.exceptions:
            found = self.decode(base)
            assert issubclass(found, BaseException)
            self.exceptions[number] = type(str(name), (found,), {})
        return self.exceptions[number]


def _item(value: Any) -> Any:
    """A NumPy scalar's value in Python; None if it is no scalar."""
    numpy = sys.modules.get("numpy")
    return value.item() if numpy is not None and isinstance(value, numpy.generic) else None


def _fits(value: Any) -> bool:
    """Whether a value of a type in KINDS travels as it is."""
    if type(value).__module__ == "numpy":
        return value.dtype.kind in "biufcSU" and value.size <= MAX_TEXT
    return not hasattr(value, "__len__") or len(value) <= MAX_TEXT


def _base(kind: type) -> str:
    """The plain type that a class extends without deciding itself what equals its values."""
    base = next((each for each in BASES if issubclass(kind, each)), None)
    return "" if base is None or compares_itself(kind) else base.__name__


def view(value: Any) -> Any:
    """What a value of a class that extends a plain type is as that type; None without one."""
    name = _base(type(value))
    return next((read(value) for base, read in BASES.items() if base.__name__ == name), None)


def compares_itself(kind: type) -> bool:
    """Whether ``==`` of a class is the program's: not Python's own, nor a library's."""
    equals = next((vars(base)["__eq__"] for base in kind.__mro__ if "__eq__" in vars(base)), None)
    if isinstance(equals, WrapperDescriptorType):
        return False
    return not isinstance(equals, FunctionType) or equals.__module__ in UNTRUSTED
