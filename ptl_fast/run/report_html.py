"""report.html: the run on one page, with charts, for people; without network and without script."""

from typing import TYPE_CHECKING, Any

from ptl_fast.base import svg
from ptl_fast.base.html_page import (
    card,
    cards,
    details,
    note,
    page,
    paragraphs,
    preformatted,
    section,
    table,
)
from ptl_fast.base.svg import Axis, Series
from ptl_fast.evaluation.chat import COSTS, SECONDS
from ptl_fast.run import (
    example_answers,
    metric_names,
    recover_step,
    score_charts,
    summary,
    tables,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ptl_fast.run.history import RoundHistory

Metric = tuple[str, str]
"""(task, metric)"""

COLUMNS = [
    "dense: the original model, before anything went; of dense: the share of its parameters or"
    " FLOPs that is left.",
    "FLOPs a token: additions and multiplications that the model needs for each token.",
    "MiB: its weights on disk. seconds: what the round took on this machine, evaluation included.",
]
ROUND = Axis("round", is_count=True)


def to_html(report: dict[str, Any], rounds: "Sequence[RoundHistory]", text: str) -> str:
    """Render report.json as a page.

    Args:
        report: the content of report.json; ``final`` is empty until the run has finished.
        rounds: what the finished rounds did, from the run's folder.
        text: report.md, which has every decision, and stands at the end.
    """
    dense, records = report["dense"], report["rounds"]
    found = metrics(dense)
    told = summary.sentences(report) or [f"In progress: {len(records)} rounds are finished."]
    told += verdict.sentences(records, *tables.leading_metric(dense))
    if report.get("stopped"):
        told.insert(0, report["stopped"])
    lessons = {metric_names.reading(metric).name: metric for _, metric in found}
    how = [f"{name}: {metric_names.reading(each).how}" for name, each in lessons.items()]
    how += COLUMNS
    return page(
        f"{report['config']['model']}, compressed",
        [
            section("Verdict", paragraphs(told)),
            section("Every round is a model", table(_sizes(report, found)), paragraphs(how)),
            section("Quality and size", cards(_quality(report, found))),
            section("Example answers", example_answers.to_html(report.get("examples", {}))),
            section("Cost", cards([_shrinking(dense, records), _speed(report), _time(records)])),
            section("Why these neurons and layers", cards(_why(rounds))),
            section(
                "Everything else",
                details("Settings", table(_pairs("setting", report["config"]))),
                details("Versions and machine", table(_pairs("what", report["environment"]))),
                details("Every decision and event: report.md", preformatted(text)),
            ),
            note("Made by ptl_fast; the numbers are those of report.json beside this page."),
        ],
    )


def metrics(dense: dict[str, Any]) -> list[Metric]:
    """The first metric of each task, which the charts show."""
    firsts = [
        (task, next((each for each in values if each not in COSTS), None))
        for task, values in dense["eval"].items()
    ]
    return [(task, metric) for task, metric in firsts if metric is not None]


def _sizes(report: dict[str, Any], found: list[Metric]) -> list[list[str]]:
    """The table of the dense model and every round's."""
    dense, places = report["dense"], {each["round"]: each for each in report.get("sizes", [])}
    header = ["parameters", "of dense", "FLOPs a token", "of dense", "MiB", "seconds"]
    # quality first: on a telephone the other columns are scrolled to
    rows = [["model", *(metric_names.titled(*each) for each in found), *header]]
    for record in (dense, *report["rounds"]):
        place = places.get(record.get("round"), {})
        name = f"round {record['round']}" if "round" in record else "dense"
        if place.get("folder"):
            name += f" ({place['folder']}/)"
        stored = place.get("bytes")
        row = [name, *(_shown(record["eval"], each) for each in found)]
        for key in ("num_parameters", "flops_per_token"):
            row += [tables.short(record[key]), f"{record[key] / dense[key]:.1%}"]
        row.append("" if stored is None else f"{stored / 2**20:,.1f}")
        row.append(f"{sum(record['seconds'].values()):.0f}" if "seconds" in record else "")
        rows.append(row)
    return rows


def _shown(evaluation: dict[str, dict[str, float]], metric: Metric) -> str:
    value = evaluation.get(metric[0], {}).get(metric[1])
    return "" if value is None else metric_names.reading(metric[1]).show(value)


def _quality(report: dict[str, Any], found: list[Metric]) -> list[str]:
    """For each task: its metric by round, and against size."""
    charts = []
    for metric in found:
        charts += [_by_round(report, metric), _by_size(report, metric)]
    return charts


def _points(
    records: list[dict[str, Any]], axis: str, key: str, metric: Metric
) -> list[tuple[float, float]]:
    """(a field, the metric in one of the evaluations) of the rounds that have both."""
    task, name = metric
    return [
        (record[axis], _scaled(metric, record[key][task][name]))
        for record in records
        if name in record.get(key, {}).get(task, {})
    ]


def _scaled(metric: Metric, value: float) -> float:
    """A metric's height in a chart: shares as percentages."""
    return 100 * value if metric_names.reading(metric[1]).is_share else value


def _axis(metric: Metric) -> Axis:
    """The y axis of a metric's chart."""
    read = metric_names.reading(metric[1])
    return Axis(f"{read.name}, %", most=100.0) if read.is_share else Axis(read.name)


def _by_round(report: dict[str, Any], metric: Metric) -> str:
    records, name = report["rounds"], metric_names.titled(*metric)
    if not records:
        return ""
    dense = report["dense"]["eval"][metric[0]][metric[1]]
    chart = svg.plot(
        _before_and_after(records, metric),
        title=f"{name} by round",
        x=ROUND,
        y=_axis(metric),
        guide=("dense model", _scaled(metric, dense)),
    )
    how = f"{metric_names.reading(metric[1]).how} The dense model is the original."
    return card(f"{name}, by round", chart, how)


def _before_and_after(records: list[dict[str, Any]], metric: Metric) -> list[Series]:
    """A metric before and after recovery, by round.

    A round that trained nothing, or whose training was undone, has the pruned model's evaluation
    as its own: that is no measurement after recovery.
    """
    trained = [each for each in records if _has_trained(each)]
    undone = [each for each in trained if each.get("worse_recovery", {}).get("undone")]
    stayed = [each for each in trained if each not in undone]
    worse = [{"round": each["round"], "eval": each["worse_recovery"]["eval"]} for each in undone]
    series = [
        Series("after pruning", _points(records, "round", "eval_pruned", metric)),
        Series("after recovery", _points(stayed, "round", "eval", metric)),
        Series("after a recovery that was undone", _points(worse, "round", "eval", metric), False),
    ]
    return [each for each in series if each.points]


def _has_trained(record: dict[str, Any]) -> bool:
    """Whether the round's recovery, or an extension of it, changed the model."""
    return any(map(recover_step.has_trained, [record, *record.get("extra_recovery", [])]))


def _by_size(report: dict[str, Any], metric: Metric) -> str:
    records, name = report["rounds"], metric_names.titled(*metric)
    if not records:
        return ""
    dense = report["dense"]
    chart = svg.plot(
        [
            Series("rounds", _points(records, "num_parameters", "eval", metric)),
            Series("dense", _points([dense], "num_parameters", "eval", metric)),
        ],
        title=f"size against {name}",
        x=Axis("parameters", is_count=True),
        y=_axis(metric),
    )
    how = "Each dot is a model of this run. Pick the smallest whose quality you can accept."
    return card(f"{name}, by size", chart, how)


def _shrinking(dense: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """Parameters and FLOPs of each round, as percentages of the dense model's."""
    if not records:
        return ""
    series = [
        Series(
            name,
            [(0.0, 100.0), *((each["round"], 100 * each[key] / dense[key]) for each in records)],
        )
        for name, key in (("parameters", "num_parameters"), ("FLOPs a token", "flops_per_token"))
    ]
    name = "Size by round"
    chart = svg.plot(series, title=name, x=ROUND, y=Axis("% of dense"))
    return card(name, chart, "Lower is smaller and cheaper; round 0 is the dense model.")


def _speed(report: dict[str, Any]) -> str:
    """Seconds an answer, by round, where a task measured them."""
    dense, records = report["dense"]["eval"], report["rounds"]
    timed = [task for task, values in dense.items() if SECONDS in values]
    series = [
        Series(
            task, [(0, dense[task][SECONDS]), *_points(records, "round", "eval", (task, SECONDS))]
        )
        for task in timed
    ]
    if not series:
        return ""
    chart = svg.plot(series, title="Seconds an answer", x=ROUND, y=Axis("seconds"))
    how = "Measured here while evaluating, in the evaluation's batches. Lower is faster."
    return card("Seconds an answer", chart, how)


def _time(records: list[dict[str, Any]]) -> str:
    """Wall-clock seconds of each stage of each round."""
    if not records:
        return ""
    names = list(records[0]["seconds"])
    rows = [
        (f"round {each['round']}", [each["seconds"][name] for name in names]) for each in records
    ]
    chart = svg.stacked_bars(rows, names, title="Seconds by stage")
    how = (
        "Where the run's time went, on this machine: calibrate scores on the data what may go,"
        " compact removes it, recover trains, evaluate measures."
    )
    return card("Seconds by stage", chart, how)


def _why(rounds: "Sequence[RoundHistory]") -> list[str]:
    return [
        *score_charts.distributions(rounds),
        score_charts.what_went(rounds),
        score_charts.importance(rounds),
    ]


def _pairs(title: str, values: dict[str, Any]) -> list[list[str]]:
    return [[title, "value"], *([name, str(value)] for name, value in values.items())]
