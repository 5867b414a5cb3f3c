"""The targets for speed, and whether the results of a kind of device reach them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.documents.document import Results, of_device_type
from benchmarks.harness.markdown import MISSING, Table
from benchmarks.harness.results import MEASURED

ResultsByPrefix = dict[str, Results]
"""Results by the prefix of their files."""


@dataclass(frozen=True)
class Target:
    """A ratio that is to be at least (or, where ``at_most``, at most) so much."""

    what: str
    command: str
    """The module below benchmarks that measures it."""
    goal: float
    numbers: Callable[[ResultsByPrefix], Iterator[float]]
    at_most: bool = False
    percent: bool = False

    def row(self, by_prefix: ResultsByPrefix) -> list[str]:
        """what, goal, lowest to highest, verdict, command."""
        # the verdict counts rows, so that one miss among many is seen and not averaged away
        sign = "at most " if self.at_most else "at least "
        values = sorted(self.numbers(by_prefix))
        if not values:
            return [self.what, sign + self._show(self.goal), MISSING, "", self.command]
        reached = sum(
            value <= self.goal if self.at_most else value >= self.goal for value in values
        )
        verdict = (
            "held"
            if reached == len(values)
            else f"held in {reached} of {len(values)}"
            if reached
            else "missed"
        )
        # one number where the lowest and the highest look the same
        ends = list(dict.fromkeys([self._show(values[0]), self._show(values[-1])]))
        return [self.what, sign + self._show(self.goal), " to ".join(ends), verdict, self.command]

    def _show(self, value: float) -> str:
        return f"{value:.1%}" if self.percent else f"{value:.2f}"


def _scoring(name: str) -> Callable[[ResultsByPrefix], Iterator[float]]:
    return lambda by_prefix: (results[name] for results in by_prefix["scoring"] if name in results)


def _kernels(op: str, peer: str) -> Callable[[ResultsByPrefix], Iterator[float]]:
    def numbers(by_prefix: ResultsByPrefix) -> Iterator[float]:
        for results in by_prefix["kernels"]:
            for row in results["rows"]:
                if (row["op"], row["peer"], row["status"]) == (op, peer, MEASURED):
                    yield row["ratio_to_peer"]

    return numbers


def _compaction(way: str) -> Callable[[ResultsByPrefix], Iterator[float]]:
    def numbers(by_prefix: ResultsByPrefix) -> Iterator[float]:
        for results in by_prefix["compaction"]:
            yield from (
                row["ratio"]
                for row in results["rows"]
                if row["way"] == way and row["status"] == MEASURED
            )

    return numbers


def _of_predicted(kind: str) -> Callable[[ResultsByPrefix], Iterator[float]]:
    def numbers(by_prefix: ResultsByPrefix) -> Iterator[float]:
        for results in by_prefix["speedup"]:
            yield from (
                row["of_predicted"]
                for row in results["rows"]
                if row["work"] == kind and "of_predicted" in row
            )

    return numbers


def _stages(name: str) -> Callable[[ResultsByPrefix], Iterator[float]]:
    return lambda by_prefix: (results[name] for results in by_prefix["stages"])


TARGETS = [
    Target(
        "prefill: measured speedup / predicted",
        "inference.speedup",
        0.95,
        _of_predicted("prefill"),
        percent=True,
    ),
    Target(
        "decode: measured speedup / predicted",
        "inference.speedup",
        0.95,
        _of_predicted("decode"),
        percent=True,
    ),
    Target(
        "scoring pass: plain forward pass / ours",
        "scoring.bench_scoring",
        1.0,
        _scoring("vs_plain_forward"),
    ),
    Target(
        "scoring pass: the authors' rule / ours",
        "scoring.bench_scoring",
        1.5,
        _scoring("vs_reference_rule"),
    ),
    Target(
        "a layer loses 10%: three x[idx] / ours",
        "kernels.bench_kernels",
        2.0,
        _kernels("compact_ffn", "three x[idx]"),
    ),
    Target(
        "a layer loses 10%: three index_select / ours",
        "kernels.bench_kernels",
        2.0,
        _kernels("compact_ffn", "three index_select"),
    ),
    Target(
        "planned beforehand: three x[idx] / ours",
        "kernels.bench_kernels",
        2.0,
        _kernels("compact_ffn_planned", "three x[idx]"),
    ),
    Target(
        "planned beforehand: three index_select / ours",
        "kernels.bench_kernels",
        2.0,
        _kernels("compact_ffn_planned", "three index_select"),
    ),
    Target(
        "a matrix of every layer loses 10% of its rows: copy / ours",
        "kernels.bench_kernels",
        6.0,
        _kernels("compact_rows", "copy of the kept number of rows"),
    ),
    Target(
        "a model loses 10%: three x[idx] / ours",
        "compaction.bench_compaction",
        2.0,
        _compaction("three x[idx]"),
    ),
    Target(
        "a model loses 10%: three index_select / ours",
        "compaction.bench_compaction",
        2.0,
        _compaction("three index_select"),
    ),
    Target(
        "a model loses 10%: torch-pruning's graph / ours",
        "compaction.bench_compaction",
        2.0,
        _compaction("torch-pruning, graph"),
    ),
    Target(
        "a model loses 10%: authors' way, with files / ours",
        "compaction.bench_compaction",
        100.0,
        _compaction("authors' way, with files"),
    ),
    Target(
        "loop overhead of a run",
        "recovery.stages",
        0.05,
        _stages("loop_overhead"),
        at_most=True,
        percent=True,
    ),
    Target(
        "all of a run that is not recovery",
        "recovery.stages",
        0.05,
        _stages("not_recovery"),
        at_most=True,
        percent=True,
    ),
]


def table(by_prefix: ResultsByPrefix, device_type: str) -> Table:
    """Every target against the results of one kind of device."""
    of_type = {
        prefix: of_device_type(results, device_type) for prefix, results in by_prefix.items()
    }
    return [
        ["what", "target", "lowest to highest", "", "python -m benchmarks."],
        *(target.row(of_type) for target in TARGETS),
    ]
