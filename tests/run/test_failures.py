"""Whatever fails is one line that keeps the whole reason, the file, and how to go on."""

import pytest

from ptl_fast.base.errors import StorageFailed
from ptl_fast.run import failures


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("Validation error for field 'hidden_size':\n  not a number"), "not a number"),
        (IndexError("list index out of range"), "IndexError: list index out of range ("),
        (KeyError("nope"), "KeyError: 'nope' ("),
        (RuntimeError(), "RuntimeError ("),
        (StorageFailed("run/final cannot be written: x"), "final cannot be written: x. Once that"),
        (FileNotFoundError(2, "No such file or directory", "run/x"), "directory: 'run/x'"),
        (MemoryError(), "out of memory: MemoryError. "),
    ],
)
def test_the_reason_is_whole(error: Exception, told: str) -> None:
    line = failures.told(error)
    assert told in line
    assert "\n" not in line


def test_only_what_a_user_can_mend_counts_as_that() -> None:
    assert failures.is_mendable(ValueError("--keep 2"))
    assert not failures.is_mendable(KeyError("x"))
    assert not failures.is_mendable(UnicodeDecodeError("utf-8", b"x", 0, 1, "y"))
