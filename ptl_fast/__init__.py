"""ptl_fast: make a language model smaller for reasoning, gradually (the Prune-Tune Loop of arXiv 2602.04919)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # At run time the submodule of the same name is callable; see the end of compress.py.
    from ptl_fast.compress import compress as compress


def __getattr__(name: str) -> Any:
    if name == "compress":
        return importlib.import_module("ptl_fast.compress")
    raise AttributeError(f"module {__name__} has no attribute {name}")
