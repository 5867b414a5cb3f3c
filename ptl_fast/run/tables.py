"""Markdown tables: of a run's rounds so far, and of a dry run."""

from collections.abc import Iterable, Sequence
from typing import Any

from ptl_fast.base import markdown
from ptl_fast.baselines import ROUND_KINDS

# A model's size, which leads a dry run's table too; experts only where there are some.
SIZE = {
    "width": lambda size: str(size["width"]),
    "experts": lambda size: str(size["num_experts"]),
    "layers": lambda size: str(size["num_layers"]),
    "parameters": lambda size: short(size["num_parameters"]),
    "FLOPs/token": lambda size: short(size["flops_per_token"]),
}
# of a table that is too wide, in the order in which they are left out: from the right to the left,
# so that the others keep their places
LESS_NEEDED = ["FLOPs/token", "layers"]
# Columns of a dry run that say nothing where nothing trains.
OF_TRAINING = ("train GiB", "recovery tokens", "hours")


def table(dense: dict[str, Any], rounds: list[dict[str, Any]]) -> str:
    """Return the run so far as a markdown table: the dense model, then a row per round.

    "pruned" and "recovered" have the first metric of the first evaluation task (see
    ``leading_metric``) before and after recovery; "seconds" is the round's wall-clock time.
    """
    return markdown.table(_cells(dense, rounds))


def _cells(dense: dict[str, Any], rounds: list[dict[str, Any]]) -> list[list[str]]:
    """The cells of ``table``, the header first."""
    task, metric = leading_metric(dense)
    if not task:
        return _sizes_alone(dense, rounds)
    header = [*size_columns(dense), f"{metric} pruned", f"{metric} recovered", "seconds"]
    # nothing is pruned in the dense model: its metric goes into the second column
    rows = [_row("dense", dense, "", show(dense["eval"][task][metric]), "")]
    for record in rounds:
        name = _name(record)
        pruned, recovered = (
            show(record["eval_pruned"][task][metric]),
            show_recovered(record, task, metric),
        )
        rows.append(_row(name, record, pruned, recovered, _seconds(record)))
    return [header, *rows]


def new_rows(
    dense: dict[str, Any], rounds: list[dict[str, Any]], num_shown: int, width: int | None = None
) -> str:
    """Return what of ``table`` was not printed yet: all of it, or the rows of the newest rounds.

    Where it is too wide, the metric's name stands above it, and then columns of the size go.

    Args:
        num_shown: rounds whose rows were printed.
        width: characters in a line; None for any number.
    """
    cells, above = _cells(dense, rounds), ""
    if width is not None and _width(cells) > width:
        task, metric = leading_metric(dense)
        if task:
            above = f"pruned, recovered: {metric} of {task}\n"
            cells[0] = [name.removeprefix(f"{metric} ") for name in cells[0]]
        for name in LESS_NEEDED:
            if _width(cells) > width:
                cells = _without(cells, name)
    lines = markdown.table(cells).splitlines()
    return "\n".join(
        lines[num_shown - len(rounds) :] if num_shown else ["", above + lines[0], *lines[1:]]
    )


def _width(cells: list[list[str]]) -> int:
    return len(markdown.table(cells).partition("\n")[0])


def _sizes_alone(dense: dict[str, Any], rounds: list[dict[str, Any]]) -> list[list[str]]:
    """The table of a run that measures nothing (--eval-tasks none)."""
    rows = [[*size_cells(_name(record), record), _seconds(record)] for record in rounds]
    header = [*size_columns(dense), "seconds"]
    return [header, [*size_cells("dense", dense), ""], *rows]


def _name(record: dict[str, Any]) -> str:
    return f"{record['round']} {ROUND_KINDS[record['kind']].title or record['kind']}"


def _seconds(record: dict[str, Any]) -> str:
    return f"{sum(record['seconds'].values()):.0f}"


def show_recovered(record: dict[str, Any], task: str, metric: str) -> str:
    """The cell "recovered": the trained model's metric, also where it was worse than the pruned
    one's and that was kept.
    """
    worse = record.get("worse_recovery")
    if not worse:
        return show(record["eval"][task][metric])
    return f"{show(worse['eval'][task][metric])} ({'undone' if worse['undone'] else 'worse'})"


def leading_metric(size: dict[str, Any]) -> tuple[str, str]:
    """Return (task, metric) shown in the tables: the first metric of the first evaluation task, or
    empty texts where nothing is measured.
    """
    if not size["eval"]:
        return "", ""
    task = next(iter(size["eval"]))
    return task, next(iter(size["eval"][task]))


def schedule_table(rows: list[dict[str, Any]], width: int | None = None) -> str:
    """Return a dry run's table: the dense model, then each round's.

    Columns: size, FLOPs of a prompt of each benchmark, memory of one GPU, recovery tokens and
    hours; the last of them only where a round trains. Where it is too wide, columns go.

    Args:
        rows: ``dry_run.predict``'s result for each model, with ``name``.
        width: characters in a line; None for any number.
    """
    benchmarks = [f"{name} ({num_tokens})" for name, num_tokens in rows[0]["prompt_tokens"].items()]
    header = [
        *size_columns(rows[0]),
        *benchmarks,
        "serve GiB",
        "train GiB",
        "recovery tokens",
        "hours",
    ]
    lines = []
    for row in rows:
        memory = [f"{row[name] / 2**30:.1f}" for name in ("serving_bytes", "training_bytes")]
        # the dense model has no recovery; without --recovery-tokens the data decides, unread here
        if row is rows[0]:
            recovery = ["", ""]
        elif row["recovery_tokens"] is None:
            recovery = ["its part of the data", "?"]
        else:
            recovery = [f"{row['recovery_tokens']:,}", show_hours(row["recovery_hours"])]
        lines.append(
            [
                *size_cells(row["name"], row),
                *map(short, row["prompt_flops"].values()),
                *memory,
                *recovery,
            ]
        )
    cells = [header, *lines]
    # nothing trains: --recovery none
    if all(row["recovery_tokens"] == 0 for row in rows[1:]):
        cells = _without(cells, *OF_TRAINING)
    less_needed = (benchmarks, *([name] for name in (*LESS_NEEDED, "serve GiB")))
    return markdown.table(fitted(cells, width, less_needed))


def fitted(
    cells: list[list[str]], width: int | None, less_needed: Iterable[Sequence[str]]
) -> list[list[str]]:
    """The table without groups of its columns, in this order, as long as it is too wide.

    Args:
        cells: rows, the header first.
        width: characters in a line; None for any number.
    """
    for names in less_needed:
        if width is not None and _width(cells) > width:
            cells = _without(cells, *names)
    return cells


def _without(cells: list[list[str]], *names: str) -> list[list[str]]:
    """The table without these columns, where it has them; ``cells[0]`` is the header."""
    stay = [index for index, name in enumerate(cells[0]) if name not in names]
    return [[row[index] for index in stay] for row in cells]


def show_hours(hours: float) -> str:
    """Hours with a decimal, and short ones with two digits that say something."""
    return f"{hours:.1f}" if hours >= 1 or not hours else f"{hours:.2g}"


def _row(name: str, size: dict[str, Any], pruned: str, recovered: str, seconds: str) -> list[str]:
    return [*size_cells(name, size), pruned, recovered, seconds]


def size_columns(size: dict[str, Any]) -> list[str]:
    """The titles of the columns that say a model's size; the first is the round's."""
    return ["round", *_of_size(size)]


def size_cells(name: str, size: dict[str, Any]) -> list[str]:
    """The cells of these columns."""
    return [name, *(SIZE[column](size) for column in _of_size(size))]


def _of_size(size: dict[str, Any]) -> list[str]:
    return [column for column in SIZE if column != "experts" or "num_experts" in size]


def show(value: float) -> str:
    """A metric with four decimals."""
    return f"{value:.4f}"


def short(count: float) -> str:
    """Four significant digits and a decimal prefix (k, M, G, T), such as 8.03G."""
    # T is the last prefix: larger counts stay in T
    for unit in ("", "k", "M", "G", "T"):
        if count < 1000 or unit == "T":
            return f"{count:.4g}{unit}"
        count /= 1000
    raise AssertionError


def show_bytes(num_bytes: float) -> str:
    """Bytes for readers, in the units of --target-size-on-disk."""
    for name, unit in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.4g} {name}" + (
                f" ({num_bytes / 2**30:.3g} GiB)" if name == "GB" else ""
            )
    return f"{num_bytes:.0f} B"
