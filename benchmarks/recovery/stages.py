"""Where does a whole run's time go? Seconds of each stage, and what is not recovery.

    python -m benchmarks.recovery.stages --json FILE [--name NAME] -- --model DIR --data FILE ...

After -- come the flags of ptl_fast.compress; without any, the bundled demo runs. It is a new run,
in a temporary folder. Stages are those of report.json, summed over the rounds. "the rest" is
everything else between the program's start and its end: imports, reading the data, loading and
saving weights, the original's evaluation.

Two shares are reported. "Loop overhead" is the share of scoring and removing (calibrate and
compact) in what the loop must do (these and recover); evaluation is not in it, since the user
chooses how much there is. "Not recovery" is the share of everything but recover in the whole.
"""

import time

# Read before the imports, which are part of the run's time. So this cannot be the harness's clock,
# whose module imports torch.
START = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from benchmarks.harness.results import write_json  # noqa: E402

STAGES = ("calibrate", "compact", "recover", "evaluate")


def shares(seconds: dict[str, float], total: float) -> dict[str, float]:
    """The two shares of this module's docstring."""
    overhead = seconds["calibrate"] + seconds["compact"]
    return {
        "loop_overhead": overhead / (overhead + seconds["recover"]),
        "not_recovery": 1 - seconds["recover"] / total,
    }


def summed(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of each stage over the rounds of a report."""
    return {stage: sum(record["seconds"][stage] for record in rounds) for stage in STAGES}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument(
        "--name", help="what the run is called in the tables (default: the model's name)"
    )
    parser.add_argument("flags", nargs="*", help="of ptl_fast.compress")
    options = parser.parse_args(arguments)
    start = START if arguments is None else time.perf_counter()
    from benchmarks.harness.environment import environment
    from ptl_fast.model.loading import resolve_device
    from ptl_fast.run.start import parse, run

    with tempfile.TemporaryDirectory() as folder:
        config = parse([*options.flags, "--output", f"{folder}/run"])
        report = run(config)
    total = time.perf_counter() - start
    seconds = summed(report["rounds"])
    result = {
        "environment": environment(resolve_device(config.model.device).partition(":")[0]),
        "name": options.name or Path(str(config.model.model)).name,
        "num_rounds": len(report["rounds"]),
        "recovery_tokens": sum(record["recovery_tokens"] for record in report["rounds"]),
        "calibration_tokens": config.score.calibration_tokens,
        "seconds": {**seconds, "the rest": total - sum(seconds.values())},
        "total": total,
        **shares(seconds, total),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
