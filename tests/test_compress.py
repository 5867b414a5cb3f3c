"""ptl_fast.compress is the function, and python -m ptl_fast.compress the command."""

import pytest

from ptl_fast import compress


def test_the_function_has_the_command_line_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(compress)
    assert compress.main(["--keep", "2"]) == 2
    assert capsys.readouterr().err.startswith("error: --keep 2.0 is outside")
