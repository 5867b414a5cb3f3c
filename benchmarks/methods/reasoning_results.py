"""The files of benchmarks.methods.reasoning: one for each cell, rewritten after every batch of
answers.

A file holds the cell, its setup (what must be equal for it to go on), the sizes of the model, and
for each benchmark and problem [number of the problem, right, tokens, finished, repeating] in the
order of the answers.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.results import write_text
from ptl_fast.evaluation.chat import Judged

Result = dict[str, Any]
# what JSON writes over several lines and reads better in one: the answer to a problem
INNERMOST_LIST = re.compile(r"\[\s+([^\[\]{}]*?)\s+\]")


def write(file: Path, result: Result) -> None:
    """Replace a cell's file, with an answer a line."""
    text = json.dumps(result, indent=1)
    write_text(
        file, INNERMOST_LIST.sub(lambda match: f"[{' '.join(match[1].split())}]", text) + "\n"
    )


def read(file: Path) -> Result | None:
    """A cell's file; None where there is none yet."""
    return json.loads(file.read_text()) if file.is_file() else None


def read_all(folder: Path) -> dict[str, Result]:
    """{name: result} of every cell in a folder, also of those that are not finished."""
    results = (json.loads(file.read_text()) for file in sorted(folder.glob("*.json")))
    return {each["name"]: each for each in results if "cell" in each}


def finished(results: Mapping[str, Result]) -> dict[str, Result]:
    """Those whose problems are all answered."""
    return {name: each for name, each in results.items() if each["finished"]}


def answers(result: Result, benchmark: str) -> dict[int, Judged]:
    """{number of the problem: its judged answer} of what a cell has answered so far."""
    return {number: Judged(*rest) for number, *rest in result["answers"].get(benchmark, [])}


def add_answers(
    result: Result, benchmark: str, judged: Iterable[tuple[int, Judged]], seconds: Mapping[str, Any]
) -> None:
    """Append a batch of answers and the seconds that it took, wall and cpu."""
    rows = [
        [number, int(each.right), each.tokens, int(each.finished), int(each.repeating)]
        for number, each in judged
    ]
    result["answers"].setdefault(benchmark, []).extend(rows)
    result["batches"].setdefault(benchmark, []).append({"num_answers": len(rows), **seconds})


def right(result: Result, benchmarks: Iterable[str]) -> list[int]:
    """1 or 0 for each problem of these benchmarks, in the order of their numbers."""
    return [
        int(judged.right)
        for benchmark in benchmarks
        for _, judged in sorted(answers(result, benchmark).items())
    ]


def seconds_per_answer(result: Result) -> float:
    """Time of generation over the answers: processor time on a CPU, since other work on the machine
    does not change that, and the wall's on a GPU.
    """
    unit = "cpu" if result["environment"]["device_type"] == "cpu" else "wall"
    batches = [each for every in result["batches"].values() for each in every]
    return sum(each[unit] for each in batches) / sum(each["num_answers"] for each in batches)
