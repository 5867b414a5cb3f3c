"""Whether a program in another process passes its tests."""

import ast
import builtins
import contextlib
import importlib
import random
from typing import Any

from ptl_fast.evaluation.program_process import PROGRAM
from ptl_fast.evaluation.remote_objects import JudgesLink

# Modules that tests use though the program alone imports them: never the program's own objects.
MODULES = {
    **{
        name: name
        for name in (
            *("cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools"),
            *("itertools", "json", "math", "numpy", "operator", "os", "random", "re"),
            *("statistics", "sys", "time"),
        )
    },
    "np": "numpy",
}


def judge(program: str, tests: str, link: JudgesLink) -> None:
    """Run a program in its own process, and then its tests in this one.

    Raises:
        BaseException: whatever the program or a test raised: it does not pass.
    """
    statements = ast.parse(tests).body
    link.ask("run", program)
    names = Names(link, statements)
    _seed_both(link)
    for statement in statements:
        if _shared(statement):
            # a module that the tests alone need may be missing there
            with contextlib.suppress(ImportError):
                link.ask("run", ast.unparse(statement))
        if not isinstance(statement, ast.ClassDef) or not _shared(statement):
            # the data's tests are no more trusted than the program: this process has no rights left
            exec(compile(ast.Module([statement], []), PROGRAM, "exec", dont_inherit=True), names)


def _seed_both(link: JudgesLink) -> None:
    """Let a test's ``random.seed`` seed the program's generator too."""
    seed = random.seed

    def seed_both(*given: Any, **named: Any) -> None:
        seed(*given, **named)
        link.ask("seed", *given, **named)

    random.seed = seed_both


def _shared(statement: ast.stmt) -> bool:
    """Whether a statement of the tests is the program's too, because it tells nothing of what is
    expected: imports, and classes such as that of a tree's nodes.
    """
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return True
    inside = list(ast.walk(statement))
    # also unittest's assertEqual, and numpy.testing's assert_allclose
    called = {
        each.attr if isinstance(each, ast.Attribute) else each.id
        for each in inside
        if isinstance(each, ast.Attribute | ast.Name)
    }
    asserts = any(isinstance(each, ast.Assert) for each in inside) or any(
        name.startswith("assert") for name in called
    )
    return isinstance(statement, ast.ClassDef) and not asserts


class Names(dict[str, Any]):
    """The tests' global names: their own, Python's, and the program's, which is asked each time."""

    def __init__(self, link: JudgesLink, statements: list[ast.stmt]) -> None:
        super().__init__(__name__=PROGRAM)
        self._link = link
        nodes = [node for each in statements for node in ast.walk(each)]
        self._bases = {
            node.value.id
            for node in nodes
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        # a program may be a function of the name of one of Python's; but where tests ask for
        # another function too, as in set(f(2)), it may not replace Python's
        asked = _names(nodes, ast.Load) - _names(nodes, ast.Store) - _defined(nodes)
        self._are_python = bool(asked - vars(builtins).keys() - (self._bases & MODULES.keys()))

    def __missing__(self, name: str) -> Any:
        is_pythons = name.startswith("__") and name.endswith("__")
        if is_pythons or (name in vars(builtins) and self._are_python):
            raise KeyError(name)
        if name in self._bases and name in MODULES:
            return importlib.import_module(MODULES[name])
        try:
            return self._link.ask("name", name)
        except NameError:
            raise KeyError(name) from None


def _names(nodes: list[ast.AST], context: type[ast.expr_context]) -> set[str]:
    found = (node for node in nodes if isinstance(node, ast.Name))
    return {node.id for node in found if isinstance(node.ctx, context)}


def _defined(nodes: list[ast.AST]) -> set[str]:
    """Names of arguments, functions, classes and imports."""
    names = {node.arg for node in nodes if isinstance(node, ast.arg)}
    definitions = ast.FunctionDef | ast.ClassDef
    names |= {node.name for node in nodes if isinstance(node, definitions)}
    imported = (node for node in nodes if isinstance(node, ast.alias))
    return names | {node.asname or node.name.partition(".")[0] for node in imported}
