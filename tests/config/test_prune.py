"""Sizes that no model can have, and ways to prune that exclude one another."""

from typing import Any

import pytest

from ptl_fast.config.prune import PruneSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep": 0.0}, "--keep 0.0 is outside \\(0, 1\\]"),
        ({"keep": 1.5}, "--keep 1.5 is outside"),
        (
            {"rounds": 10**12},
            "--rounds 1000000000000 is more than 1,000, and each has an evaluation",
        ),
        ({"rounds": 0}, "--rounds 0 must be at least 1"),
        ({"neurons_per_round": 0}, "--neurons-per-round 0 must be at least 1"),
        ({"layers_per_round": 0}, "--layers-per-round 0 must be at least 1"),
        ({"width_multiple": 0}, "--width-multiple 0 must be at least 1"),
        ({"drop_layers": -1}, "--drop-layers -1 must be at least 0"),
        ({"layers": "3;7"}, "--layers 3;7 must be numbers with commas"),
        ({"layers": "3,3"}, "--layers 3,3 names a layer twice"),
        ({"layers": "3,7", "drop_layers": 3}, "names 2 layers, and --drop-layers is 3"),
        ({"keep_experts": 0.0}, "--keep-experts 0.0 is outside"),
        ({"experts_per_round": 2}, "about the experts that --keep-experts removes"),
        ({"experts_per_round": 0, "keep_experts": 0.5}, "must be at least 1"),
        ({"slice_hidden": 0.5, "keep": 1.0, "keep_experts": 0.5}, "removes nothing else"),
        ({"slice_hidden": 1.0, "keep": 1.0}, "--slice-hidden 1.0 is outside"),
        ({"slice_hidden": 0.5, "keep": 0.9}, "one round that removes nothing else"),
        ({"slice_hidden": 0.5, "keep": 1.0, "rounds": 2}, "one round that removes nothing else"),
        ({"threshold": -0.1}, "--threshold -0.1 must be a number that is at least 0"),
        ({"threshold": float("inf")}, "--threshold inf must be"),
        ({"threshold": 0.1, "neurons_per_round": 8}, "give one of the two"),
        ({"threshold": 0.1, "keep": 1.0}, "lower --keep"),
    ],
)
def test_what_makes_no_sense_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruneSettings(**values).check()


def test_defaults_make_sense() -> None:
    PruneSettings().check()


def test_auto_is_a_multiple() -> None:
    PruneSettings(width_multiple="auto").check()
