"""The verdict on a run in words: how much smaller, what was lost, and what to do next.

Everything follows from report.json; what was not measured is said to be so.
"""

from typing import Any

from ptl_fast.evaluation.chat import COSTS, SECONDS
from ptl_fast.run import metric_names

# A change below this is called none: nats of loss, or a share of answers (two of a hundred).
CLEAR_LOSS, CLEAR_SHARE = 0.05, 0.02


def sentences(report: dict[str, Any]) -> list[str]:
    """The verdict, a sentence each; empty until the run has finished."""
    dense, final = report["dense"], report["final"]
    if not final:
        return []
    lines = [_smaller(dense, final), _speed(dense["eval"], final["eval"])]
    lines += _quality(dense["eval"], final["eval"])
    if report.get("bytes_on_disk"):
        lines.append(_on_disk(dense, final, report["bytes_on_disk"]))
    lines.append(_next(report))
    return lines


def _smaller(dense: dict[str, Any], final: dict[str, Any]) -> str:
    return (
        f"Smaller: {final['num_parameters']:,} parameters instead of {dense['num_parameters']:,}"
        f" ({_change(dense, final, 'num_parameters')}), and"
        f" {_change(dense, final, 'flops_per_token')} of the arithmetic for each token."
    )


def _change(dense: dict[str, Any], final: dict[str, Any], key: str) -> str:
    lost = 1 - final[key] / dense[key]
    return f"{abs(lost):.1%} {'less' if lost >= 0 else 'more'}"


def _speed(dense: dict[str, dict[str, float]], final: dict[str, dict[str, float]]) -> str:
    measured = [
        f"{task} {dense[task][SECONDS] / final[task][SECONDS]:.2f} times as fast"
        f" ({dense[task][SECONDS]:.2f} s an answer before, {final[task][SECONDS]:.2f} s now)"
        for task in dense
        if dense[task].get(SECONDS) and final.get(task, {}).get(SECONDS)
    ]
    if measured:
        return f"Speed, measured here while evaluating: {'; '.join(measured)}."
    return (
        "Speed: not measured in this run; less arithmetic is not yet less time, which depends on"
        " device, batch and length."
    )


def _quality(dense: dict[str, dict[str, float]], final: dict[str, dict[str, float]]) -> list[str]:
    """A sentence for each task, on its first metric."""
    lines = []
    for task, values in dense.items():
        metric = next((each for each in values if each not in COSTS), None)
        if metric is not None and metric in final.get(task, {}):
            lines.append(_task(task, metric, values[metric], final[task][metric]))
    return lines


def _task(task: str, metric: str, before: float, after: float) -> str:
    read = metric_names.reading(metric)
    verdict = {1: "Better", 0: "About the same", -1: "Worse", None: "Changed"}[
        judged(metric, before, after)
    ]
    return (
        f"{verdict}: {metric_names.titled(task, metric)} {read.show(after)}, {read.show(before)}"
        " before."
    )


def judged(metric: str, before: float, after: float) -> int | None:
    """1 if a metric became clearly better, -1 if worse, 0 if neither; None if nobody can say."""
    read = metric_names.reading(metric)
    if read.higher_is_better is None:
        return None
    gained = (after - before) * (1 if read.higher_is_better else -1)
    # a perplexity changes by a share of itself as a loss does by nats
    margin = CLEAR_SHARE if read.is_share else CLEAR_LOSS * max(1.0, abs(before))
    if metric == "nll":
        margin = CLEAR_LOSS
    return 0 if abs(gained) <= margin else (1 if gained > 0 else -1)


def _on_disk(dense: dict[str, Any], final: dict[str, Any], stored: int) -> str:
    before = stored * dense["num_parameters"] / final["num_parameters"]
    return (
        f"On disk: {stored / 2**20:,.1f} MiB of weights in final/ (the original, in the same type:"
        f" {before / 2**20:,.1f} MiB)."
    )


def _next(report: dict[str, Any]) -> str:
    """What to do next."""
    dense, final = report["dense"]["eval"], report["final"]["eval"]
    if not dense:
        return "Next: nothing was measured (--eval-tasks none); try final/ on your own questions."
    task, metric = _leading(dense)
    now = judged(metric, dense[task][metric], final[task][metric])
    if report.get("stopped"):
        return (
            "Next: the quality gate ended the run early; a larger --max-drop, more"
            " --recovery-tokens or smaller steps (--rounds) go further."
        )
    if now == -1:
        good = _smallest_good(report)
        choose = f"take {good}, whose quality held; or " if good else ""
        return (
            f"Next: {choose}give more --recovery-tokens or --calibration-tokens, or a larger"
            " --keep."
        )
    if now is None:
        return "Next: compare the rounds in the report, and try final/ on your own questions."
    return "Next: try final/ on your own questions; a smaller --keep may still be possible."


def _smallest_good(report: dict[str, Any]) -> str | None:
    """The folder of the smallest round that was not clearly worse than the dense model."""
    dense = report["dense"]["eval"]
    task, metric = _leading(dense)
    for row in reversed(report.get("sizes", [])):
        held = judged(metric, dense[task][metric], row["eval"][task][metric]) in (0, 1)
        if row["folder"] and held:
            folder: str = row["folder"]
            return f"{folder}/"
    return None


def _leading(dense: dict[str, dict[str, float]]) -> tuple[str, str]:
    task = next(iter(dense))
    return task, next(iter(dense[task]))
