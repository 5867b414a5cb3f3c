"""Do statistics from the end of recovery choose the same neurons as a pass of their own, and what
time do they save?

    python -m benchmarks.scoring.bench_score_during_recovery --json FILE

Runs the demo with --score-during-recovery and keeps every round's weights. Each of those models is
then scored again with a separate pass over the next round's data, as a run without the flag would
do. The overlap is |kept by both| / |kept|: the mean over layers, and the lowest layer.
"""

import argparse
import functools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ptl_fast
from benchmarks.harness.environment import environment
from benchmarks.harness.markdown import to_markdown
from benchmarks.harness.results import write_json
from benchmarks.harness.stopwatch import timed
from ptl_fast.evaluation.tasks import parse_tasks
from ptl_fast.model import families, loading
from ptl_fast.pruning import plan
from ptl_fast.run import inputs
from ptl_fast.run.folder import RunFolder
from ptl_fast.run.rounds import make_schedule
from ptl_fast.run.start import make_config
from ptl_fast.scoring import statistics as statistics_module
from ptl_fast.scoring.evidence import Evidence
from ptl_fast.scoring.scorers import SCORERS

SCORER = "output-change"
COLUMNS = [
    "round",
    "width",
    "kept by both",
    "lowest layer",
    "tokens",
    "separate pass, s",
    "from recovery, s",
]


def compare_rounds(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """One row for each round whose neurons were chosen from the recovery before it."""
    settings = {"preset": "demo", **settings}
    report = ptl_fast.compress(
        **settings,
        device="cpu",
        score_during_recovery=True,
        scorer=SCORER,
        keep_rounds=1000,  # all rounds' weights, to be scored again
        output=folder,
    )
    config = make_config(**settings, device="cpu")
    assert config.model.model is not None
    original = loading.load_config(config.model.model)
    schedule = make_schedule(config, original)
    tasks = parse_tasks(config.evaluation.eval_tasks)
    # the same data as in the run: it depends on the settings alone
    _, data = inputs.load(config, tasks, schedule, original.vocab_size)
    files, rows = RunFolder(folder), []
    for step in schedule[1:]:  # before the first round there was no recovery
        chosen = files.round(step.number).plan.read()["kept_neurons"]
        before = files.round(step.number - 1)
        model = loading.load_model(str(before.model().path), config.model, "cpu")
        family = families.find_family(model)
        # a run without the flag calibrates on the first tokens of the round's own data
        tokens = data.training[step.number - 1].first(config.score.calibration_tokens)
        collect = functools.partial(
            statistics_module.collect, model, family, tokens, config.trainer.micro_batch
        )
        statistics, seconds = timed(collect)
        evidence = Evidence(statistics=statistics, model=model, family=family, seed=0)
        scores = SCORERS[SCORER].compute(evidence)
        separate = plan.plan_neurons(step, scores, None, SCORER).kept_neurons
        assert separate is not None
        overlaps = [
            len(set(one) & set(other)) / len(one)
            for one, other in zip(chosen, separate, strict=True)
        ]
        during = before.next_statistics().read()
        rows.append(
            {
                "round": step.number,
                "width": step.width,
                "overlap": sum(overlaps) / len(overlaps),
                "lowest_overlap": min(overlaps),
                "num_tokens_during_recovery": int(during["num_tokens"]),
                "num_tokens_separate": int(statistics.num_tokens),
                "separate_pass_seconds": seconds,
                "calibrate_seconds": report["rounds"][step.number - 1]["seconds"]["calibrate"],
            }
        )
    return rows


def table_row(row: dict[str, Any]) -> list[str]:
    """The cells of one row, by COLUMNS."""
    return [
        str(row["round"]),
        str(row["width"]),
        f"{row['overlap']:.1%}",
        f"{row['lowest_overlap']:.1%}",
        str(row["num_tokens_during_recovery"]),
        f"{row['separate_pass_seconds']:.2f}",
        f"{row['calibrate_seconds']:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        rows = compare_rounds({"seed": arguments.seed, "eval_limit": 50}, Path(folder) / "run")
    print(to_markdown([COLUMNS, *map(table_row, rows)]))
    if arguments.json:
        content = {"environment": environment("cpu"), "seed": arguments.seed, "rows": rows}
        write_json(arguments.json, content)


if __name__ == "__main__":
    main()
