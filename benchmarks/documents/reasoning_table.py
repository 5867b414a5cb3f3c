"""Write the tables of docs/reasoning.md from the cells of benchmarks.methods.reasoning.

    python -m benchmarks.documents.reasoning_table [--check]

Reads benchmarks/results/reasoning/ and reasoning_development/, and for the speedups the files
speed_*.json there, which benchmarks.inference.speedup wrote for models of the same sizes. What is
expected and not finished is named below its table. Several seeds are one line, their mean.
"""

import functools
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.documents.document import ROOT, write_tables
from benchmarks.harness.markdown import MISSING, Table, TableMakers
from benchmarks.harness.results import MEASURED
from benchmarks.methods import paired
from benchmarks.methods import reasoning_results as results
from benchmarks.methods.reasoning_cells import (
    CALIBRATION_TITLES,
    CALIBRATION_TOKENS,
    COMPARED,
    DEFAULT,
    DENSE,
    METHODS,
    NONE,
    OWN,
    Cell,
    Plan,
    cells,
)
from benchmarks.methods.reasoning_problems import PROBLEM_SETS
from benchmarks.methods.reasoning_results import Result

DOCUMENT = ROOT / "docs" / "reasoning.md"
NAMES = {"gsm8k": "GSM8K", "mbpp": "MBPP"}
NUM_NAMES = {**dict.fromkeys(("pruned", "skills", "recovered", "development"), 2), "origin": 1}
COLUMNS = [
    "model",
    "parameters",
    *(f"{NAMES[name]} right %" for name in PROBLEM_SETS),
    "both %",
    "of dense %",
    "default ahead ± standard error",
    "p",
    "tokens",
    "cut off %",
    "repeating %",
    "s an answer",
    "MB",
    "prefill",
    "decode",
]


class Line(NamedTuple):
    """A cell without its seed."""

    method: str
    share: float
    calibration: str
    recovery: str


Lines = dict[Line, list[Result]]
"""The finished results of each line, a seed each."""


def make_tables(folder: Path) -> TableMakers:
    """Every table of the document, from the results in a folder."""
    found = results.read_all(folder / "reasoning")
    tables = functools.partial(_Tables, found, _speeds(folder / "reasoning"))
    developed = results.read_all(folder / "reasoning_development")
    return {
        "pruned": lambda: tables().of(is_pruned),
        "skills": lambda: tables().of(is_calibration),
        "recovered": lambda: tables().of(
            lambda line: line.recovery != NONE or line.method == DENSE
        ),
        "origin": lambda: origin(found),
        "development": lambda: _Tables(developed, [], planned=False).of(lambda _: True),
    }


def is_pruned(line: Line) -> bool:
    """Whether it belongs to the main table: right after pruning, on own answers to both."""
    return line.method in (DENSE, *COMPARED) and line[2:] == (OWN, NONE)


def is_calibration(line: Line) -> bool:
    """Whether it belongs to the table of what models are calibrated on."""
    largest = max(Plan().shares)
    return line.method == DEFAULT and (line.share, line.recovery) == (largest, NONE)


class _Tables:
    """The tables of one folder of results.

    ``planned`` adds a line for every cell of the plan that is not finished.
    """

    def __init__(
        self, found: Mapping[str, Result], speeds: Sequence[dict[str, Any]], planned: bool = True
    ) -> None:
        self.speeds = speeds
        expected = cells(Plan(), found) if planned else []
        self.lines: Lines = {_line(cell): [] for cell in expected}
        for each in results.finished(found).values():
            self.lines.setdefault(_line(Cell(**each["cell"])), []).append(each)

    def of(self, belongs: Callable[[Line], bool]) -> Table:
        """The table of the lines that belong to it, in the plan's order."""
        chosen = [line for line in self.lines if belongs(line)]
        return [COLUMNS, *(self._row(line) for line in chosen)]

    def _row(self, line: Line) -> list[str]:
        found = self.lines[line]
        if not found:
            return [title(line, []), f"{line.share:.0%}", *[MISSING] * (len(COLUMNS) - 2)]
        right = _right(found)
        size = found[0]["size"]
        return [
            title(line, found),
            self._share(size),
            *(f"{_percent(_right(found, [name])):.1f}" for name in PROBLEM_SETS),
            f"{_percent(right):.1f}",
            self._of_dense(right),
            *self._comparison(line, right),
            *_costs(found),
            f"{size['bytes'] / 1e6:,.0f}",
            *self._speedups(size),
        ]

    def _dense(self) -> list[Result]:
        return next((found for line, found in self.lines.items() if line.method == DENSE), [])

    def _share(self, size: Mapping[str, int]) -> str:
        dense = self._dense()
        if not dense:
            return MISSING
        return f"{size['num_parameters'] / dense[0]['size']['num_parameters']:.1%}"

    def _of_dense(self, right: Sequence[float]) -> str:
        dense = sum(_right(self._dense())) if self._dense() else 0
        return f"{100 * sum(right) / dense:.0f}" if dense else MISSING

    def _comparison(self, line: Line, right: Sequence[float]) -> list[str]:
        """How far our default is ahead at the same size and after the same recovery."""
        if line.method == DENSE:
            return ["", ""]
        reference = Line(DEFAULT, line.share, OWN, line.recovery)
        if line == reference:
            return ["", ""]
        found = self.lines.get(reference)
        if not found:
            return [MISSING, MISSING]
        compared = paired.compare(_right(found), right)
        ahead = f"{compared.difference:+.1f} ± {compared.standard_error:.1f}"
        return [ahead, f"{compared.sign_test:.2g}"]

    def _speedups(self, size: Mapping[str, int]) -> list[str]:
        """The measured prefill and decode speedup of a model of this size."""
        dense = self._dense()
        if dense and dense[0]["size"] == size:
            return ["1.00", "1.00"]
        measured = [each for each in self.speeds if _same_size(each["sizes"]["compressed"], size)]
        return [_speedup(measured, work) for work in ("prefill", "decode")]


def title(line: Line, found: Sequence[Result]) -> str:
    """What a line is called: method, calibration and recovery where they are not the usual ones."""
    if line.method == DENSE:
        return "dense"
    method = METHODS.get(line.method)
    name = method.title if method is not None else (found[0]["title"] if found else line.method)
    source = (
        f" ([{method.source}](https://arxiv.org/abs/{method.source}))"
        if (method is not None and method.source)
        else ""
    )
    parts = [f"{name}{source}"]
    parts += [CALIBRATION_TITLES[line.calibration]] if line.calibration != OWN else []
    settings = [each["setup"].get("settings", {}) for each in found]
    tokens = {each.get("calibration_tokens", CALIBRATION_TOKENS) for each in settings}
    parts += [f"{number:,} tokens" for number in sorted(tokens - {CALIBRATION_TOKENS})]
    parts += [f"`{line.recovery}`"] if line.recovery != NONE else []
    parts += [f"{len(found)} seeds"] if len(found) > 1 else []
    return ", ".join(parts)


def origin(found: Mapping[str, Result]) -> Table:
    """What was measured, and where: a line for each machine."""
    header = ["model", "type", "tokens at most", "answered at once", "device", "torch", "commits"]
    rows: dict[tuple[str, ...], list[str]] = {}
    for each in results.finished(found).values():
        setup, environment = each["setup"], each["environment"]
        names = ("model", "dtype", "max_tokens", "batch_size")
        device = f"{environment['device']}, {environment['threads']} threads"
        key = (*(str(setup[name]) for name in names), device, environment["torch"])
        rows.setdefault(key, []).extend(each["commits"])
    lines = [[*key, ", ".join(sorted(set(commits)))] for key, commits in rows.items()]
    return [header, *(lines or [["everything", *[MISSING] * (len(header) - 1)]])]


def _line(cell: Cell) -> Line:
    if cell.method == DENSE:
        return Line(DENSE, 1.0, OWN, NONE)
    return Line(cell.method, cell.share, cell.calibration, cell.recovery)


def _right(found: Sequence[Result], benchmarks: Iterable[str] = tuple(PROBLEM_SETS)) -> list[float]:
    """The mean over the seeds of what is right, problem by problem."""
    of_seeds = [results.right(each, benchmarks) for each in found]
    return [statistics.mean(every) for every in zip(*of_seeds, strict=True)]


def _percent(right: Sequence[float]) -> float:
    return 100 * statistics.mean(right)


def _costs(found: Sequence[Result]) -> list[str]:
    """The cells "tokens", "cut off %", "repeating %" and "s an answer"."""
    judged = [
        each
        for result in found
        for benchmark in PROBLEM_SETS
        for each in results.answers(result, benchmark).values()
    ]
    seconds = statistics.mean(results.seconds_per_answer(result) for result in found)
    return [
        f"{statistics.mean(each.tokens for each in judged):.0f}",
        f"{100 * statistics.mean(not each.finished for each in judged):.1f}",
        f"{100 * statistics.mean(each.repeating for each in judged):.1f}",
        f"{seconds:.1f}",
    ]


def _speeds(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob("speed_*.json"))]


def _same_size(measured: Mapping[str, int], size: Mapping[str, int]) -> bool:
    names = ("num_parameters", "num_layers", "width")
    return [measured[name] for name in names] == [size[name] for name in names]


def _speedup(measured: Sequence[dict[str, Any]], work: str) -> str:
    """Of the largest batch and prompt."""
    rows = [
        row
        for each in measured
        for row in each["rows"]
        if row["work"] == work and row["status"] == MEASURED
    ]
    if not rows:
        return MISSING
    largest = max(rows, key=lambda row: row["batch_size"] * row["prompt_length"])
    return f"{largest['speedup']:.2f}"


def main(arguments: list[str] | None = None) -> None:
    write_tables(arguments, __doc__, DOCUMENT, make_tables, NUM_NAMES)


if __name__ == "__main__":
    main()
