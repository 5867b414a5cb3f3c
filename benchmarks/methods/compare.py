"""Pruning methods on equal terms: same model, data, recovery tokens, size and evaluation; several
seeds; mean and spread.

    python -m benchmarks.methods.compare                               # the whole grid of the
    bundled model: under 3 hours on 2 cores python -m benchmarks.methods.compare --quick
    # one size, two seeds: under 15 minutes
    python -m benchmarks.methods.compare --model DIR --data FILE --config SETTINGS.yaml
    python -m benchmarks.methods.compare --render [--json FILE]        # tables and figures again,
    from the rows alone

Each cell is one ptl_fast.compress(...) in a folder and a process of its own: interrupted, the same
command goes on where it was; finished cells are not run again, nor those that --json holds. For
another model, --config holds the settings of every cell (recovery_tokens, learning_rate,
eval_tasks, ...). To choose a setting, use --split validation: the test problems are for the last
word only.
"""

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.results import write_text
from benchmarks.methods import cells as cells_module
from benchmarks.methods import data, grid
from benchmarks.methods import figures as figures_module
from benchmarks.methods import tables as tables_module
from benchmarks.methods.grid import Cell, Point, Setup

QUICK_STUDIES = ("methods", "order", "rounds", "steps")
QUICK_SIZES = (0.125,)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when every cell finished, 1 when one failed, 2 for settings that do not fit."""
    options = _options(arguments)
    try:
        results = json.loads(options.json.read_text()) if options.render else measure(options)
        if options.plan:
            return 0
        write_all(results, options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues from here", file=sys.stderr)
        return 130
    failed = [
        name for name, row in results["cells"].items() if row["status"] == cells_module.FAILED
    ]
    for name in failed:
        print(f"failed: {name}: {results['cells'][name]['error']}", file=sys.stderr)
    return 1 if failed else 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run what is not finished yet and return the rows; --json has them after every cell.

    Raises:
        ValueError: cells that cannot run, named.
    """
    setup = data.make_setup(options)
    points = grid.make_points(options.studies, setup, options.methods)
    cells, places = make_cells(points, setup, options.seeds)
    before = (
        json.loads(options.json.read_text())
        if options.json.is_file()
        else {"environment": {}, "cells": {}}
    )
    environment = before["environment"]
    results: dict[str, Any] = {
        "environment": environment,
        "setup": _describe(setup, options),
        "points": places,
        "cells": {},
    }
    for name, each in cells.items():
        row = cells_module.finished_row(each, options.output) or finished_elsewhere(
            each, before["cells"]
        )
        results["cells"][name] = row or {"settings": each.settings, "status": cells_module.WAITING}
    missing = [
        each
        for name, each in cells.items()
        if results["cells"][name]["status"] != cells_module.FINISHED
    ]
    print(plan_text(len(cells), missing, options.jobs), flush=True)
    if options.plan:
        print("\n".join(f"{each.cost_s:5.0f} s  {each.name}" for each in cells.values()))
        return results
    _run(missing, results, options)
    return results


def finished_elsewhere(cell: Cell, rows: dict[str, Any]) -> dict[str, Any] | None:
    """The cell's row in a file of rows, if it is finished there: a grid may go on without the
    folders of its runs.
    """
    row = rows.get(cell.name)
    return (
        row
        if row is not None
        and row["status"] == cells_module.FINISHED
        and row["settings"] == cell.settings
        else None
    )


def _run(missing: list[Cell], results: dict[str, Any], options: argparse.Namespace) -> None:
    """Run the cells, and after each one write the rows and say how long the rest will take."""
    costs, start = {each.name: each.cost_s for each in missing}, time.monotonic()
    left, devices = dict(costs), results["environment"].get("device", "").split(", then ")

    def environment() -> dict[str, Any]:
        now = cells_module.environment(options.output, results["cells"], options.jobs)
        return {
            **now,
            "device": ", then ".join(dict.fromkeys(filter(None, [*devices, now["device"]]))),
        }

    def done(name: str, row: dict[str, Any]) -> None:
        results["cells"][name] = row
        results["environment"] = environment()
        write_text(options.json, to_json(results))
        del left[name]
        share_left = sum(left.values()) / sum(costs.values())
        minutes = (time.monotonic() - start) / 60 / max(1e-9, 1 - share_left) * share_left
        print(
            f"{len(costs) - len(left)}/{len(costs)} {row['status']}: {name} (about {minutes:.0f}"
            " min left)",
            flush=True,
        )

    if missing:
        results["environment"] = environment()
    cells_module.run_cells(missing, options.output, options.jobs, done)


def plan_text(num_cells: int, missing: Sequence[Cell], jobs: int) -> str:
    """How many cells there are, and about how long they take."""
    minutes = sum(each.cost_s for each in missing) / jobs / 60
    return (
        f"{num_cells} cells, {num_cells - len(missing)} of them finished; {jobs} at a time. The"
        f" rest takes about {minutes:.0f} min"
        " with the bundled model on free cores; with another model, the first finished cells will"
        " tell."
    )


def make_cells(
    points: Sequence[Point], setup: Setup, seeds: int
) -> tuple[dict[str, Cell], list[dict[str, Any]]]:
    """The distinct cells by name, seed by seed so that an interrupted grid has whole tables; and
    every point with its cells.
    """
    cells: dict[str, Cell] = {}
    names: list[list[str]] = [[] for _ in points]
    for seed, (place, point) in itertools.product(range(seeds), enumerate(points)):
        each = grid.cell(point.settings, seed, setup.base)
        cells[each.name] = each
        names[place].append(each.name)
    places = [
        {
            "study": point.study,
            "method": point.method,
            "keep": point.keep,
            "x": point.x,
            "cells": cells_of,
        }
        for point, cells_of in zip(points, names, strict=True)
    ]
    return cells, places


def write_all(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Write rows, tables and figures, and print the tables."""
    if not options.render:
        write_text(options.json, to_json(results))
    studies = {point["study"] for point in results["points"]}
    chosen = [
        name for name in tables_module.SECTIONS if tables_module.STUDY_OF.get(name, name) in studies
    ]
    tables = {name: tables_module.SECTIONS[name][1](results) for name in chosen}
    for name, table in tables.items():
        print(f"\n{tables_module.SECTIONS[name][0]}\n\n{table}")
    figures = _write_tables(results, tables, options.tables)
    if options.docs:
        _write_document(results, tables, figures, options)


def _write_tables(results: dict[str, Any], tables: dict[str, str], folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        write_text(
            folder / f"{name}.md",
            f"# {tables_module.SECTIONS[name][0]}\n\n{table}\n\n{tables_module.origin(results)}\n",
        )
        write_text(folder / f"{name}.csv", tables_module.to_csv(results, name))
    return figures_module.write_figures(results, folder)


def _write_document(
    results: dict[str, Any], tables: dict[str, str], figures: list[str], options: argparse.Namespace
) -> None:
    """Put each table, and its figure where there is one, between the document's markers."""
    sections = {}
    for name, table in tables.items():
        image = os.path.relpath(options.tables / f"{name}.png", options.docs.parent)
        picture = f"![{tables_module.SECTIONS[name][0]}]({image})\n\n" if name in figures else ""
        sections[name] = f"{picture}{table}\n\n{tables_module.origin(results)}"
    before = options.docs.read_text() if options.docs.is_file() else ""
    write_text(options.docs, tables_module.replace_sections(before, sections))


def to_json(results: dict[str, Any]) -> str:
    """The raw rows, one line a cell."""
    head = {name: value for name, value in results.items() if name != "cells"}
    lines = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in results["cells"].items()
    )
    return f'{json.dumps(head, indent=1)[:-2]},\n "cells": {{\n{lines}\n }}\n}}\n'


def _describe(setup: Setup, options: argparse.Namespace) -> dict[str, Any]:
    names = ("model", "data", "eval_tasks")
    return {
        **{name: setup.base[name] for name in names},
        "seeds": list(range(options.seeds)),
        "base": setup.base,
    }


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one size, two seeds, and only the methods, order and steps",
    )
    parser.add_argument("--plan", action="store_true", help="only print the cells and the estimate")
    parser.add_argument(
        "--render", action="store_true", help="run nothing: tables and figures from --json"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/compare"), help="folder of the runs"
    )
    parser.add_argument(
        "--json", type=Path, help="file for the raw rows (default: rows.json in --output)"
    )
    parser.add_argument(
        "--tables", type=Path, help="folder for tables and figures (default: tables in --output)"
    )
    parser.add_argument(
        "--docs", type=Path, help="also replace the marked sections of this markdown document"
    )
    parser.add_argument(
        "--model", help="another model than the bundled one; with --data and --config"
    )
    parser.add_argument("--data", help="its reasoning data")
    parser.add_argument("--config", type=Path, help="YAML file with settings of every cell")
    parser.add_argument(
        "--protect",
        help="English text for the reference rule (default: docstrings of Python's library)",
    )
    parser.add_argument(
        "--split", choices=list(grid.SPLITS), help="the bundled model's problems (default: test)"
    )
    parser.add_argument("--studies", nargs="+", choices=list(grid.STUDIES), help="default: all")
    parser.add_argument("--methods", nargs="+", help="only these methods, scorers or options")
    parser.add_argument(
        "--sizes", nargs="+", type=float, help="fractions of FFN neurons that PTL keeps"
    )
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=int,
        help="recovery tokens of the curves (default: a quarter, half and all of recovery_tokens)",
    )
    parser.add_argument("--seeds", type=int, help="seeds 0, 1, ... (default: 3)")
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="cells at a time (default: the number of cores)",
    )
    options = parser.parse_args(arguments)
    _check_options(parser, options)
    every = [name for name in grid.STUDIES if name != "unseen" or options.model is None]
    options.studies = options.studies or (QUICK_STUDIES if options.quick else every)
    options.sizes = options.sizes or (QUICK_SIZES if options.quick else grid.SIZES)
    options.seeds = options.seeds or (2 if options.quick else 3)
    options.json = options.json or options.output / "rows.json"
    options.tables = options.tables or options.output / "tables"
    return options


def _check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.model and (options.data is None or options.config is None):
        parser.error(
            "--model needs --data FILE and --config SETTINGS.yaml (recovery_tokens, eval_tasks,"
            " learning_rate, ...)"
        )
    if options.model and options.split:
        parser.error(
            "--split chooses among the bundled model's problems; for --model, name the task in"
            " --config's eval_tasks"
        )
    if options.jobs < 1 or (options.seeds is not None and options.seeds < 1):
        parser.error("--jobs and --seeds must be at least 1")


if __name__ == "__main__":
    sys.exit(main())
