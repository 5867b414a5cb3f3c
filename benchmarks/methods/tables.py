"""The rows of benchmarks.methods.compare -> means and spreads over seeds, tables in markdown and
CSV, and marked sections of a document.
"""

import csv
import io
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ptl_fast.run.tables import leading_metric

Results = dict[str, Any]
Row = dict[str, Any]

PTL = {
    "methods": "PTL",
    "budget": "PTL",
    "unseen": "PTL",
    "recovery": "PTL",
    "scorers": "reconstruction",
    "order": "neurons-then-layers",
}
LOWER_IS_BETTER = ("nll", "perplexity", "bits_per_byte")
COARSE = 0.02
MARKED = "<!-- begin: {name} -->\n{content}\n<!-- end: {name} -->"
RULE = (
    "Mean over the seeds, with the lowest and the highest in brackets. *By more than the spread*:"
    " the difference of the means is"
    " larger than the larger of the two ranges (highest minus lowest over the seeds)."
)


@dataclass(frozen=True)
class Spread:
    """One number over the seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def lowest(self) -> float:
        return min(self.values)

    @property
    def highest(self) -> float:
        return max(self.values)

    @property
    def range(self) -> float:
        return self.highest - self.lowest

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{self.mean:.1f} (one seed)"
        return f"{self.mean:.1f} ({self.lowest:.1f} to {self.highest:.1f})"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One point over its seeds. Sizes are shares of the dense model's; accuracies are in per cent."""

    study: str
    method: str
    keep: float
    x: float | None
    num_seeds: int
    """Seeds that were asked for; the scores have fewer values where cells failed or did not run."""
    errors: tuple[str, ...]
    num_parameters: int
    parameters: float
    flops: float
    width: int
    dense_width: int
    num_layers: int
    slice_hidden: float | None
    """Fraction of the hidden dimensions that SliceGPT keeps."""
    num_rounds: int
    recovery_tokens: int
    recovery_s: float
    """Mean seconds of training."""
    total_s: float
    dense: dict[str, float]
    scores: dict[str, Spread]
    """{task: its first metric}."""
    lower_is_better: bool
    """Whether the first task's metric is a loss."""


def summarize(results: Results, study: str) -> list[Summary]:
    """One summary a point of the study that has at least one finished seed, in the order of the
    grid.
    """
    return [
        summary
        for point in results["points"]
        if point["study"] == study
        if (summary := _summary(point, [results["cells"][name] for name in point["cells"]]))
        is not None
    ]


def _summary(point: Row, cells: Sequence[Row]) -> Summary | None:
    finished = [row for row in cells if row["status"] == "finished"]
    if not finished:
        return None
    first = finished[0]
    dense, final = first["dense"], first["final"]
    return Summary(
        study=point["study"],
        method=point["method"],
        keep=point["keep"],
        x=point["x"],
        num_seeds=len(cells),
        errors=tuple(row["error"] for row in cells if row["status"] == "failed"),
        num_parameters=final["num_parameters"],
        parameters=final["num_parameters"] / dense["num_parameters"],
        flops=final["flops_per_token"] / dense["flops_per_token"],
        width=final["width"],
        dense_width=dense["width"],
        num_layers=final["num_layers"],
        slice_hidden=first["settings"].get("slice_hidden"),
        num_rounds=len(first["rounds"]),
        recovery_tokens=round(
            statistics.mean(
                sum(record["recovery_tokens"] for record in row["rounds"]) for row in finished
            )
        ),
        recovery_s=statistics.mean(
            sum(record["seconds"]["recover"] for record in row["rounds"]) for row in finished
        ),
        total_s=statistics.mean(
            sum(sum(record["seconds"].values()) for record in row["rounds"]) for row in finished
        ),
        dense=scores_of(dense["eval"]),
        scores={
            task: Spread(tuple(scores_of(row["final"]["eval"])[task] for row in finished))
            for task in final["eval"]
        },
        lower_is_better=_is_loss(leading_metric(dense)[1]),
    )


def scores_of(evaluation: dict[str, dict[str, float]]) -> dict[str, float]:
    """{task: its first metric}, in per cent unless it is a loss."""
    firsts = {task: next(iter(metrics.items())) for task, metrics in evaluation.items()}
    return {
        task: value if _is_loss(metric) else 100 * value for task, (metric, value) in firsts.items()
    }


def _is_loss(metric: str) -> bool:
    return any(name in metric for name in LOWER_IS_BETTER)


def verdict(ours: Spread, theirs: Spread, lower_is_better: bool = False) -> str:
    """Whether ours is better by more than the spread: the difference of means against the larger
    range over seeds.
    """
    ahead = (theirs.mean - ours.mean) if lower_is_better else (ours.mean - theirs.mean)
    if min(len(ours.values), len(theirs.values)) < 2:
        return f"{ahead:+.1f}: one seed has no spread"
    spread = max(ours.range, theirs.range)
    answer = (
        "yes"
        if ahead > spread
        else "no, behind by more than the spread"
        if -ahead > spread
        else "no"
    )
    return f"{ahead:+.1f}: {answer}"


Column = tuple[str, Callable[[Summary], str]]
BUDGET: Column = ("budget", lambda summary: f"{summary.x:,.0f}")
STEP: Column = (
    "neurons a round",
    lambda summary: f"{(summary.dense_width - summary.width) / summary.num_rounds:.0f}",
)


def study_table(
    results: Results, study: str, first: str = "method", extra: Column | None = None
) -> str:
    """A study as a markdown table: one row a point, dense first, with the verdict against PTL of
    the same size and place.
    """
    summaries = summarize(results, study)
    if not summaries:
        return "\n\n".join(["No cell of this study is finished.", *_failures(results, study)])
    tasks = list(summaries[0].scores)
    header = [
        "size",
        first,
        *(extra[:1] if extra else ()),
        "parameters",
        "layers x width",
        "FLOPs/token",
        "speedup by FLOPs",
    ]
    header += ["rounds", "recovery tokens", "recovery, s", *tasks]
    if study in PTL:
        header.append(f"{PTL[study]} ahead on {tasks[0]}: by more than the spread?")
    rows = [_dense_row(summaries[0], header, tasks)]
    for each in summaries:
        cells = [
            f"keep {each.keep:g}",
            each.method,
            *([extra[1](each)] if extra else []),
            f"{each.parameters:.1%}",
        ]
        cells += [_shape(each), f"{each.flops:.1%}", f"{1 / each.flops:.2f}x", str(each.num_rounds)]
        cells += [
            f"{each.recovery_tokens:,}",
            f"{each.recovery_s:.0f}",
            *(_score(each, task) for task in tasks),
        ]
        rows.append([*cells, *([_against_ptl(each, summaries)] if study in PTL else [])])
    notes = [RULE, *_coarse_notes(summaries), *_failures(results, study)]
    return f"{to_markdown([header, *rows])}\n\n" + "\n\n".join(notes)


def _dense_row(summary: Summary, header: list[str], tasks: list[str]) -> list[str]:
    scores = {task: f"{summary.dense[task]:.1f}" for task in tasks}
    known = {
        "size": "dense",
        "parameters": "100.0%",
        "FLOPs/token": "100.0%",
        "speedup by FLOPs": "1.00x",
        **scores,
    }
    return [known.get(name, "") for name in header]


def _shape(summary: Summary) -> str:
    hidden = f", {summary.slice_hidden:.0%} of hidden" if summary.slice_hidden else ""
    return f"{summary.num_layers} x {summary.width}{hidden}"


def _score(summary: Summary, task: str) -> str:
    spread = summary.scores[task]
    missing = (
        ""
        if len(spread.values) == summary.num_seeds
        else f", {len(spread.values)} of {summary.num_seeds} seeds"
    )
    return f"{spread}{missing}"


def _ptl(summary: Summary, summaries: Sequence[Summary]) -> Summary | None:
    """PTL at the same size and place."""
    same = (
        each
        for each in summaries
        if each.method == PTL.get(summary.study)
        and (each.keep, each.x) == (summary.keep, summary.x)
    )
    return next(same, None)


def _against_ptl(summary: Summary, summaries: Sequence[Summary]) -> str:
    ptl = _ptl(summary, summaries)
    if ptl is None or ptl is summary:
        return ""
    task = next(iter(summary.scores))
    return verdict(ptl.scores[task], summary.scores[task], summary.lower_is_better)


def _coarse_notes(summaries: Sequence[Summary]) -> list[str]:
    """Say which methods could not reach PTL's size."""
    notes = []
    for each in summaries:
        ptl = _ptl(each, summaries)
        if (
            ptl is not None
            and abs(each.parameters - ptl.parameters) > COARSE
            and each.parameters < 1
        ):
            notes.append(
                f"{each.method} at keep {each.keep:g}: {each.parameters:.1%} where PTL has"
                f" {ptl.parameters:.1%}"
            )
    if not notes:
        return []
    return [
        "Not the same size, but as near as whole layers or slices come: "
        + "; ".join(dict.fromkeys(notes))
        + "."
    ]


def _failures(results: Results, study: str) -> list[str]:
    """What is missing, and why."""
    seeds: dict[str, list[str]] = {}
    for point in results["points"]:
        for row in (results["cells"][name] for name in point["cells"] if point["study"] == study):
            if row["status"] != "finished":
                place = f"{point['method']} at keep {point['keep']:g}" + (
                    f", {point['x']:g}" if point["x"] else ""
                )
                why = f" ({row['error']})" if row["status"] == "failed" else ""
                seeds.setdefault(f"{place}: {row['status']}{why}", []).append(
                    str(row["settings"]["seed"])
                )
    missing = [f"- {what}, seed {' and '.join(numbers)}" for what, numbers in seeds.items()]
    return ["Missing:\n\n" + "\n".join(missing)] if missing else []


def rounds_table(results: Results) -> str:
    """Figure 3 as a table: the leading task before and after each round's recovery."""
    rows = [["size", "round", "parameters", "recovery tokens", "pruned", "recovered"]]
    for curve in rounds_curves(results):
        for number, (parameters, tokens, pruned, recovered) in enumerate(curve["rounds"], start=1):
            rows.append(
                [
                    f"keep {curve['keep']:g}",
                    str(number),
                    f"{parameters:.1%}",
                    f"{tokens:,}",
                    str(pruned),
                    str(recovered),
                ]
            )
    if len(rows) == 1:
        return "\n\n".join(["No cell of this study is finished.", *_failures(results, "rounds")])
    return to_markdown(rows) + "\n\n" + "\n\n".join([RULE, *_failures(results, "rounds")])


def rounds_curves(results: Results) -> list[dict[str, Any]]:
    """For each size: the dense score, and each round's (share of parameters, recovery tokens,
    pruned, recovered).
    """
    curves = []
    for point in results["points"]:
        cells = (
            [results["cells"][name] for name in point["cells"]]
            if point["study"] == "rounds"
            else []
        )
        finished = [row for row in cells if row["status"] == "finished"]
        if not finished:
            continue
        dense = finished[0]["dense"]
        task = next(iter(dense["eval"]))
        rounds = []
        for records in zip(
            *(row["rounds"] for row in finished), strict=False
        ):  # a budget may end some seeds' rounds early
            pruned, recovered = (
                Spread(tuple(scores_of(record[name])[task] for record in records))
                for name in ("eval_pruned", "eval")
            )
            share = records[0]["num_parameters"] / dense["num_parameters"]
            rounds.append((share, records[0]["recovery_tokens"], pruned, recovered))
        curves.append(
            {
                "keep": point["keep"],
                "task": task,
                "dense": scores_of(dense["eval"])[task],
                "rounds": rounds,
            }
        )
    return curves


# Every section of the document: its heading, and what makes its table.
SECTIONS: dict[str, tuple[str, Callable[[Results], str]]] = {
    "table1": (
        "Methods at equal size and equal recovery tokens (Table 1)",
        lambda results: study_table(results, "methods"),
    ),
    "table4": (
        "Pruning order (Table 4)",
        lambda results: study_table(results, "order", first="order"),
    ),
    "figure3": ("Accuracy by round (Figure 3)", rounds_table),
    "figure4": ("Step size (Figure 4)", lambda results: study_table(results, "steps", extra=STEP)),
    "budget": (
        "Accuracy against recovery tokens",
        lambda results: study_table(results, "budget", extra=BUDGET),
    ),
    "unseen": (
        "A skill that the recovery data lacks",
        lambda results: study_table(results, "unseen", extra=BUDGET),
    ),
    "scorers": ("What decides", lambda results: study_table(results, "scorers", first="scorer")),
    "recovery": (
        "How the recovery tokens are spent",
        lambda results: study_table(results, "recovery", first="option"),
    ),
}
STUDY_OF = {"table1": "methods", "table4": "order", "figure3": "rounds", "figure4": "steps"}


def to_csv(results: Results, section: str) -> str:
    """A section's numbers, one line a point and task."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    if section == "figure3":
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
    return [
        spread.mean,
        spread.lowest,
        spread.highest,
        " ".join(f"{value:g}" for value in spread.values),
    ]


def origin(results: Results) -> str:
    """One line: what was measured, where and when."""
    setup, environment = results["setup"], results["environment"]
    commits = sorted(
        {commit for row in results["cells"].values() for commit in row.get("commits", [])}
    )
    return (
        f"{setup['model']} on {setup['data']}, {len(setup['seeds'])} seeds,"
        f" {', '.join(setup['eval_tasks'])};"
        f" {environment.get('device')}, {environment.get('jobs')} cells at a time, torch"
        f" {environment.get('torch')},"
        f" commit {', '.join(commits) or 'unknown'}."
    )


def replace_sections(document: str, sections: dict[str, str]) -> str:
    """Write every section between its markers; one whose markers the document lacks is added at the
    end under its heading.
    """
    for name, content in sections.items():
        written = MARKED.format(name=name, content=content)
        pattern = re.compile(rf"<!-- begin: {name} -->\n.*?<!-- end: {name} -->", re.DOTALL)
        if pattern.search(document):
            document = pattern.sub(lambda _, written=written: written, document)  # type: ignore[misc]
        else:
            document = f"{document.rstrip()}\n\n## {SECTIONS[name][0]}\n\n{written}\n".lstrip()
    return document


def to_markdown(rows: list[list[str]]) -> str:
    """A header and rows as a markdown table; numbers to the right."""
    header, *body = rows
    rules = [
        "--:" if all(not row[column] or row[column][0].isdigit() for row in body) else "---"
        for column in range(len(header))
    ]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'|'.join(rules)}|", *lines[1:]])
