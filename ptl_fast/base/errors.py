"""Errors that one stage raises and another one handles."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class Diverged(ValueError):
    """The loss, or what came of it, is NaN or infinite. The guard can undo such a round; without
    one the run ends.
    """
