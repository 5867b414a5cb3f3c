"""Small charts as inline SVG, for a page that needs no network and no script.

Every chart is WIDTH units wide, so that its text is readable where a telephone shows it in full
width. Colours are classes that the page's style sheet (html_page.STYLE) has for light and dark.
Text is escaped here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 28, 44  # the upper margin has the y axis's title
ROW = 22  # height of a row of bars
LETTER = 7  # at most about the mean width of one in a label
NUM_COLOURS = 6
LARGEST_DOT, SMALLEST_DOT = 6.0, 3.0  # radius
AWAY = 9  # between an axis and its numbers, where a dot may lie on it

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Points of one kind, in the order in which a line joins them."""

    name: str
    points: Sequence[Point]
    joined: bool = True


@dataclass(frozen=True)
class Axis:
    """What a chart's axis counts or measures."""

    title: str
    is_count: bool = False
    """Whether its values are whole numbers from 0 on, so that only such are written at it."""
    most: float | None = None
    """What a value can be at most, such as 100 of a percentage."""


def plot(
    series: Sequence[Series],
    *,
    title: str,
    x: Axis,
    y: Axis,
    guide: tuple[str, float] | None = None,
) -> str:
    """A chart of points; later series have smaller dots, so that they cover no earlier one.

    Args:
        title: what a reader of the screen hears.
        guide: (name, y) of a dashed line across.
    """
    points = [point for each in series for point in each.points]
    heights = [up for _, up in points] + ([guide[1]] if guide else [])
    x_scale = _Scale([left for left, _ in points], LEFT, WIDTH - RIGHT, x)
    y_scale = _Scale(heights, HEIGHT - BOTTOM, TOP, y)
    parts = [_axes(x_scale, y_scale)]
    for number, each in enumerate(series):
        parts.append(_points(each, number, x_scale, y_scale))
    # above the lines that it is compared with
    if guide:
        height = f"{y_scale(guide[1]):.1f}"
        parts.append(
            f'<line class="guide" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}"/>'
        )
    names = [each.name for each in series]
    return figure(title, HEIGHT, parts) + legend(names, guide[0] if guide else None)


def _points(series: Series, number: int, x_scale: "_Scale", y_scale: "_Scale") -> str:
    places = [(x_scale(x), y_scale(y)) for x, y in series.points]
    colour, parts = number % NUM_COLOURS, []
    radius = max(SMALLEST_DOT, LARGEST_DOT - 1.5 * number)
    if series.joined:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line c{colour}" points="{path}"/>')
    for (x, y), (left, up) in zip(places, series.points, strict=True):
        told = escape(f"{series.name}: {short(left)}, {short(up)}")
        parts.append(
            f'<circle class="dot c{colour}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}">'
            f"<title>{told}</title></circle>"
        )
    return "".join(parts)


def histogram(
    counts: Sequence[int],
    low: float,
    high: float,
    *,
    title: str,
    x_title: str,
    counted: str,
    cut: float | None,
) -> str:
    """Columns of equal width over [low, high], with a dashed line at ``cut``.

    Args:
        counted: what there are so many of.
    """
    x_scale = _Scale([low, high], LEFT, WIDTH - RIGHT, Axis(x_title))
    y_scale = _Scale([0, *counts], HEIGHT - BOTTOM, TOP, Axis(counted, is_count=True))
    step = (WIDTH - RIGHT - LEFT) / max(1, len(counts))
    parts = [_axes(x_scale, y_scale)]
    for number, count in enumerate(counts):
        y = y_scale(count)
        parts.append(
            f'<rect class="fill c0" x="{LEFT + number * step:.1f}" y="{y:.1f}"'
            f' width="{max(0.5, step - 1):.1f}" height="{HEIGHT - BOTTOM - y:.1f}"/>'
        )
    if cut is not None:
        x = x_scale(cut)
        parts.append(
            f'<line class="guide" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        )
        # over the columns, which would make it hard to read
        parts.append(_text(x, TOP - 4, "cut", "middle"))
    return figure(title, HEIGHT, parts)


def stacked_bars(
    rows: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], *, title: str
) -> str:
    """A horizontal bar a row, made of one part a name, with its total.

    Args:
        rows: (label, a value for each name, none below zero).
    """
    most = max((sum(values) for _, values in rows), default=0) or 1.0
    left, right = 90, 52
    parts = []
    for number, (label, values) in enumerate(rows):
        x, y = float(left), ROW / 4 + number * ROW
        parts.append(_text(left - 6, y + 13, label, "end"))
        for colour, (name, value) in enumerate(zip(names, values, strict=True)):
            length = (WIDTH - left - right) * value / most
            told = escape(f"{label}, {name}: {short(value)}")
            parts.append(
                f'<rect class="fill c{colour % NUM_COLOURS}" x="{x:.1f}" y="{y}"'
                f' width="{length:.1f}" height="{ROW - 6}"><title>{told}</title></rect>'
            )
            x += length
        parts.append(_text(x + 4, y + 13, short(sum(values)), "start"))
    key = legend(names) if len(names) > 1 else ""
    return figure(title, ROW * (len(rows) + 0.5), parts) + key


def heat_map(rows: Sequence[tuple[str, Sequence[float]]], *, title: str, x_title: str) -> str:
    """A cell for each value in [0, 1], the stronger in colour the larger.

    Args:
        rows: (label, its values), all of the same length.
    """
    height = max(6, min(ROW, 400 // max(1, len(rows))))
    every = max(1, math.ceil(11 / height))  # labels that do not overlap
    left = max(LEFT, 6 + LETTER * max((len(label) for label, _ in rows), default=0))
    step = (WIDTH - RIGHT - left) / max(1, max((len(values) for _, values in rows), default=1))
    parts = []
    for number, (label, values) in enumerate(rows):
        y = number * height
        if number % every == 0:
            parts.append(_text(left - 6, y + height / 2 + 4, label, "end"))
        for column, value in enumerate(values):
            told = escape(f"{label}: {value:.0%}")
            parts.append(
                f'<rect class="cell" x="{left + column * step:.1f}" y="{y}" width="{step:.2f}"'
                f' height="{height}" fill-opacity="{value:.2f}"><title>{told}</title></rect>'
            )
    bottom = height * len(rows)
    parts.append(
        f'<rect class="frame" x="{left}" y="0" width="{WIDTH - RIGHT - left}" height="{bottom}"/>'
    )
    parts.append(_text((left + WIDTH - RIGHT) / 2, bottom + 18, x_title, "middle"))
    return figure(title, bottom + 26, parts)


def figure(title: str, height: float, parts: Sequence[str]) -> str:
    """An SVG element of these parts."""
    told = escape(title)
    return (
        f'<svg role="img" aria-label="{told}" viewBox="0 0 {WIDTH} {height:g}">'
        f"<title>{told}</title>{''.join(parts)}</svg>"
    )


def legend(names: Sequence[str], guide: str | None = None) -> str:
    """The colours' names, in the order of the series, and the dashed line's."""
    items = [
        f'<li><span class="key k{number % NUM_COLOURS}"></span>{escape(name)}</li>'
        for number, name in enumerate(names)
    ]
    if guide is not None:
        items.append(f'<li><span class="key dashed"></span>{escape(guide)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


class _Scale:
    """A linear map from values to places, with round numbers to write at the axis."""

    def __init__(self, values: Sequence[float], start: float, end: float, axis: Axis) -> None:
        low, high = min(values, default=0.0), max(values, default=1.0)
        # one value alone has room around it
        if high - low <= 1e-12 * max(abs(high), abs(low), 1e-30):
            margin = abs(high) / 10 or 1.0
            low, high = low - margin, high + margin
            low = max(low, 0.0) if axis.is_count else low
            high = high if axis.most is None else min(high, axis.most)
        self.low, self.high, self.start, self.end = low, high, start, end
        self.title = axis.title
        self.ticks = [
            each
            for each in _ticks(low, high, least_step=1 if axis.is_count else 0)
            if axis.most is None or each <= axis.most
        ]

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _ticks(low: float, high: float, least_step: float = 0) -> list[float]:
    """Two to six round numbers in [low, high]; fewer if it is no longer than ``least_step``."""
    rough = max((high - low) / 4, least_step)
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _axes(x_scale: _Scale, y_scale: _Scale) -> str:
    bottom, parts = HEIGHT - BOTTOM, []
    for tick in y_scale.ticks:
        y = y_scale(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(_text(LEFT - AWAY, y + 4, short(tick), "end"))
    for tick in x_scale.ticks:
        parts.append(_text(x_scale(tick), bottom + AWAY + 9, short(tick), "middle"))
    parts.append(
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    )
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, bottom + 36, x_scale.title, "middle"))
    parts.append(_text(2, 12, y_scale.title, "start"))
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def short(value: float) -> str:
    """A number in few characters: four significant digits, with k, M, G or T from ten thousand."""
    for unit, scale, least in (
        ("T", 1e12, 1e12),
        ("G", 1e9, 1e9),
        ("M", 1e6, 1e6),
        ("k", 1e3, 1e4),
    ):
        if abs(value) >= least:
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}"
