"""The rows of benchmarks.methods.compare as CSV."""

import csv
import io
from typing import Any

from benchmarks.methods.summaries import Results, Spread, rounds_curves, summarize
from benchmarks.methods.tables import STUDY_OF


def to_csv(results: Results, section: str) -> str:
    """A section's numbers: a line for each point and evaluation task, or, in figure3, for each
    round before and after its recovery.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")  # the default, \r\n, is not what git expects
    if section == "figure3":  # rounds inside a run, where every other section has whole runs
        writer.writerow(
            [
                "keep",
                "round",
                "parameters",
                "recovery_tokens",
                "stage",
                "mean",
                "lowest",
                "highest",
                "values",
            ]
        )
        for curve in rounds_curves(results):
            for number, (parameters, tokens, *spreads) in enumerate(curve["rounds"], start=1):
                for stage, spread in zip(("pruned", "recovered"), spreads, strict=True):
                    writer.writerow(
                        [curve["keep"], number, parameters, tokens, stage, *_numbers(spread)]
                    )
        return stream.getvalue()
    columns = [
        "study",
        "method",
        "keep",
        "x",
        "num_parameters",
        "parameters",
        "flops",
        "width",
        "num_layers",
        "num_rounds",
    ]
    columns += ["recovery_tokens", "recovery_s", "total_s", "num_seeds"]
    writer.writerow([*columns, "task", "dense", "mean", "lowest", "highest", "values"])
    for each in summarize(results, STUDY_OF.get(section, section)):
        for task, spread in each.scores.items():
            writer.writerow(
                [
                    *(getattr(each, name) for name in columns),
                    task,
                    each.dense[task],
                    *_numbers(spread),
                ]
            )
    return stream.getvalue()


def _numbers(spread: Spread) -> list[Any]:
    # the values of all seeds too, so that any other statistic can be computed
    return [
        spread.mean,
        spread.lowest,
        spread.highest,
        " ".join(f"{value:g}" for value in spread.values),
    ]
