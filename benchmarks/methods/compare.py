"""Pruning methods on equal terms: same model, data, recovery tokens, size and evaluation; several
seeds; mean and spread.

    python -m benchmarks.methods.compare            # all of the bundled model: under 3 h on 2 cores
    python -m benchmarks.methods.compare --quick    # one size, two seeds: under 15 minutes
    python -m benchmarks.methods.compare --model DIR --data FILE --config SETTINGS.yaml
    python -m benchmarks.methods.compare --render   # tables and figures again, from the rows alone

Each cell is one ptl_fast.compress(...) in a folder and a process of its own. Interrupted, the same
command goes on where it was; finished cells are not run again, nor those that --json holds. For
another model, --config holds the settings of every cell (recovery_tokens, learning_rate,
eval_tasks, ...). To choose a setting, use --split validation, and leave the test problems for what
is reported. benchmarks.documents.methods_table writes the sections of docs/paper.md from the rows.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import clock
from benchmarks.harness.results import write_text
from benchmarks.methods import cells as cells_module
from benchmarks.methods import grid, inputs
from benchmarks.methods.csv_tables import to_csv
from benchmarks.methods.figures import write_figures
from benchmarks.methods.grid import Cell, Point
from benchmarks.methods.setup import SIZES, SPLITS, Setup
from benchmarks.methods.studies import STUDIES
from benchmarks.methods.summaries import FAILED, FINISHED, WAITING
from benchmarks.methods.tables import HEADINGS, origin, sections_of

QUICK_STUDIES = ("methods", "order", "rounds", "steps")
QUICK_SIZES = (0.125,)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when every cell finished, 1 when one failed, 2 for settings that do not fit."""
    options = _options(arguments)
    try:
        results = json.loads(options.json.read_text()) if options.render else measure(options)
        if options.plan:  # it was printed by measure
            return 0
        if not options.render:
            write_text(options.json, to_json(results))
        write_tables(results, options.tables)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues from here", file=sys.stderr)
        return 130
    failed = {name: row for name, row in results["cells"].items() if row["status"] == FAILED}
    for name, row in failed.items():
        print(f"failed: {name}: {row['error']}", file=sys.stderr)
    return 1 if failed else 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run what is not finished yet and return the rows; --json has them after every cell.

    Raises:
        ValueError: cells that cannot run, named.
    """
    setup = inputs.make_setup(options)
    points = grid.make_points(options.studies, setup, options.methods)
    cells, cells_of_points = make_cells(points, setup, options.seeds)
    before: dict[str, Any] = {"environment": {}, "cells": {}}
    if options.json.is_file():
        before = json.loads(options.json.read_text())
    results: dict[str, Any] = {
        "environment": before["environment"],
        "setup": _describe(setup, options),
        "points": cells_of_points,
        "cells": {},
    }
    for name, each in cells.items():
        row = cells_module.finished_row(each, options.output)
        # the folder of its run first: --json may be older
        row = row or finished_elsewhere(each, before["cells"])
        results["cells"][name] = row or {"settings": each.settings, "status": WAITING}
    missing = [each for name, each in cells.items() if results["cells"][name]["status"] != FINISHED]
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
    if row is None or row["status"] != FINISHED or row["settings"] != cell.settings:
        return None
    return row


def _run(missing: list[Cell], results: dict[str, Any], options: argparse.Namespace) -> None:
    """Run the cells, and after each one write the rows and say how long the rest will take."""
    costs, start = {each.name: each.cost_s for each in missing}, clock.wall_seconds()
    left, devices = dict(costs), results["environment"].get("device", "").split(", then ")

    def environment() -> dict[str, Any]:
        """As it is now, with every device that the grid has run on: it may go on elsewhere."""
        now = cells_module.environment_of_cells(options.output, results["cells"], options.jobs)
        names = dict.fromkeys(filter(None, [*devices, now["device"]]))
        return {**now, "device": ", then ".join(names)}

    def on_row(name: str, row: dict[str, Any]) -> None:
        results["cells"][name] = row
        results["environment"] = environment()
        write_text(options.json, to_json(results))
        del left[name]
        share_left = sum(left.values()) / sum(costs.values())
        # by estimated costs, since cells differ several times in length
        minutes = (clock.wall_seconds() - start) / 60 / max(1e-9, 1 - share_left) * share_left
        print(
            f"{len(costs) - len(left)}/{len(costs)} {row['status']}: {name} (about {minutes:.0f}"
            " min left)",
            flush=True,
        )

    if missing:
        results["environment"] = environment()
    cells_module.run_cells(missing, options.output, options.jobs, on_row)


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
    """The distinct cells by name, and every point with its cells, as the results have them.

    Cells are in the order of the seeds, so that an interrupted grid has whole tables of the first
    ones.
    """
    cells: dict[str, Cell] = {}
    names: list[list[str]] = [[] for _ in points]
    for seed, (index, point) in itertools.product(range(seeds), enumerate(points)):
        each = grid.cell(point.settings, seed, setup.base)
        cells[each.name] = each
        names[index].append(each.name)
    cells_of_points = [
        {
            "study": point.study,
            "method": point.method,
            "keep": point.keep,
            "x": point.x,
            "cells": cells_of,
        }
        for point, cells_of in zip(points, names, strict=True)
    ]
    return cells, cells_of_points


def write_tables(results: dict[str, Any], folder: Path) -> None:
    """Write tables and figures to a folder, and print the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in sections_of(results).items():
        print(f"\n{HEADINGS[name]}\n\n{table}")
        text = f"# {HEADINGS[name]}\n\n{table}\n\n{origin(results)}\n"
        write_text(folder / f"{name}.md", text)
        write_text(folder / f"{name}.csv", to_csv(results, name))
    write_figures(results, folder)


def to_json(results: dict[str, Any]) -> str:
    """The raw rows, one line a cell."""
    head = {name: value for name, value in results.items() if name != "cells"}
    lines = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in results["cells"].items()
    )
    # json.dumps would put every number on a line of its own, thousands of them
    return f'{json.dumps(head, indent=1)[:-2]},\n "cells": {{\n{lines}\n }}\n}}\n'


def _describe(setup: Setup, options: argparse.Namespace) -> dict[str, Any]:
    """What all cells share, for the results."""
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
        "--model", help="another model than the bundled one; with --data and --config"
    )
    parser.add_argument("--data", help="its reasoning data")
    parser.add_argument("--config", type=Path, help="YAML file with settings of every cell")
    parser.add_argument(
        "--protect",
        help="English text for the reference rule (default: docstrings of Python's library)",
    )
    parser.add_argument(
        "--split", choices=list(SPLITS), help="the bundled model's problems (default: test)"
    )
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), help="default: all")
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
    # only the bundled model has data that lacks a skill
    every = [name for name in STUDIES if name != "unseen" or options.model is None]
    options.studies = options.studies or (QUICK_STUDIES if options.quick else every)
    options.sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
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
