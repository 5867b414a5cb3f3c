"""What was aimed at, and whether the committed results of a kind of device reach it. Imports
nothing heavy.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.results import MEASURED

Results = list[dict[str, Any]]
Everything = dict[str, Results]
"""Results by the prefix of their files."""


@dataclass(frozen=True)
class Target:
    """A ratio that is to be at least (or, where ``at_most``, at most) so much."""

    what: str
    command: str
    """The module of benchmarks that measures it."""
    goal: float
    numbers: Callable[[Everything], Iterator[float]]
    at_most: bool = False
    percent: bool = False

    def row(self, everything: Everything) -> list[str]:
        """what, goal, lowest to highest, verdict, command."""
        sign = "at most " if self.at_most else "at least "
        found = sorted(self.numbers(everything))
        if not found:
            return [self.what, sign + self._show(self.goal), "not measured", "", self.command]
        reached = sum(value <= self.goal if self.at_most else value >= self.goal for value in found)
        verdict = (
            "held"
            if reached == len(found)
            else f"held in {reached} of {len(found)}"
            if reached
            else "missed"
        )
        ends = list(dict.fromkeys([self._show(found[0]), self._show(found[-1])]))
        return [self.what, sign + self._show(self.goal), " to ".join(ends), verdict, self.command]

    def _show(self, value: float) -> str:
        return f"{value:.1%}" if self.percent else f"{value:.2f}"


def _scoring(name: str) -> Callable[[Everything], Iterator[float]]:
    return lambda everything: (
        results[name] for results in everything["scoring"] if name in results
    )


def _kernels(op: str, peer: str) -> Callable[[Everything], Iterator[float]]:
    def numbers(everything: Everything) -> Iterator[float]:
        for results in everything["kernels"]:
            for row in results["rows"]:
                if (row["op"], row["peer"], row["status"]) == (op, peer, MEASURED):
                    yield row["ratio_to_peer"]

    return numbers


def _compaction(way: str) -> Callable[[Everything], Iterator[float]]:
    def numbers(everything: Everything) -> Iterator[float]:
        for results in everything["compaction"]:
            yield from (
                row["ratio"]
                for row in results["rows"]
                if row["way"] == way and row["status"] == MEASURED
            )

    return numbers


def _of_predicted(work: str) -> Callable[[Everything], Iterator[float]]:
    def numbers(everything: Everything) -> Iterator[float]:
        for results in everything["speedup"]:
            yield from (
                row["of_predicted"]
                for row in results["rows"]
                if row["work"] == work and "of_predicted" in row
            )

    return numbers


def _stages(name: str) -> Callable[[Everything], Iterator[float]]:
    return lambda everything: (results[name] for results in everything["stages"])


TARGETS = [
    Target(
        "prefill: measured speedup / predicted",
        "speedup",
        0.95,
        _of_predicted("prefill"),
        percent=True,
    ),
    Target(
        "decode: measured speedup / predicted",
        "speedup",
        0.95,
        _of_predicted("decode"),
        percent=True,
    ),
    Target(
        "scoring pass: plain forward pass / ours",
        "bench_scoring",
        1.0,
        _scoring("vs_plain_forward"),
    ),
    Target(
        "scoring pass: the authors' rule / ours",
        "bench_scoring",
        1.5,
        _scoring("vs_reference_rule"),
    ),
    Target(
        "a layer loses 10%: three x[idx] / ours",
        "bench_kernels",
        2.0,
        _kernels("compact_ffn", "three x[idx]"),
    ),
    Target(
        "a layer loses 10%: three index_select / ours",
        "bench_kernels",
        2.0,
        _kernels("compact_ffn", "three index_select"),
    ),
    Target(
        "planned beforehand: three x[idx] / ours",
        "bench_kernels",
        2.0,
        _kernels("compact_ffn_planned", "three x[idx]"),
    ),
    Target(
        "planned beforehand: three index_select / ours",
        "bench_kernels",
        2.0,
        _kernels("compact_ffn_planned", "three index_select"),
    ),
    Target(
        "a matrix of every layer loses 10% of its rows: copy / ours",
        "bench_kernels",
        6.0,
        _kernels("compact_rows", "copy of the kept number of rows"),
    ),
    Target(
        "a model loses 10%: three x[idx] / ours",
        "bench_compaction",
        2.0,
        _compaction("three x[idx]"),
    ),
    Target(
        "a model loses 10%: three index_select / ours",
        "bench_compaction",
        2.0,
        _compaction("three index_select"),
    ),
    Target(
        "a model loses 10%: torch-pruning's graph / ours",
        "bench_compaction",
        2.0,
        _compaction("torch-pruning, graph"),
    ),
    Target(
        "a model loses 10%: authors' way, with files / ours",
        "bench_compaction",
        100.0,
        _compaction("authors' way, with files"),
    ),
    Target(
        "loop overhead of a run",
        "stages",
        0.05,
        _stages("loop_overhead"),
        at_most=True,
        percent=True,
    ),
    Target(
        "all of a run that is not recovery",
        "stages",
        0.05,
        _stages("not_recovery"),
        at_most=True,
        percent=True,
    ),
]


def table(everything: Everything, device_type: str) -> list[list[str]]:
    """Every target against the results of one kind of device."""
    of_type = {
        prefix: [
            results for results in each if results["environment"]["device_type"] == device_type
        ]
        for prefix, each in everything.items()
    }
    return [
        ["what", "target", "lowest to highest", "", "python -m benchmarks."],
        *(target.row(of_type) for target in TARGETS),
    ]
