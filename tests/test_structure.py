"""The laws of the tree: which package may import which, who may see the whole of the settings, and
that the kernels do not know ptl_fast.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ptl_fast"
KERNELS = ROOT / "kernels" / "torch-ext" / "ptl_kernels"
# From the ground up: a package may import those on the floors below its own, and itself. Packages
# on one floor are siblings and never import one another.
FLOORS = [
    {"base", "demo"},
    {"config"},
    {"model"},
    {"data"},
    {"scoring", "pruning", "recovery", "evaluation"},
    {"baselines"},
    {"run"},
    {"compress", "flap", "slicegpt", "__init__", "__main__"},
]
FLOOR_OF = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}


def imported_modules(source: str) -> set[str]:
    """Modules that a file imports, anywhere in it, also under TYPE_CHECKING."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


def room(module: str) -> str:
    """The package, or the module at the top, that a module of ptl_fast belongs to."""
    return module.split(".")[1]


def forbidden(own: str, source: str) -> set[str]:
    """What a file of the room ``own`` imports of ptl_fast against the law."""
    rooms = {room(name) for name in imported_modules(source) if name.startswith("ptl_fast.")}
    return {
        other
        for other in rooms & FLOOR_OF.keys()
        if other != own and FLOOR_OF[other] >= FLOOR_OF[own]
    }


def files() -> Iterator[Path]:
    return PACKAGE.rglob("*.py")


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def own_room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_has_a_floor() -> None:
    rooms = {own_room(file) for file in files()}
    assert rooms == FLOOR_OF.keys()


@pytest.mark.parametrize("own", sorted(FLOOR_OF))
def test_rooms_import_only_those_below(own: str) -> None:
    found = {
        str(file.relative_to(ROOT)): forbidden(own, file.read_text())
        for file in files()
        if own_room(file) == own
    }
    assert not {file: others for file, others in found.items() if others}


@pytest.mark.parametrize(
    ("own", "source", "others"),
    [
        ("scoring", "from ptl_fast.pruning.plan import PruningPlan", {"pruning"}),
        ("base", "import ptl_fast.config.config", {"config"}),
        (
            "data",
            "if TYPE_CHECKING:\n    from ptl_fast.run.context import RunContext",
            {"run"},
        ),
        ("model", "def late():\n    from ptl_fast import recovery", {"recovery"}),
        ("run", "from ptl_fast.baselines import SCORERS", set()),
        ("scoring", "from ptl_fast.scoring.gram import GramMatrices", set()),
    ],
)
def test_a_planted_import_is_found(own: str, source: str, others: set[str]) -> None:
    assert forbidden(own, source) == others


def test_no_modules_import_one_another_in_a_circle() -> None:
    """Counted by module, with imports under TYPE_CHECKING and inside functions."""
    sources = {module_of(file): file.read_text() for file in files()}
    graph = {
        module: {name for name in imported_modules(source) if name in sources and name != module}
        for module, source in sources.items()
    }
    # a package's own file is imported with each of its modules, and may join them
    graph = {
        module: {name for name in names if not module.startswith(f"{name}.")}
        for module, names in graph.items()
    }
    while graph:
        leaves = {module for module, names in graph.items() if not names & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {module: names for module, names in graph.items() if module not in leaves}


def test_only_run_takes_all_settings() -> None:
    """A stage's function gets its group of settings, or plain values."""
    for file in files():
        if own_room(file) in ("config", "run", "compress"):
            continue
        imported = imported_modules(file.read_text())
        assert "ptl_fast.config.config" not in imported, file


def test_modules_are_short() -> None:
    for folder in (PACKAGE, KERNELS, ROOT / "benchmarks"):
        for file in folder.rglob("*.py"):
            num_lines = len(file.read_text().splitlines())
            assert num_lines <= 400, f"{file} has {num_lines} lines: is it still one room?"


def relative_imports(source: str) -> list[str]:
    """Imports that do not say their package, and so escape the laws here."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def test_imports_say_their_package() -> None:
    assert relative_imports("def late():\n    from ..run import loop") == ["from ..run import loop"]
    for folder in (PACKAGE, ROOT / "benchmarks"):
        for file in folder.rglob("*.py"):
            assert not relative_imports(file.read_text()), file


def test_kernels_import_only_torch_and_triton() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "triton", "ptl_kernels"}
    for file in KERNELS.glob("*.py"):
        relative = {line.split()[1] for line in relative_imports(file.read_text())}
        assert all(name.startswith(".") and not name.startswith("..") for name in relative), file
        tree = ast.parse(file.read_text())
        # a relative one's module is of this package
        names = {
            name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level)
            for name in imported_modules(ast.unparse(node))
        }
        assert {name.split(".")[0] for name in names} <= allowed, file


def test_test_files_do_not_import_one_another() -> None:
    for file in (ROOT / "tests").rglob("test_*.py"):
        parts = {part for name in imported_modules(file.read_text()) for part in name.split(".")}
        assert not any(part.startswith("test_") for part in parts), file


def test_kernels_folder_is_no_package() -> None:
    """A top-level kernels/__init__.py would shadow Hugging Face's kernels package."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize(
    "name", ["compress", "run/command", "run/start", "run/checks", "recovery/registry"]
)
def test_command_line_imports_nothing_heavy(name: str) -> None:
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    top_level = {
        ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not any("torch" in line or "transformers" in line for line in top_level)


@pytest.mark.parametrize(
    ("folder", "tests"),
    [(PACKAGE, "tests"), (ROOT / "benchmarks", "tests/benchmarks"), (KERNELS, "tests/kernels")],
)
def test_every_module_has_a_test_file_of_its_name(folder: Path, tests: str) -> None:
    modules = (file.relative_to(folder) for file in folder.rglob("*.py"))
    expected = {
        ROOT / tests / module.with_name(f"test_{module.name.removeprefix('_')}")
        for module in modules
        if module.name != "__init__.py" and not module.name.startswith("test_")
    }
    assert not {str(file.relative_to(ROOT)) for file in expected if not file.is_file()}
