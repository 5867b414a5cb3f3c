"""Do statistics from the end of recovery choose the same neurons as a pass of their own, and what
time do they save?

    python -m benchmarks.scoring.bench_score_during_recovery --json FILE

Runs the demo with --score-during-recovery, keeps every round's weights, and then scores each of
those models again with a separate pass over the next round's data, as a run without the flag would.
The overlap is |kept by both| / |kept|: the mean over layers, and the lowest layer.
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load_file

import ptl_fast
from benchmarks.harness.environment import environment
from benchmarks.harness.results import write_text
from ptl_fast.config.command_line import preset_settings
from ptl_fast.config.config import Config
from ptl_fast.model import families, loading
from ptl_fast.pruning import plan
from ptl_fast.run import inputs
from ptl_fast.run.loop import Job
from ptl_fast.scoring import scorers
from ptl_fast.scoring import statistics as statistics_module


def compare_rounds(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """One row for each round whose neurons were chosen from the recovery before it."""
    report = ptl_fast.compress(
        **settings,
        device="cpu",
        score_during_recovery=True,
        scorer="output-change",
        keep_rounds=1000,
        output=folder,
    )
    config = Config(**{**preset_settings(None, None), **settings, "device": "cpu"})
    job = Job(config)
    inputs.load(config, job.tasks, job.course)
    rows = []
    for step in job.schedule[1:]:
        chosen = json.loads((folder / f"round-{step.number:02d}" / "plan.json").read_text())[
            "kept_neurons"
        ]
        model = loading.load_model(
            str(folder / f"round-{step.number - 1:02d}" / "model"), config, job.device
        )
        family = families.find_family(model)
        tokens = job.training[step.number - 1].first(config.calibration_tokens)
        start = time.perf_counter()
        statistics = statistics_module.collect(model, family, tokens, config.micro_batch)
        seconds = time.perf_counter() - start
        scores = scorers.SCORERS[config.scorer](statistics, model, family, 0)
        separate = plan.plan_neurons(step, scores, None, config.scorer).kept_neurons
        assert separate is not None
        overlaps = [
            len(set(one) & set(other)) / len(one)
            for one, other in zip(chosen, separate, strict=True)
        ]
        during = load_file(folder / f"round-{step.number - 1:02d}" / "next_statistics.safetensors")
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        rows = compare_rounds({"seed": arguments.seed, "eval_limit": 50}, Path(folder) / "run")
    print(
        "| round | width | overlap of kept sets | lowest layer | tokens | separate pass s | with"
        " the flag s |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        overlap = f"{row['overlap']:.1%} | {row['lowest_overlap']:.1%}"
        seconds = f"{row['separate_pass_seconds']:.2f} | {row['calibrate_seconds']:.2f}"
        print(
            f"| {row['round']} | {row['width']} | {overlap} | {row['num_tokens_during_recovery']}"
            f" | {seconds} |"
        )
    if arguments.json:
        content = {"environment": environment("cpu"), "seed": arguments.seed, "rows": rows}
        write_text(arguments.json, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
