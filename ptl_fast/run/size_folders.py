"""A family from one run: every round's model is a result, in sizes/, with one table of them all.

They are copies: what a run goes on from stays its own, so nobody who works on a result changes what
a continued run reads. The last round's model is final/, and is not copied a second time.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptl_fast.base import markdown
from ptl_fast.run import tables

if TYPE_CHECKING:
    from ptl_fast.config.config import Config
    from ptl_fast.run.context import RunContext

HEADER = ["model", "parameters", "of dense", "FLOPs/token", "of dense", "MiB on disk"]
MIB = 2**20


def entries(context: "RunContext") -> list[dict[str, Any]]:
    """Every finished round's size, evaluation and seconds, and where its model is.

    "folder" is relative to the run's, None where the model was not kept; "bytes" are those of its
    weights' files. All ranks must call this.
    """
    folder, found = context.folder, []
    for record in context.records:
        number = record["round"]
        result = folder.size(number)
        # the last one's is still to come when this is written after its round
        if not is_published_here(context, number):
            result = folder.final
        is_there = result is folder.final or result.exists()
        weights = result if result.path.is_dir() else folder.round(number).model()
        found.append(
            {
                "round": number,
                "kind": record["kind"],
                "folder": str(result.path.relative_to(folder.path)) if is_there else None,
                "bytes": weights_bytes(weights.path) if is_there else None,
                "num_parameters": record["num_parameters"],
                "num_layers": record["num_layers"],
                "width": record["width"],
                **{name: record[name] for name in ("num_experts",) if name in record},
                "flops_per_token": record["flops_per_token"],
                "eval": record["eval"],
                "seconds": sum(record["seconds"].values()),
            }
        )
    return found


def is_published_here(context: "RunContext", number: int) -> bool:
    """Whether a round's model belongs into sizes/: the schedule's last one is final/."""
    return number < len(context.rounds.schedule)


def weights_bytes(folder: Path) -> int:
    """Bytes of a model folder's weights."""
    kinds = (".safetensors", ".bin")
    return sum(file.stat().st_size for file in folder.glob("*") if file.suffix in kinds)


def to_markdown(dense: dict[str, Any], sizes: list[dict[str, Any]]) -> str:
    """The table of sizes/README.md: the dense model, then every round's."""
    columns = [
        (task, metric)
        for task, values in dense["eval"].items()
        for metric in values
        if all(metric in each["eval"].get(task, ()) for each in sizes)
    ]
    header = [*HEADER, *(f"{task} {metric}" for task, metric in columns), "seconds"]
    rows = [header, _row("dense", dense, dense, columns)]
    rows += [
        _row(each["folder"] or f"round {each['round']} (not kept)", each, dense, columns)
        for each in sizes
    ]
    return (
        "# One run, a family of models\n\n"
        "Each folder loads with `from_pretrained` as final/ does; its own README.md says how, and"
        " more. Seconds are those of the round alone.\n\n"
        f"{markdown.table(rows)}\n"
    )


def _row(
    name: str, size: dict[str, Any], dense: dict[str, Any], columns: list[tuple[str, str]]
) -> list[str]:
    counts = []
    for key in ("num_parameters", "flops_per_token"):
        counts += [tables.short(size[key]), f"{size[key] / dense[key]:.1%}"]
    stored, seconds = size.get("bytes"), size.get("seconds")
    return [
        name,
        *counts,
        "" if stored is None else f"{stored / MIB:,.1f}",
        *(tables.show(size["eval"][task][metric]) for task, metric in columns),
        "" if seconds is None else f"{seconds:.0f}",
    ]


def missing_weights(context: "RunContext", num_parameters: list[int]) -> int:
    """How many weights the run has still to copy into sizes/: an upper bound of its disk space.

    Args:
        num_parameters: of every round of the schedule, in order.
    """
    if not context.config.run.keep_sizes:
        return 0
    # the last one is final/
    return sum(
        count
        for number, count in enumerate(num_parameters[:-1], start=1)
        if not context.folder.size(number).path.exists()
    )


def prediction(config: "Config", rows: list[dict[str, Any]], item_bytes: int) -> str:
    """A dry run's line: the disk space of the results.

    Args:
        rows: the dry run's: the dense model, then each round.
        item_bytes: of a saved weight.
    """
    *others, last = [item_bytes * row["num_parameters"] for row in rows[1:]]
    told = f"Results on disk, in {item_bytes} bytes a weight: {tables.show_bytes(last)}"
    if not config.run.keep_sizes:
        return f"{told} (--keep-sizes false: the last round's)."
    if not others:
        return f"{told} in final/."
    return (
        f"{told} in final/, and {tables.show_bytes(sum(others))} of the rounds before in sizes/"
        " (--keep-sizes false leaves these out)."
    )
