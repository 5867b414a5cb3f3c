"""Whatever a file holds instead of JSON is one kind of error."""

import pytest

from ptl_fast.base.json_text import loads


def test_json_is_read() -> None:
    assert loads('{"a": [1, null]}') == loads(b'{"a": [1, null]}') == {"a": [1, None]}


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, b"\xff", "1" * 10_000])
def test_anything_else_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  json's own message
        loads(text)
