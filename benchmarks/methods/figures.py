"""The figures of benchmarks.methods.compare, as PNG files.

A point is the mean over the seeds; its bar reaches from the lowest to the highest.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.results import write_figure
from benchmarks.methods.summaries import Results, Spread, Summary, rounds_curves, summarize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vPX*<>"


def _figure(num_rows: int, num_columns: int) -> "tuple[Figure, Any]":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            "the figures need matplotlib; install it with pip install matplotlib, or pip install"
            ' ".[dev]"'
        ) from error
    figure = Figure(
        figsize=(4.6 * num_columns + 1.8, 3.6 * num_rows), layout="constrained", dpi=110
    )
    return figure, figure.subplots(num_rows, num_columns, squeeze=False)


def _plot_line(
    axes: "Axes",
    x: Sequence[float],
    spreads: Iterable[Spread],
    label: str,
    place: int,
    **style: Any,
) -> None:
    spreads = list(spreads)
    # matplotlib takes the distances from the mean, not the ends
    means = [spread.mean for spread in spreads]
    bars = [
        [mean - spread.lowest for mean, spread in zip(means, spreads, strict=True)],
        [spread.highest - mean for mean, spread in zip(means, spreads, strict=True)],
    ]
    style = {
        "marker": MARKERS[place % len(MARKERS)],
        "markersize": 4,
        "capsize": 2,
        "linewidth": 1.2,
        **style,
    }
    axes.errorbar(x, means, yerr=bars, label=label, **style)


def rounds_figure(results: Results) -> "Figure | None":
    """Figure 3: each round's accuracy before and after its recovery; round 0 is the dense model."""
    curves = rounds_curves(results)
    if not curves:
        return None
    figure, panels = _figure(1, 1)
    axes = panels[0][0]
    for place, curve in enumerate(curves):
        numbers = list(range(len(curve["rounds"]) + 1))
        dense = Spread((curve["dense"],))  # evaluated once, so it has no bar
        color = f"C{place}"
        pruned, recovered = ([each[index] for each in curve["rounds"]] for index in (2, 3))
        _plot_line(
            axes,
            numbers,
            [dense, *recovered],
            f"keep {curve['keep']:g}, recovered",
            place,
            color=color,
        )
        _plot_line(
            axes,
            numbers[1:],
            pruned,
            f"keep {curve['keep']:g}, pruned",
            place,
            color=color,
            linestyle="--",
        )
        axes.set_ylabel(curve["task"])
    axes.set_xticks(range(1 + max(len(curve["rounds"]) for curve in curves)))
    axes.set_xlabel("round")
    return _finished(figure, axes)


def steps_figure(results: Results) -> "Figure | None":
    """Figure 4: accuracy at the same size and tokens, reached in fewer or more rounds."""
    summaries = summarize(results, "steps")
    if not summaries:
        return None
    figure, panels = _figure(1, 1)
    axes, task = panels[0][0], next(iter(summaries[0].scores))
    for place, keep in enumerate(dict.fromkeys(each.keep for each in summaries)):
        points = [each for each in summaries if each.keep == keep]
        _plot_line(
            axes,
            [each.x or 0 for each in points],
            [each.scores[task] for each in points],
            f"keep {keep:g}",
            place,
        )
    ticks = sorted({each.x or 0 for each in summaries})
    axes.set_xscale("log", base=2)  # each number of rounds is twice the one before
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel("rounds (smaller steps to the right)")
    axes.set_ylabel(task)
    return _finished(figure, axes)


def budget_figure(results: Results, study: str) -> "Figure | None":
    """Accuracy against recovery tokens: a column for each size, a row for each evaluation task, a
    line for each method.
    """
    summaries = summarize(results, study)
    if not summaries:
        return None
    sizes, tasks = list(dict.fromkeys(each.keep for each in summaries)), list(summaries[0].scores)
    methods = list(dict.fromkeys(each.method for each in summaries))
    # all panels share one legend, beside the last one
    figure, panels = _figure(len(tasks), len(sizes))
    for row, task in enumerate(tasks):
        for column, keep in enumerate(sizes):
            axes = panels[row][column]
            _budget_panel(axes, [each for each in summaries if each.keep == keep], methods, task)
            axes.set_title(f"keep {keep:g}")
            axes.set_ylabel(task)
    return _finished(figure, panels[0][-1])


def _budget_panel(axes: "Axes", summaries: list[Summary], methods: list[str], task: str) -> None:
    for place, method in enumerate(methods):
        points = [each for each in summaries if each.method == method]
        # PTL stands out, whatever the number of other lines
        style = {"color": "black", "linewidth": 2.2, "zorder": 3} if method == "PTL" else {}
        if points:
            _plot_line(
                axes,
                [each.x or 0 for each in points],
                [each.scores[task] for each in points],
                method,
                place,
                **style,
            )
    ticks = sorted({each.x or 0 for each in summaries})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick / 1000:g}k" for tick in ticks])
    axes.minorticks_off()  # a logarithmic axis would label them between the budgets
    axes.set_xlabel("recovery tokens")


def _finished(figure: "Figure", axes: "Axes") -> "Figure":
    for panel in figure.axes:
        panel.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8, frameon=False)
    return figure


FIGURES: dict[str, Callable[[Results], "Figure | None"]] = {
    "figure3": rounds_figure,
    "figure4": steps_figure,
    "budget": lambda results: budget_figure(results, "budget"),
    "unseen": lambda results: budget_figure(results, "unseen"),
}


def write_figures(results: Results, folder: Path) -> list[str]:
    """Write the figures that the results have points for; return the sections' names.

    Raises:
        ValueError: matplotlib is not installed.
    """
    written = []
    for name, make in FIGURES.items():
        figure = make(results)
        if figure is not None:
            write_figure(folder / f"{name}.png", figure, {"Software": None})
            written.append(name)
    return written
