"""Two ends of a link, in one process: the other answers in a thread."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ptl_fast.evaluation import linked_processes
from ptl_fast.evaluation.linked_processes import LENGTH, Broken, Link
from ptl_fast.evaluation.plain_values import Table
from ptl_fast.evaluation.program_process import Callback

Ends = tuple[Link, int, int]


def grow(values: list[int]) -> int:
    values.append(len(values))
    return len(values)


def fail(*given: Any) -> None:
    raise KeyError(*given)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "grow": grow,
    "fail": fail,
    "call": lambda function, *given: function(*given),
    "long": lambda: ["x" * 2000],
}


@pytest.fixture
def link() -> Iterator[Link]:
    """The asking end."""
    there, from_here = os.pipe()
    here, from_there = os.pipe()
    asking = Link(here, from_here, Table(lambda *_: None, lambda _: None), OPERATIONS)
    table = Table(
        lambda number, _: Callback(serving, number),
        lambda value: value.number if type(value) is Callback else None,
    )
    serving = Link(there, from_there, table, OPERATIONS)

    def serve() -> None:
        with pytest.raises(Broken):
            serving.serve()

    thread = threading.Thread(target=serve)
    thread.start()
    yield asking
    os.close(from_here)
    thread.join(10)
    assert not thread.is_alive(), "it ends with the other's pipe"
    for descriptor in (there, here, from_there):
        os.close(descriptor)


def test_a_container_that_is_changed_there_is_changed_here(link: Link) -> None:
    values = [5]
    assert [link.ask("grow", values) for _ in range(2)] == [2, 3]
    assert values == [5, 1, 2]


def test_errors_come_back_with_their_arguments(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linked_processes, "MAX_BYTES", 1000)
    with pytest.raises(KeyError) as caught:
        link.ask("fail", "a", 2)
    assert caught.value.args == ("a", 2)
    with pytest.raises(ValueError, match="too large to be judged"):
        link.ask("long")
    assert link.ask("grow", []) == 1


def test_a_function_is_called_where_it_is(link: Link) -> None:
    seen: list[int] = []
    assert link.ask("call", lambda value: seen.append(value) or value + 1, 4) == 5
    assert seen == [4]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'["value"]', b'["raised", ["type", "int"], []]', b'["x", [], {}]'],
)
def test_what_no_process_of_ours_says_breaks_it(content: bytes) -> None:
    here, there = os.pipe()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.write(there, LENGTH.pack(len(content)) + content)
    os.close(there)
    with pytest.raises(Broken):
        Link(here, nowhere, Table(lambda *_: None, lambda _: None), OPERATIONS).ask("grow", [])
    os.close(here)
    os.close(nowhere)


def test_a_message_is_one_length_and_json() -> None:
    here, there = os.pipe()
    os.write(there, LENGTH.pack(2**40))
    with pytest.raises(Broken):
        Link(here, there, Table(lambda *_: None, lambda _: None), OPERATIONS)._receive()
    os.close(there)
    os.close(here)
    assert json.loads(json.dumps(["value", None, []])) == ["value", None, []]
