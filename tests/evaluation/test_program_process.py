"""The program's process does what it is asked, and knows names of the program's module alone."""

import sys
from pathlib import Path

from ptl_fast.evaluation.program_process import BUILTINS, OPERATORS, PROGRAM
from support.judging import verdicts


def test_operations_have_names_of_their_own() -> None:
    names = [each.__name__ for each in BUILTINS] + list(OPERATORS)
    assert len(set(names)) == len(names)
    assert PROGRAM not in sys.modules, "only in the process of its own"


def test_a_program_knows_its_module_and_no_tests(tmp_path: Path) -> None:
    told = "import program, sys\nassert sys.argv[1:] == [] and sys.stdin.read() == ''"
    cases = [
        (told, "assert program"),
        ("y = 1", "x = 2\nassert y == 1 and program.y == 1"),
        ("def f(): return x", "x = 2\nassert f() == 2"),
        ("def f(): return 'Decimal' in globals()", "from decimal import Decimal\nassert f()"),
        ("import sys\nf = lambda: sys.exit(0)", "f()"),
        ("f(", ""),
        ("", "assert ("),
    ]
    assert verdicts(cases, tmp_path) == [True, True, False, True, False, False, False]
