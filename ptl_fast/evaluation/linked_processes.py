"""Two processes, of which each asks the other for what it may: calls, attributes, operators.

A request is JSON on a pipe: an operation's name and its arguments. While it waits for the answer, a
process answers requests of the other's, as when a function is given to a function there.
"""

import json
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any

from ptl_fast.evaluation.plain_values import MUTABLE, Encoded, Table

MAX_BYTES = 2**26
LENGTH = struct.Struct("=Q")
Operations = Mapping[str, Callable[..., Any]]


class Broken(BaseException):
    """The other process has ended, or says what no process of ours says."""


class Link:
    """One process's end."""

    def __init__(self, reading: int, writing: int, table: Table, operations: Operations) -> None:
        """
        Args:
            reading, writing: descriptors of the pipes from and to the other process.
            operations: what the other may ask for.
        """
        self.reading, self.writing = reading, writing
        self.table, self.operations = table, operations
        # a program may replace the functions of these modules
        self.read, self.write, self.loads, self.dumps = os.read, os.write, json.loads, json.dumps

    def ask(self, operation: str, *given: Any, **named: Any) -> Any:
        """What the other answers; raises what the operation raised there.

        Raises:
            Broken: there is no answer.
        """
        encode = self.table.encode
        by_name = {name: encode(each) for name, each in named.items()}
        self._send([operation, [encode(each) for each in given], by_name])
        while True:
            message = self._receive()
            try:
                if message[0] == "value":
                    return self._value({**dict(enumerate(given)), **named}, *message[1:])
                if message[0] == "raised":
                    error = self._error(*message[1:])
                    break
                request = self._request(message)
            except BaseException as wrong:
                raise Broken from wrong
            self._answer(*request)
        raise error

    def serve(self) -> None:
        """Answer requests, without end.

        Raises:
            Broken: the other process has ended.
        """
        while True:
            try:
                request = self._request(self._receive())
            except Exception as wrong:
                raise Broken from wrong
            self._answer(*request)

    def _value(self, given: dict[Any, Any], value: Encoded, changed: list[Any]) -> Any:
        """An answer's value; containers that the operation changed there are changed here.

        Args:
            given: the operation's arguments, by position or name.
        """
        for position, content in changed:
            _become(given[position], self.table.decode(content))
        return self.table.decode(value)

    def _error(self, kind: Encoded, arguments: Encoded) -> BaseException:
        error = self.table.decode(kind)
        assert issubclass(error, BaseException)
        try:
            return error(*self.table.decode(arguments))
        except TypeError:
            # some classes want other arguments than they keep
            return error.__new__(error)

    def _request(
        self, message: Any
    ) -> tuple[Callable[..., Any], list[Any], dict[str, Any], dict[Any, Encoded]]:
        operation, given, named = message
        decode = self.table.decode
        sent: dict[Any, Encoded] = {**dict(enumerate(given)), **named}
        there = {name: decode(each) for name, each in named.items()}
        return self.operations[operation], list(map(decode, given)), there, sent

    def _answer(
        self,
        operation: Callable[..., Any],
        given: list[Any],
        named: dict[str, Any],
        sent: dict[Any, Encoded],
    ) -> None:
        """Do what was asked for, and say what came of it.

        Args:
            sent: the arguments as they came, by position or name.
        """
        encode = self.table.encode
        try:
            value = operation(*given, **named)
            changed = []
            here: dict[Any, Any] = {**dict(enumerate(given)), **named}
            for place, before in sent.items():
                if isinstance(before, list) and before[0] in MUTABLE:
                    after = encode(here[place])
                    changed += [[place, after]] if after != before else []
            self._send(["value", encode(value), changed])
        except Broken:
            raise
        except BaseException as error:
            self._send(["raised", encode(type(error)), self._arguments(error)])

    def _arguments(self, error: BaseException) -> Encoded:
        try:
            return self.table.encode(error.args)
        except Exception:
            return self.table.encode(())

    def _send(self, message: list[Any]) -> None:
        content = self.dumps(message).encode()
        if len(content) > MAX_BYTES:
            raise ValueError(f"a value of {len(content):,} bytes is too large to be judged")
        left = memoryview(LENGTH.pack(len(content)) + content)
        try:
            while left:
                left = left[self.write(self.writing, left) :]
        except OSError as gone:
            raise Broken from gone

    def _receive(self) -> Any:
        try:
            (length,) = LENGTH.unpack(self._exactly(LENGTH.size))
            if length > MAX_BYTES:
                raise Broken
            return self.loads(self._exactly(length))
        except Exception as wrong:
            raise Broken from wrong

    def _exactly(self, length: int) -> bytes:
        content = bytearray()
        while len(content) < length:
            chunk = self.read(self.reading, min(length - len(content), 2**20))
            if not chunk:
                raise Broken
            content += chunk
        return bytes(content)


def _become(old: Any, new: Any) -> None:
    """Make a container's content that of another of its type."""
    # a defaultdict comes back as a dict
    if not isinstance(old, type(new)):
        return
    old.clear()
    (old.update if hasattr(old, "update") else old.extend)(new)
