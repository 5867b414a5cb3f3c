"""Distillation against continual pre-training: settings chosen on validation problems, then both measured on test problems.

    python -m benchmarks.distill_study choose     # rows for choosing, seeds from 10 on
    python -m benchmarks.distill_study measure    # the table of docs/recovery.md, seeds 0, 1, 2
    python -m benchmarks.distill_study render     # the tables again, from the rows alone

A row is one ptl_fast.compress(...) and an evaluation of its result. Interrupted, the same command goes on where it was; rows that
--json holds are not measured again. Seconds are those of the recovery stage, the teacher's pass included.
"""

import argparse
import itertools
import json
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import compare_run
from benchmarks.files import write_text

Settings = dict[str, Any]
# rounds are evaluated by NLL alone, which is quick; the accuracy is the result's
BASE: Settings = {"keep": 0.25, "rounds": 4, "scorer": "output-change", "device": "cpu", "eval_tasks": ["nll"], "eval_limit": 100}
BEGIN, END = "<!-- distill: begin -->", "<!-- distill: end -->"
TASKS = {"choose": "demo_arithmetic_validation", "measure": "demo_arithmetic"}
# cpt with its own best learning rate
CPT: Settings = {"recovery": "cpt", "learning_rate": 3e-4}
DISTILL: Settings = {"recovery": "distill", "learning_rate": 6e-4}


def choices() -> Iterator[tuple[str, Settings]]:
    """The settings among which to choose, one after the other where the best of the ones before is kept."""
    budget = {"recovery_tokens": 50_000}
    for rate in (1.5e-4, 3e-4, 6e-4, 1e-3):
        for recovery in ("cpt", "distill"):
            yield f"{recovery} lr {rate:g}", {**budget, "recovery": recovery, "learning_rate": rate}
    for temperature, weight in itertools.product((1.0, 2.0, 4.0), (0.5, 0.9, 1.0)):
        changes = {"distill_temperature": temperature, "distill_weight": weight}
        yield f"distill T {temperature:g} w {weight:g}", {**budget, **DISTILL, **changes}
    for top_k in (4, 16, 384):
        yield f"distill k {top_k}", {**budget, **DISTILL, "distill_top_k": top_k}


def measurements() -> Iterator[tuple[str, Settings]]:
    """Two methods, two budgets, two sizes."""
    for keep, tokens in itertools.product((0.5, 0.25), (50_000, 100_000)):
        for method, settings in {"cpt": CPT, "distill": DISTILL}.items():
            yield f"{method} keep {keep:g} tokens {tokens}", {"keep": keep, "recovery_tokens": tokens, **settings}


def run(stage: str, seeds: list[int], output: Path, file: Path) -> None:
    """Measure what the file of rows lacks."""
    rows = json.loads(file.read_text()) if file.is_file() else {}
    grid = dict(choices() if stage == "choose" else measurements())
    for seed, (name, settings) in itertools.product(seeds, grid.items()):
        full = {**BASE, **settings, "seed": seed}
        key = f"{stage} {name} seed {seed}"
        if rows.get(key, {}).get("settings") != full:
            rows[key] = measure(full, TASKS[stage], output / key.replace(" ", "-"))
            write_text(file, json.dumps(rows, indent=1) + "\n")
            print(key, json.dumps({name: value for name, value in rows[key].items() if name != "settings"}), flush=True)


def measure(settings: Settings, task: str, folder: Path) -> dict[str, Any]:
    """One row."""
    from ptl_fast import evaluate, models
    from ptl_fast.compress import compress
    from ptl_fast.config import Config

    report = compress(**settings, output=str(folder))
    final, rounds = str(folder / "final"), report["rounds"]
    model = models.load_model(final, Config(), "cpu")
    loaded = evaluate.load_lm_eval_task(evaluate.parse_tasks([task], False)[0])
    accuracy = next(iter(evaluate.run_lm_eval(model, models.load_tokenizer(final), loaded, 250, None).values()))
    row = {
        "settings": settings,
        "commit": compare_run.commit(),
        "parameters": report["final"]["num_parameters"] / report["dense"]["num_parameters"],
        "accuracy": accuracy,
        "nll": report["final"]["eval"]["nll"]["nll"],
        "recovery_seconds": sum(each["seconds"]["recover"] for each in rounds),
        "recovery_tokens": sum(each["recovery_tokens"] for each in rounds),
    }
    shutil.rmtree(folder)
    return row


def table(rows: dict[str, Any], stage: str) -> str:
    """Mean over seeds, with the lowest and highest accuracy."""
    lines = ["| settings | seeds | accuracy %, mean (lowest to highest) | NLL | recovery s |", "|---|--:|--:|--:|--:|"]
    for name in dict(choices() if stage == "choose" else measurements()):
        found = [row for key, row in rows.items() if key.startswith(f"{stage} {name} seed ")]
        if found:
            accuracies = [100 * row["accuracy"] for row in found]
            nll, seconds = (statistics.mean(row[key] for row in found) for key in ("nll", "recovery_seconds"))
            spread = f"{statistics.mean(accuracies):.1f} ({min(accuracies):.1f} to {max(accuracies):.1f})"
            lines.append(f"| {name} | {len(found)} | {spread} | {nll:.4f} | {seconds:.0f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*TASKS, "render"])
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 10 11 to choose, 0 1 2 to measure")
    parser.add_argument("--output", type=Path, default=Path("runs/distill_study"))
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "distill_study.json")
    options = parser.parse_args(arguments)
    if options.stage != "render":
        from ptl_fast.compress import quiet_libraries

        quiet_libraries()
        seeds = options.seeds or {"choose": [10, 11], "measure": [0, 1, 2]}[options.stage]
        run(options.stage, seeds, options.output, options.json)
    rows = json.loads(options.json.read_text())
    for stage in TASKS:
        print(f"\n{stage}\n\n{table(rows, stage)}")


if __name__ == "__main__":
    main()
