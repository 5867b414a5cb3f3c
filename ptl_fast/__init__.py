"""ptl_fast: make a language model smaller for reasoning, gradually (the Prune-Tune Loop of arXiv 2602.04919)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # At run time the submodule of the same name is callable; see the end of compress.py.
    from ptl_fast.compress import compress as compress
