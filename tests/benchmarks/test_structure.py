"""The order of the folders of benchmarks: harness knows none of the others, documents may read all
of them, and those in between do not know one another.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BETWEEN = {
    "kernels",
    "scoring",
    "compaction",
    "inference",
    "recovery",
    "methods",
    "families",
    "scale",
    "torture",
    "experts",
}
ALLOWED = {
    "harness": {"harness"},
    **{folder: {"harness", folder} for folder in BETWEEN},
    "documents": {"harness", "documents", *BETWEEN},
}


def imported_folders(source: str) -> Iterator[str]:
    """Folders of benchmarks that a module imports from, also late and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("benchmarks."):
                yield name.split(".")[1]


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_folders_import_only_those_below(folder: str) -> None:
    for file in (BENCHMARKS / folder).glob("*.py"):
        others = set(imported_folders(file.read_text())) - ALLOWED[folder]
        assert not others, f"{file.name} imports {others}"


def test_every_folder_with_code_is_in_the_order() -> None:
    folders = {file.parent.name for file in BENCHMARKS.glob("*/*.py")}
    assert folders == ALLOWED.keys()
