"""The list of cells: sizes, order, and who leads."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.methods import reasoning_cells as cells
from benchmarks.methods.reasoning_cells import COMPARED, METHODS, Cell, Plan
from benchmarks.methods.setup import num_parameters, planned
from ptl_fast.config.config import FIELDS
from support.reasoning import fake_result


@pytest.fixture
def base(reasoning_world: Path) -> dict[str, Any]:
    return {
        "model": str(reasoning_world / "model"),
        "data": "x",
        "recovery": "none",
        "sequence_length": 128,
    }


@pytest.mark.parametrize("name", ["default", "paper", "random", "shortgpt", "slicegpt"])
def test_methods_come_nearest_to_the_share(name: str, base: dict[str, Any]) -> None:
    dense = planned({**base, "keep": 1.0})[0]["num_parameters"]
    settings = METHODS[name].at_share(base, 0.7, 8)
    share = num_parameters({**base, **settings}) / dense
    # a multiple of 8 neurons in 4 layers, one layer, or 1 / 256 of the hidden size
    most = {"shortgpt": 0.12, "slicegpt": 0.02}.get(name, 0.006)
    assert share == pytest.approx(0.7, abs=most)
    assert settings["rounds"] == 1


def test_no_other_width_is_nearer(base: dict[str, Any]) -> None:
    dense = planned({**base, "keep": 1.0})[0]
    settings = METHODS["default"].at_share(base, 0.8, 8)
    width = planned({**base, **settings})[-1]["width"]

    def distance(kept: int) -> float:
        return abs(
            num_parameters({**base, **settings, "keep": kept / dense["width"]})
            / dense["num_parameters"]
            - 0.8
        )

    assert width % 8 == 0
    assert distance(width) <= min(distance(width - 8), distance(width + 8))


def test_what_matters_most_comes_first() -> None:
    found = cells.cells(Plan(seeds=[0, 1], variants=["mine"]), {})
    names = [each.name for each in found]
    assert len(set(names)) == len(names)
    assert names[:4] == [
        "dense",
        "mine_80_own_none_0",
        "default_80_own_none_0",
        "paper_80_own_none_0",
    ]
    first_of_65 = names.index("default_65_own_none_0")
    assert names.index(f"{COMPARED[-1]}_80_own_none_0") == first_of_65 - 1
    assert names.index("default_90_own_none_0") < names.index("default_80_own-math_none_0")
    assert "random-compensated" not in COMPARED
    # all of one seed before the next
    assert max(index for index, name in enumerate(names) if name.endswith("_0")) < min(
        index for index, name in enumerate(names) if name.endswith("_1")
    )


def test_those_that_lead_recover() -> None:
    rights = {"paper": "0001", "wanda": "0111", "flap": "0011", "minitron": "1111", "random": "0"}
    results = {
        name: fake_result(name, right.ljust(4, "0"), method=name, share=0.8)
        for name, right in rights.items()
    }
    results["math"] = fake_result(
        "math", "1111", method="random", share=0.8, calibration="own-math"
    )
    results["half"] = {**fake_result("half", "1111", method="shortgpt", share=0.8)}
    results["half"]["finished"] = False
    assert cells.leading(results, 0.8) == ["default", "minitron", "wanda", "flap"]
    assert cells.leading(results, 0.65) == ["default"]
    recovering = [each for each in cells.cells(Plan(), results) if each.recovery != "none"]
    assert [each.method for each in recovering if each.share == 0.8] == [
        "default",
        "minitron",
        "wanda",
        "flap",
    ]


def test_what_this_version_lacks_is_named() -> None:
    assert cells.missing({"scorer": "reconstruction", "keep": 0.5}) == []
    assert cells.missing({"scorer": "hope", "faith": 1}) == ["the setting faith", "the scorer hope"]


def test_what_is_switched_off_and_unknown_is_left_out(base: dict[str, Any]) -> None:
    settings = cells.layers(hope=False, charity=True)(base, 0.7, 8)
    assert "hope" not in settings
    assert settings["charity"] is True
    assert set(settings) - {"charity"} <= FIELDS.keys()


def test_variants_are_the_default_with_other_settings(base: dict[str, Any]) -> None:
    name, method = cells.variant("mine:calibration-tokens=4096,scorer=gradient")
    settings = method.at_share(base, 0.8, 8)
    assert name == "mine"
    assert (settings["calibration_tokens"], settings["scorer"]) == (4096, "gradient")
    assert "compensate" not in settings
    for wrong in ("mine", "mine:", ":a=1", "mine:a"):
        with pytest.raises(ValueError, match="is not of the form NAME:SETTING=VALUE"):
            cells.variant(wrong)


def test_names_say_all() -> None:
    assert Cell(method="dense").name == "dense"
    cell = Cell(method="wanda", share=0.65, calibration="written", recovery="cpt", seed=3)
    assert cell.name == "wanda_65_written_cpt_3"
