r"""Did anything become slower? Two pytest-benchmark files, compared by the ratios inside each.

    OMP_NUM_THREADS=1 python -m pytest benchmarks --benchmark-enable \
        --benchmark-timer=time.process_time --benchmark-json=now.json
    python -m benchmarks.harness.ratios now.json [--baseline FILE]
    python -m benchmarks.harness.ratios now.json --write benchmarks/results/ratios_cpu.json

An absolute time says more about the machine than about the code. So every entry is divided by its
group's reference, the entry "ours", and these ratios are compared. A ratio's range is what the
quartiles of its two entries allow. It has moved where the ranges in the two files do not meet and
the medians differ by more than a tenth; the tenth is there because entries of a group run one after
the other, and a machine may change in between.

A ratio does not say which side moved. Where ours is worse against one entry of a group alone, it is
likely that this entry became faster (a copy, say, on a machine that allocates memory faster). The
committed baseline was taken with one thread and CPU time, as above: with more threads, entries
speed up by different factors. The exit code is 0 also where something moved: a clock should not
decide whether a change is right.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.markdown import Table, to_markdown
from benchmarks.harness.results import write_json

BASELINE = Path(__file__).parents[1] / "results" / "ratios_cpu.json"
REFERENCE = "ours"
SMALLEST_MOVE = 1.1
STATISTICS = ("q1", "median", "q3", "rounds")
Key = tuple[str, str]
"""Group and entry."""


@dataclass(frozen=True)
class Ratio:
    """An entry's time over its group's reference: median, and the range that the quartiles of both
    allow.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"

    def moved_from(self, before: "Ratio") -> bool:
        """Whether the two differ by more than noise."""
        # quartiles that do not meet are not enough: steady entries have narrow ones
        apart = self.low > before.high or self.high < before.low
        change = self.median / before.median
        return apart and max(change, 1 / change) > SMALLEST_MOVE


def ratios(content: dict[str, Any]) -> dict[Key, Ratio]:
    """Every entry but the references, over its group's reference.

    Raises:
        ValueError: a group has no reference, or an entry does not say which contender it is.
    """
    groups: dict[str, dict[str, dict[str, float]]] = {}
    for entry in content["benchmarks"]:
        if "contender" not in entry["extra_info"]:
            raise ValueError(
                f"{entry['name']} has no extra_info['contender']; set it in the benchmark"
            )
        groups.setdefault(entry["group"], {})[entry["extra_info"]["contender"]] = entry["stats"]
    result = {}
    for group, entries in groups.items():
        if REFERENCE not in entries:
            raise ValueError(
                f"group {group!r} has no entry {REFERENCE!r}, only {', '.join(entries)}; run all"
                " of the group"
            )
        ours = entries.pop(REFERENCE)
        for name, other in entries.items():
            # the widest range that the quartiles of both allow
            low, high = other["q1"] / ours["q3"], other["q3"] / ours["q1"]
            result[group, name] = Ratio(other["median"] / ours["median"], low, high)
    return result


def comparison(now: dict[Key, Ratio], before: dict[Key, Ratio]) -> Table:
    """A row for each entry of either file: group, entry, ratio before and now, and the verdict."""
    rows = []
    for key in dict.fromkeys([*before, *now]):
        if key not in now or key not in before:
            verdict = "only in the baseline" if key in before else "new"
        elif not now[key].moved_from(before[key]):
            verdict = ""
        else:
            verdict = (
                "BETTER for ours" if now[key].median > before[key].median else "WORSE for ours"
            )
        rows.append(
            [*key, *(str(side[key]) if key in side else "" for side in (before, now)), verdict]
        )
    return rows


def without_the_machine(content: dict[str, Any]) -> dict[str, Any]:
    """What a baseline keeps: the statistics, and no more of the machine than ratios depend on."""
    machine, cpu = content["machine_info"], content["machine_info"].get("cpu", {})
    return {
        "machine": {"cpu": cpu.get("brand_raw", ""), "python": machine.get("python_version", "")},
        "commit": content.get("commit_info", {}).get("id"),
        "benchmarks": [
            {
                "group": entry["group"],
                "name": entry["name"],
                "extra_info": entry["extra_info"],
                "stats": {name: entry["stats"][name] for name in STATISTICS},
            }
            for entry in content["benchmarks"]
        ],
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("now", type=Path, help="file that pytest-benchmark wrote")
    parser.add_argument("--baseline", type=Path, default=BASELINE, help=f"default: {BASELINE.name}")
    parser.add_argument(
        "--write", type=Path, help="compare nothing; keep what a baseline needs in this file"
    )
    options = parser.parse_args(arguments)
    content = json.loads(options.now.read_text())
    now = ratios(content)
    if options.write:
        write_json(options.write, without_the_machine(content))
        return
    rows = comparison(now, ratios(json.loads(options.baseline.read_text())))
    print(to_markdown([["group", "entry / ours", "baseline", "now", ""], *rows]))
    print(
        f"{sum(row[-1].endswith('for ours') for row in rows)} of {len(rows)} ratios moved beyond"
        " noise"
    )


if __name__ == "__main__":
    main()
