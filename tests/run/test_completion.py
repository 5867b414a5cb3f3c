"""The shell completes subcommands, flags and their words."""

import shutil
import subprocess

import pytest

from ptl_fast.run.completion import main, script

SHELL = shutil.which("bash")


@pytest.mark.skipif(SHELL is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("comp", ["compress", "compare", "completion"]),
        ("compress --target-pa", ["--target-params"]),
        ("estimate --keep-r", ["--keep-rounds"]),
        ("compress --dtype b", ["bfloat16"]),
        ("report --keep-r", []),
    ],
)
def test_bash_completes(words: str, completed: list[str]) -> None:
    asked = f"COMP_WORDS=(ptl-fast {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))"
    lines = [script("bash"), asked, "_ptl_fast", 'echo "${COMPREPLY[@]}"']
    result = subprocess.run(
        [str(SHELL), "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == completed, result.stderr


def test_zsh_loads_what_the_script_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zsh"]) == 0
    assert capsys.readouterr().out.startswith("autoload -Uz compinit bashcompinit")
