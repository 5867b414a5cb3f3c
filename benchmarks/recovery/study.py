"""What a way of recovering is worth, on the bundled model.

    python -m benchmarks.recovery.study                                     # test problems
    python -m benchmarks.recovery.study --split validation --seeds 10 11    # to choose settings
    python -m benchmarks.recovery.study --section distillation
    python -m benchmarks.recovery.study --section on_policy

- reinforcement (reinforcement.py): the model is pruned once, and each way of recovering starts from
  that same pruned model
- on_policy (on_policy.py): the same for on-policy distillation, beside text for as much time
- distillation (distillation.py): whole runs, beside continual pre-training with equal tokens

Interrupted, the same command goes on with the next row. benchmarks.documents.recovery_table writes
the tables of docs/recovery.md from the rows. Time is the process's CPU time, so that other work on
the machine does not count; with one thread (OMP_NUM_THREADS=1) on a free core it is the time that
passes.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.harness.environment import ROOT
from benchmarks.recovery import distillation, on_policy, reinforcement
from benchmarks.recovery.reinforcement import FIRST_TOKENS, SETTINGS, TASKS, WIDTH

RESULTS = ROOT / "benchmarks" / "results"
REINFORCEMENT_ROWS = RESULTS / "recovery_demo.json"


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 where --json does not fit the settings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--section",
        choices=["reinforcement", "distillation", "on_policy"],
        default="reinforcement",
    )
    parser.add_argument(
        "--only", nargs="+", default=[], help="of distillation: rows whose name has one of these"
    )
    parser.add_argument("--split", choices=list(TASKS), default="test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--width", type=int, default=WIDTH, help="of the FFN, 768 in the original")
    parser.add_argument(
        "--first-tokens", type=int, default=FIRST_TOKENS, help="tokens of cpt before grpo"
    )
    parser.add_argument(
        "--settings", type=json.loads, default=SETTINGS, help="JSON: settings of ptl_fast.compress"
    )
    parser.add_argument(
        "--json",
        type=Path,
        help="file for the raw rows (default: the section's own in benchmarks/results)",
    )
    options = parser.parse_args(arguments)
    from ptl_fast.base.console import quiet_libraries

    quiet_libraries()
    if options.section == "distillation":
        file = options.json or RESULTS / f"recovery_distill_{options.split}.json"
        distillation.measure(options.split, TASKS[options.split], options.seeds, file, options.only)
        return 0
    if options.section == "on_policy":
        file = options.json or RESULTS / f"recovery_opd_{options.split}.json"
        on_policy.measure(options.split, options.seeds, file)
        return 0
    options.json = options.json or REINFORCEMENT_ROWS
    # rows of validation problems must not stand where those of the document are
    if options.split != "test" and options.json == REINFORCEMENT_ROWS:
        parser.error("--split validation needs a --json of its own")
    try:
        reinforcement.measure(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
