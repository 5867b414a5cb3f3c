"""ptl_fast.compress is the function, and python -m ptl_fast.compress the command."""

import subprocess
import sys

import pytest

from ptl_fast import compress

IMPORTED = """
import ptl_fast.compress
from ptl_fast import compress
from ptl_fast.compress import main
assert callable(compress) and ptl_fast.compress is compress and main is compress.main
"""


def test_the_function_has_the_command_line_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(compress)
    assert compress.main(["--keep", "2"]) == 2
    assert capsys.readouterr().err.startswith("error: --keep 2.0 is outside")


def test_importing_the_module_leaves_the_function() -> None:
    subprocess.run([sys.executable, "-c", IMPORTED], check=True)
