"""The laws of the tree: stages do not know each other, and the kernels do not know ptl_fast."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imported_modules(file: Path) -> set[str]:
    """Modules that a file imports at run time, anywhere in it; imports under TYPE_CHECKING do not
    count.
    """
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return modules


def test_kernels_import_only_torch_and_triton() -> None:
    for file in (ROOT / "kernels" / "torch-ext" / "ptl_kernels").glob("*.py"):
        roots = {name.split(".")[0] for name in imported_modules(file)} - {""}
        assert not {"ptl_fast", "transformers", "numpy"} & roots, file


def test_kernels_folder_is_no_package() -> None:
    """A top-level kernels/__init__.py would shadow Hugging Face's kernels package."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("name", ["compress", "config/command_line", "config/config"])
def test_command_line_imports_nothing_heavy(name: str) -> None:
    tree = ast.parse((ROOT / "ptl_fast" / f"{name}.py").read_text())
    top_level = {
        ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not any("torch" in line or "transformers" in line for line in top_level)
