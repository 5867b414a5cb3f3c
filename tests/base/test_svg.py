"""Charts are well-formed, put values where they belong, and escape what they are given."""

import math
from xml.etree import ElementTree

import pytest

from ptl_fast.base import svg
from ptl_fast.base.svg import Axis, Series

NASTY = "a<b>&\"'</svg>"


def parsed(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{chart}</div>")


def heights(chart: str) -> list[float]:
    return [float(each.attrib["cy"]) for each in parsed(chart).iter("circle")]


def test_higher_values_stand_higher_and_the_guide_between() -> None:
    points = [(1, 0.5), (2, 0.9), (3, 0.7)]
    chart = svg.plot(
        [Series("r", points)], title="t", x=Axis("x"), y=Axis("y"), guide=("dense", 0.8)
    )
    low, high, middle = heights(chart)
    assert high < middle < low  # y grows downwards
    guide = next(each for each in parsed(chart).iter("line") if each.get("class") == "guide")
    assert high < float(guide.attrib["y1"]) < middle
    # 0.8 is a quarter of the range below 0.9
    assert float(guide.attrib["y1"]) - high == pytest.approx((low - high) / 4, abs=0.2)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-9, 1.7e12])
def test_one_value_alone_has_a_place(value: float) -> None:
    (height,) = heights(
        svg.plot([Series("r", [(value, value)])], title="t", x=Axis("x"), y=Axis("y"))
    )
    assert svg.TOP <= height <= svg.HEIGHT - svg.BOTTOM


def across(chart: str) -> list[str]:
    """What stands under the x axis, its title last."""
    return [
        each.text or ""
        for each in parsed(chart).iter("text")
        if each.get("text-anchor") == "middle"
    ]


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ([1], ["1"]),
        ([0, 1], ["0", "1"]),
        ([1, 2, 3], ["1", "2", "3"]),
        ([0, 7], ["0", "2", "4", "6"]),
        ([3], ["3"]),
        ([0], ["0", "1"]),
    ],
)
def test_whole_numbers_stand_at_an_axis_of_counts(counts: list[int], told: list[str]) -> None:
    series = [Series("r", [(each, 0.5) for each in counts])]
    x = Axis("rounds", is_count=True)
    assert across(svg.plot(series, title="t", x=x, y=Axis("y"))) == [*told, "rounds"]


def test_few_in_a_column_are_counted_in_whole_numbers() -> None:
    chart = svg.histogram([0, 1, 2], 0.0, 1.0, title="t", x_title="x", counted="experts", cut=None)
    texts = [
        each.text for each in parsed(chart).iter("text") if each.get("text-anchor") != "middle"
    ]
    assert texts == ["0", "1", "2", "experts"]


def test_a_dot_behind_another_is_seen() -> None:
    series = [Series(name, [(1, 0.5)]) for name in ("below", "above")]
    chart = svg.plot(series, title="t", x=Axis("x"), y=Axis("y"))
    below, above = (float(each.attrib["r"]) for each in parsed(chart).iter("circle"))
    # the other has an edge of 1 around its dot
    assert below >= above + 1.5


def test_no_words_stand_among_the_points() -> None:
    points = [(1, 0.5), (2, 0.9)]
    chart = svg.plot(
        [Series("r", points)], title="t", x=Axis("x"), y=Axis("y"), guide=("dense", 0.8)
    )
    columns = svg.histogram([1, 9], -1.0, 1.0, title="t", x_title="x", counted="n", cut=0.0)
    for each in (chart, columns):
        for text in parsed(each).iter("text"):
            left, height = float(text.attrib["x"]), float(text.attrib["y"])
            assert left < svg.LEFT or not svg.TOP <= height <= svg.HEIGHT - svg.BOTTOM
    assert "dense" in [each.text or each[0].tail for each in parsed(chart).iter("li")]


def test_everything_is_escaped() -> None:
    charts = [
        svg.plot(
            [Series(NASTY, [(0, 1), (1, 2)])],
            title=NASTY,
            x=Axis(NASTY),
            y=Axis(NASTY),
            guide=(NASTY, 1.0),
        ),
        svg.histogram([1, 2], 0.0, 1.0, title=NASTY, x_title=NASTY, counted=NASTY, cut=0.5),
        svg.stacked_bars([(NASTY, [1.0, 2.0])], [NASTY, "other"], title=NASTY),
        svg.heat_map([(NASTY, [0.0, 1.0])], title=NASTY, x_title=NASTY),
    ]
    for chart in charts:
        root = parsed(chart)
        assert NASTY in "".join(root.itertext())
        assert "a<b" not in chart


def test_nothing_to_show_is_still_a_chart() -> None:
    for chart in (
        svg.plot([], title="t", x=Axis("x"), y=Axis("y")),
        svg.stacked_bars([], ["a"], title="t"),
        svg.heat_map([], title="t", x_title="x"),
        svg.histogram([], 0.0, 0.0, title="t", x_title="x", counted="n", cut=None),
    ):
        parsed(chart)


def test_bars_are_as_long_as_their_values() -> None:
    root = parsed(svg.stacked_bars([("a", [1.0, 3.0]), ("b", [0.0, 2.0])], ["x", "y"], title="t"))
    lengths = [float(each.attrib["width"]) for each in root.iter("rect")]
    assert lengths[1] == pytest.approx(3 * lengths[0], abs=0.2)
    assert lengths[3] == pytest.approx(2 * lengths[0], abs=0.2)


def test_cells_are_as_dark_as_their_values() -> None:
    root = parsed(svg.heat_map([("layer 0", [0.0, 0.25, 1.0])], title="t", x_title="x"))
    shades = [each.attrib["fill-opacity"] for each in root.iter("rect") if each.get("fill-opacity")]
    assert shades == ["0.00", "0.25", "1.00"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.12345, "0.1235"), (9999, "9999"), (12345, "12.35k"), (8.03e9, "8.03G")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert svg.short(value) == text


def test_axes_have_round_numbers_within_the_range() -> None:
    for low, high in ((0.0, 1.0), (0.973, 0.981), (-5.0, 17.0), (1.2e9, 8.1e9)):
        ticks = svg._ticks(low, high)
        assert 2 <= len(ticks) <= 6
        step = ticks[1] - ticks[0]
        assert low - step * 1e-6 <= ticks[0]
        assert ticks[-1] <= high + step * 1e-6
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert any(math.isclose(mantissa, each, rel_tol=1e-6) for each in (1, 2, 5, 10))
