"""Numbers as people write them."""

import pytest

from ptl_fast.config.numbers import as_bytes, as_count, as_share


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3M", 3_000_000),
        ("3 m", 3_000_000),
        ("1.5B", 1_500_000_000),
        ("1.1k", 1100),
        ("2G", 2 * 10**9),
        ("1e6", 10**6),
        ("131_072", 131072),
        ("7", 7),
        ("1.5", None),
        ("1.0001k", None),
        ("3MB", None),
        ("65%", None),
        ("3X", None),
        ("M", None),
        ("1e999", None),
        ("nan", None),
    ],
)
def test_counts(text: str, number: int | None) -> None:
    assert as_count(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("20GiB", 20 * 2**30),
        ("600MB", 600 * 10**6),
        ("1.5 gb", 1_500_000_000),
        ("12", 12),
        ("12B", 12),
        ("3M", None),
        ("65%", None),
        ("GiB", None),
    ],
)
def test_sizes(text: str, number: int | None) -> None:
    assert as_bytes(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [("65%", 0.65), ("7%", 0.07), ("12.5 %", 0.125), ("0.65", None), ("%", None)],
)
def test_shares(text: str, number: float | None) -> None:
    assert as_share(text) == number
