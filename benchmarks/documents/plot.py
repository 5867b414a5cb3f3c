"""Draw every figure from the raw results, into docs/figures.

    python -m benchmarks.documents.plot [--results DIR] [--output DIR]

One figure for each file of results: speedup_*.json, alignment_*.json, kernels_*.json. Results that
are not there have no figure.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.documents.document import RESULTS, ROOT, load
from benchmarks.harness.results import MEASURED, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = ROOT / "docs" / "figures"


def speedup_figure(results: dict[str, Any]) -> "Figure":
    """Measured beside predicted speedup, a pair of bars for each workload."""
    rows = [row for row in results["rows"] if row["status"] == MEASURED]
    figure, axes = _axes(width=1.2 * len(rows))
    for place, row in enumerate(rows):
        # distances from the bar's end; vLLM's rows have none
        spread = (
            [[row["speedup"] - row["speedup_p20"]], [row["speedup_p80"] - row["speedup"]]]
            if "speedup_p20" in row
            else None
        )
        axes.bar(
            place - 0.2,  # left of the tick; the prediction stands right of it
            row["speedup"],
            0.4,
            color="tab:blue",
            yerr=spread,
            label="measured" if place == 0 else None,
        )
        if "predicted_speedup" in row:
            axes.bar(
                place + 0.2,
                row["predicted_speedup"],
                0.4,
                color="lightgrey",
                label="predicted" if place == 0 else None,
            )
    labels = [
        f"{row['work']}\n{row['batch_size']} x {row['prompt_length']}\n{row['engine']}"
        for row in rows
    ]
    axes.set_xticks(range(len(rows)), labels)
    axes.axhline(1, color="black", linewidth=0.8)  # above it, the compressed model is faster
    axes.set(
        ylabel="dense time / compressed time",
        title=f"{results['model']} on {results['environment']['device']}",
    )
    axes.legend()
    return figure


def alignment_figure(results: dict[str, Any]) -> "Figure":
    """Time per neuron above that of multiples of 256, against the width; one panel for each
    product.
    """
    panels = list(dict.fromkeys((row["product"], row["num_tokens"]) for row in results["rows"]))
    figure, all_axes = _axes(height=3.5 * len(panels), num_panels=len(panels))
    for axes, (product, num_tokens) in zip(
        [all_axes] if len(panels) == 1 else all_axes, panels, strict=True
    ):
        rows = [
            row
            for row in results["rows"]
            if (row["product"], row["num_tokens"]) == (product, num_tokens)
        ]
        axes.plot(
            [row["width"] for row in rows],
            [100 * row["excess"] for row in rows],
            ".-",
            color="lightgrey",
        )
        # later points cover earlier ones, so a width has the colour of its largest divisor
        for divisor, colour in ((64, "tab:green"), (128, "tab:orange"), (256, "tab:red")):
            aligned = [row for row in rows if row["width"] % divisor == 0]
            heights = [100 * row["excess"] for row in aligned]
            axes.plot(
                [row["width"] for row in aligned],
                heights,
                "o",
                color=colour,
                label=f"multiples of {divisor}",
            )
        axes.set(
            xlabel="FFN width",
            ylabel="excess, %",
            title=f"{product} projection, {num_tokens} tokens",
        )
        axes.legend()
    figure.suptitle(
        f"{results['environment']['device']}, {results['dtype']}: --width-multiple"
        f" {results['rule']}"
    )
    return figure


def kernels_figure(results: dict[str, Any]) -> "Figure":
    """For each op the ratio to each peer: a dot for each shape and dtype, above 1 where ours is
    faster.
    """
    rows = [row for row in results["rows"] if row["status"] == MEASURED]
    names = list(dict.fromkeys((row["op"], row["peer"]) for row in rows))
    figure, axes = _axes(width=9, height=len(names) / 5)
    axes.plot(
        [row["ratio_to_peer"] for row in rows],
        [names.index((row["op"], row["peer"])) for row in rows],
        ".",
    )
    axes.axvline(1, color="black", linewidth=0.8)
    # one line for each op and peer, in the order of the results from the top
    axes.set_yticks(range(len(names)), [f"{op} / {peer}" for op, peer in names], fontsize="x-small")
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="peer time / our time", title=results["environment"]["device"])
    return figure


FIGURE_OF: dict[str, Callable[[dict[str, Any]], "Figure"]] = {
    "speedup": speedup_figure,
    "alignment": alignment_figure,
    "kernels": kernels_figure,
}


def _axes(width: float = 7.0, height: float = 4.0, num_panels: int = 1) -> Any:
    """A figure of this size in inches, and its axes, one above the other."""
    from matplotlib import pyplot

    pyplot.switch_backend("svg")  # needs no display
    pyplot.rcParams["svg.hashsalt"] = "ptl_fast"  # the same results give the same file
    return pyplot.subplots(
        num_panels, figsize=(max(width, 5.0), max(height, 3.0)), layout="constrained"
    )


def draw(results: Path, output: Path) -> list[Path]:
    """Write every figure; return the files."""
    from matplotlib import pyplot

    output.mkdir(parents=True, exist_ok=True)
    files = []
    for prefix, make in FIGURE_OF.items():
        for content in load(results, prefix):
            figure = make(content)
            files.append((output / content["file"]).with_suffix(".svg"))
            write_figure(files[-1], figure, {"Date": None})
            pyplot.close(figure)
    return files


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=FIGURES)
    options = parser.parse_args(arguments)
    for file in draw(options.results, options.output):
        print(file)


if __name__ == "__main__":
    main()
