"""Every method gets as many parameters as PTL, as near as its layers or slices allow."""

from typing import Any

import pytest

from benchmarks.methods import contenders
from benchmarks.methods import setup as common
from benchmarks.methods.setup import Setup, num_parameters
from support.demo_sizes import demo_parameters


@pytest.mark.parametrize(
    ("keep", "width", "num_left"),
    [
        pytest.param(0.5, 384, 2, id="58.4%-between-51.4%-and-75.7%"),
        pytest.param(0.25, 192, 1, id="37.5%-between-27.1%-and-51.4%"),
        pytest.param(0.125, 96, 1, id="27.0%-beside-27.1%"),
    ],
)
def test_layer_methods_drop_the_number_of_layers_nearest_in_parameters(
    setup: Setup, keep: float, width: int, num_left: int
) -> None:
    target = demo_parameters(4, width)
    assert min((1, 2, 3), key=lambda left: abs(demo_parameters(left, 768) - target)) == num_left
    settings = contenders.fewer_layers(setup, keep, "last")
    assert settings["drop_layers"] == settings["layers_per_round"] == 4 - num_left
    assert num_parameters({**setup.base, **settings}) == demo_parameters(num_left, 768)


def test_nearest_looks_on_both_sides_and_at_the_ends() -> None:
    sizes = {1: 10, 2: 20, 3: 40}
    for target, expected in ((0, 1), (14, 1), (16, 2), (29, 2), (31, 3), (99, 3)):
        assert contenders.nearest([1, 2, 3], sizes.__getitem__, target) == expected


def test_slice_has_the_fraction_nearest_in_parameters(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned_sizes(**settings: Any) -> list[dict[str, int]]:
        if "slice_hidden" not in settings:
            return [{"num_parameters": 1000}, {"num_parameters": 600}]
        return [
            {"num_parameters": 1000},
            {"num_parameters": int(100 + 1000 * settings["slice_hidden"])},
        ]

    common._planned.cache_clear()
    monkeypatch.setattr(common, "planned_sizes", planned_sizes)
    assert contenders.sliced(setup, 0.5)["slice_hidden"] == 128 / 256
    common._planned.cache_clear()


@pytest.mark.parametrize("name", ["Minitron", "Wanda", "FLAP", "LLM-Pruner", "random, once"])
def test_peers_run_as_their_papers_do_at_ptls_size(setup: Setup, name: str) -> None:
    """All at once, without our compensation, on the same tokens; FLAP has its biases on top."""
    ours = {**setup.base, **contenders.PEERS["PTL"](setup, 0.25)}
    theirs = {**setup.base, **contenders.PEERS[name](setup, 0.25)}
    assert (theirs["rounds"], theirs["compensate"]) == (1, False)
    assert theirs["recovery_tokens"] == ours["recovery_tokens"]
    biases = 4 * 128 if name == "FLAP" else 0
    assert num_parameters(theirs) == num_parameters(ours) + biases
