"""Numbers as people write them: 3M tokens, 1.5B parameters, 20GiB, 65%."""

import math
import re

COUNTS = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
"""Suffixes of numbers of things; of tokens and parameters B and G are both billions."""
BYTES = {
    "b": 1,
    **{f"{prefix}b": 10 ** (3 * power) for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 2 ** (10 * power) for power, prefix in enumerate("kmgt", start=1)},
}
"""Suffixes of sizes: GB is 10^9 bytes, and GiB 2^30."""
WRITTEN = re.compile(r"([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z]*|%)")


def as_count(text: str) -> int | None:
    """3M as 3000000, also 3e6; None for what is no whole number with one of COUNTS, or without."""
    number, unit = _parts(text)
    factor = COUNTS.get(unit, 1 if not unit else None)
    if number is None or factor is None:
        return None
    value = number * factor
    # 1.1k is 1100.0000000000002
    return round(value) if math.isclose(value, round(value), rel_tol=1e-12) else None


def as_bytes(text: str) -> int | None:
    """20GiB as bytes, rounded down; a number without a unit counts bytes. None for other texts."""
    number, unit = _parts(text)
    factor = BYTES.get(unit, 1 if not unit else None)
    return None if number is None or factor is None else math.floor(number * factor)


def as_share(text: str) -> float | None:
    """65% as 0.65; None for what is no percentage."""
    number, unit = _parts(text)
    # a decimal that is divided has the error of both: 7% is to be 0.07
    return None if number is None or unit != "%" else round(number / 100, 15)


def _parts(text: str) -> tuple[float | None, str]:
    """The number of a text and its unit in lower case; (None, "") if it is no such text."""
    match = WRITTEN.fullmatch(text.strip())
    if match is None:
        return None, ""
    number = float(match[1].replace("_", ""))
    return (number, match[2].lower()) if math.isfinite(number) else (None, "")
