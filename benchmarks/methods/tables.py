"""The rows of benchmarks.methods.compare as tables in markdown."""

from collections.abc import Callable, Sequence

from benchmarks.harness.markdown import to_markdown
from benchmarks.methods.summaries import (
    FAILED,
    FINISHED,
    Results,
    Summary,
    rounds_curves,
    summarize,
    verdict,
)

# by study, what its other methods are compared with
PTL = {
    "methods": "PTL",
    "peers": "Prune-Once",
    "budget": "PTL",
    "unseen": "PTL",
    "recovery": "PTL",
    "scorers": "reconstruction",
    "order": "neurons-then-layers",
}
COARSE = 0.02  # a difference in parameters, as a share of the dense model's, that a note names
RULE = (
    "Mean over the seeds, with the lowest and the highest in brackets. *By more than the spread*:"
    " the difference of the means is"
    " larger than the larger of the two ranges (highest minus lowest over the seeds)."
)

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
    tasks = list(summaries[0].scores)  # every point is evaluated on the same tasks
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
    # the dense model is in every point's rows; the first one's will do
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
    if ptl is None or ptl is summary:  # its cell did not finish, or this is its own row
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
            # the dense model is in the table to compare accuracy, not size
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
    # seeds that failed in the same way share a line
    seeds: dict[str, list[str]] = {}
    for point in results["points"]:
        for row in (results["cells"][name] for name in point["cells"] if point["study"] == study):
            if row["status"] != FINISHED:
                place = f"{point['method']} at keep {point['keep']:g}" + (
                    f", {point['x']:g}" if point["x"] else ""
                )
                why = f" ({row['error']})" if row["status"] == FAILED else ""
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


def origin(results: Results) -> str:
    """One line: what was measured, on which machine, at which commits."""
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


SECTIONS: dict[str, tuple[str, Callable[[Results], str]]] = {
    "table1": (
        "Methods at equal size and equal recovery tokens (Table 1)",
        lambda results: study_table(results, "methods"),
    ),
    "peers": (
        "Other methods' scores, at equal size and equal recovery tokens",
        lambda results: study_table(results, "peers"),
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
"""By name, a section's heading and what makes its table."""
HEADINGS = {name: heading for name, (heading, _) in SECTIONS.items()}
# sections that are not called as their study is
STUDY_OF = {"table1": "methods", "table4": "order", "figure3": "rounds", "figure4": "steps"}


def sections_of(results: Results) -> dict[str, str]:
    """By name, the tables of the studies that the results have points of."""
    studies = {point["study"] for point in results["points"]}
    return {
        name: make_table(results)
        for name, (_, make_table) in SECTIONS.items()
        if STUDY_OF.get(name, name) in studies
    }
