"""Runs side by side: every round of each, by size, as a table or as a page with charts.

    ptl-fast compare runs/a runs/b --html comparison.html

Only what the runs have written is read (report.json); a run in progress has its finished rounds.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptl_fast.base import console, markdown, svg
from ptl_fast.base.atomic_files import write_atomically
from ptl_fast.base.html_page import card, cards, note, page, section, table
from ptl_fast.base.run_files import RunFiles
from ptl_fast.base.svg import Axis, Series
from ptl_fast.config.config import WITHOUT
from ptl_fast.run import metric_names, tables

# Settings that say where a run is, and nothing of what it did.
PLACES = {"output", "overwrite", "dry_run", "dry_run_gpus", "debug", "keep_rounds", "keep_sizes"}
# Columns that go where the terminal is too narrow, one after the other.
LESS_NEEDED = (["FLOPs/token"], ["seconds"], ["of dense"])
Metric = tuple[str, str]
"""(task, metric)"""
Reports = dict[str, dict[str, Any]]
"""{name of a run: its report.json}"""


def main(arguments: Sequence[str]) -> int:
    """Print the comparison of these runs, and write it where it is asked for.

    Returns:
        The exit code: 2 for a folder without a report, told in one line.
    """
    chosen = _parser().parse_args(arguments)
    try:
        reports = read(chosen.runs)
        if chosen.markdown:
            text = f"# Runs compared\n\n{to_text(reports)}\n"
            write_atomically(chosen.markdown, text.encode())
        if chosen.html:
            write_atomically(chosen.html, to_html(reports).encode())
    except (ValueError, OSError) as error:
        console.tell_error(str(error))
        return 2
    print(console.wrapped(to_text(reports, console.columns()), console.columns()))
    return 0


def to_text(reports: Reports, width: int | None = None) -> str:
    """The comparison as markdown; of a table that is wider than ``width`` columns go."""
    sizes = tables.fitted(rows(reports), width, LESS_NEEDED)
    parts = [markdown.table(sizes), _unlike(reports), settings_text(reports)]
    return "\n\n".join(part for part in parts if part)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ptl-fast compare", description="Compare runs, round by round, from their folders."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page with charts")
    return parser


def read(folders: Sequence[Path]) -> Reports:
    """The runs' reports, by the folders' names, or by their paths where names are the same.

    Raises:
        ValueError: a folder has no report, or a damaged one.
    """
    names = [folder.resolve().name for folder in folders]
    reports = {}
    for folder, name in zip(folders, names, strict=True):
        report = RunFiles(folder).report.read()
        if report is None:
            raise ValueError(
                f"{folder} has no report.json; give the folder of a run (its --output) that has"
                " finished a round"
            )
        reports[name if names.count(name) == 1 else str(folder)] = report
    return reports


def metrics(reports: Reports) -> list[Metric]:
    """The first metric of every task of any run, in their order."""
    found: dict[Metric, None] = {}
    for report in reports.values():
        for task, values in report["dense"]["eval"].items():
            found[task, next(iter(values))] = None
    return list(found)


def rows(reports: Reports) -> list[list[str]]:
    """The table's rows, the header first: each run's dense model, then its rounds."""
    found = metrics(reports)
    header = ["run", "round", "parameters", "of dense", "FLOPs/token", "seconds"]
    lines = [[*header, *(metric_names.titled(*each) for each in found)]]
    for name, report in reports.items():
        dense, seconds = report["dense"], 0.0
        for record in (dense, *report["rounds"]):
            seconds += sum(record.get("seconds", {}).values())
            lines.append(
                [
                    name,
                    str(record.get("round", "dense")),
                    tables.short(record["num_parameters"]),
                    f"{record['num_parameters'] / dense['num_parameters']:.1%}",
                    tables.short(record["flops_per_token"]),
                    f"{seconds:.0f}" if "round" in record else "",
                    *(_shown(record["eval"], each) for each in found),
                ]
            )
    return lines


def _shown(evaluation: dict[str, dict[str, float]], metric: Metric) -> str:
    value = evaluation.get(metric[0], {}).get(metric[1])
    return "" if value is None else metric_names.reading(metric[1]).show(value)


def different_settings(reports: Reports) -> list[list[str]]:
    """A row for each setting that is not the same in all runs, the header first."""
    configs = [report["config"] for report in reports.values()]
    names = {name for config in configs for name in config} - PLACES
    # WITHOUT: what a run did that began before there was such a setting
    lines = [
        [name, *(str(each.get(name, WITHOUT.get(name))) for each in configs)]
        for name in sorted(names)
    ]
    return [["setting", *reports], *(line for line in lines if len(set(line[1:])) > 1)]


def settings_text(reports: Reports) -> str:
    """``different_settings`` as markdown; empty if there are none."""
    lines = different_settings(reports)
    return markdown.table(lines) if len(lines) > 1 else ""


def _unlike(reports: Reports) -> str:
    """A warning where runs were not measured alike; empty if they were."""
    unlike = [
        metric_names.titled(*metric)
        for metric in metrics(reports)
        if len({_shown(report["dense"]["eval"], metric) for report in reports.values()}) > 1
    ]
    if not unlike:
        return ""
    return (
        f"The dense models differ in {', '.join(unlike)}: these runs began with other models or"
        " were measured on other problems, so compare each with its own dense model."
    )


def to_html(reports: Reports) -> str:
    """The comparison as one page: the quality of every round of every run against its size."""
    charts = [_chart(reports, metric) for metric in metrics(reports)]
    lines, unlike = different_settings(reports), _unlike(reports)
    return page(
        "Runs compared",
        [
            section("Quality by size", cards(charts), note(unlike) if unlike else ""),
            section("Every round", table(rows(reports)), note("Seconds are added up over rounds.")),
            section("Settings that differ", table(lines) if len(lines) > 1 else ""),
        ],
    )


def _chart(reports: Reports, metric: Metric) -> str:
    """One metric against size, a line a run, from the dense model on."""
    read_as, name = metric_names.reading(metric[1]), metric_names.titled(*metric)
    factor = 100 if read_as.is_share else 1
    series = []
    for run, report in reports.items():
        points = [
            (record["num_parameters"], factor * record["eval"][metric[0]][metric[1]])
            for record in (report["dense"], *report["rounds"])
            if metric[1] in record["eval"].get(metric[0], {})
        ]
        series.append(Series(run, points))
    chart = svg.plot(
        series,
        title=f"{name}, by size",
        x=Axis("parameters", is_count=True),
        y=Axis(f"{read_as.name}, %", most=100.0) if read_as.is_share else Axis(read_as.name),
    )
    return card(f"{name}, by size", chart, read_as.how)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
