"""python -m ptl_fast lists the subcommands, without importing anything heavy."""

import subprocess
import sys

LIGHT = """
import runpy, sys
sys.argv = ["ptl_fast"]
try:
    runpy.run_module("ptl_fast", run_name="__main__")
except SystemExit as ended:
    assert ended.code == 0
assert not {"torch", "transformers", "jsonargparse"} & set(sys.modules)
"""


def test_the_package_is_a_command() -> None:
    result = subprocess.run(
        [sys.executable, "-c", LIGHT], check=True, capture_output=True, text=True
    )
    assert "compress --model NAME --data FILE" in result.stdout
