"""Settings by their flat names, as flags have them."""

from typing import Any

from ptl_fast.config.config import Config
from ptl_fast.run.checks import check_methods


def settings(**values: Any) -> Config:
    """Settings of a model and data that nothing reads."""
    return Config.from_flat(**{"model": "x", "data": "x", **values})


def check(values: Config) -> None:
    """All checks that need neither model nor data."""
    values.check()
    check_methods(values)
