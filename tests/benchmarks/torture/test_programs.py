"""The hostile programs are Python, and are no strangers to the functions that they call."""

import pytest

from benchmarks.torture import programs


@pytest.mark.parametrize("name", programs.HOSTILE)
def test_programs_compile_and_try_something(name: str) -> None:
    text = programs.source(name, 1, 2, "/file")
    compile(text, name, "exec")
    assert programs.HOSTILE[name].count("(") > 2


def test_calls_by_number_are_known_on_both_machines() -> None:
    for name, text in programs.HOSTILE.items():
        for line in text.splitlines():
            if line.strip().startswith("call("):
                assert line.split('"')[1] in programs.NUMBERS, (name, line)
