"""The section of benchmarks.recovery.study on distillation: against continual pre-training with
equal tokens, over whole runs.

Every row is a run of four rounds on the bundled model. All settings that matter are written out
here, so that the rows keep their meaning when a default or a preset changes. Neurons go by
output-change and are not compensated for before recovery: that leaves recovery the most to do.
"""

import functools
import itertools
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import clock
from benchmarks.harness.environment import short_commit
from benchmarks.harness.results import write_json
from benchmarks.harness.stopwatch import timed

Settings = dict[str, Any]
Row = dict[str, Any]
BASE: Settings = {
    "model": "ptl-demo",
    "data": "ptl-demo",
    "rounds": 4,
    "steps": "proportional",
    "scorer": "output-change",
    "compensate": False,
    "width_multiple": 32,
    "recovery_split": "growing",
    "recovery_growth": 4.0,
    "lr_schedule": "run",
    "keep_optimizer_state": True,
    "learning_rate": 3e-4,
    "sequence_length": 256,
    "global_batch": 1,
    "micro_batch": 1,
    "gradient_checkpointing": False,
    "calibration_tokens": 8192,
    # of each round, and short: the row reports the accuracy of the final model alone
    "eval_tasks": ["nll"],
    "eval_limit": 8,
    "device": "cpu",
}
# Distillation's settings were chosen on runs with fewer optimizer steps.
CHOICE: Settings = {
    **BASE,
    "steps": "equal",
    "lr_schedule": "round",
    "keep_optimizer_state": False,
    "global_batch": 4,
    "micro_batch": 4,
}
METHODS: dict[str, Settings] = {
    "cpt": {"recovery": "cpt"},
    "distill": {
        "recovery": "distill",
        "distill_temperature": 2.0,
        "distill_weight": 0.9,
        "distill_top_k": 64,
    },
}
SIZES, BUDGETS = (0.25, 0.33), (50_000, 100_000)


def settings_by_row(split: str) -> dict[str, Settings]:
    """The settings of every row, by the row's name without its seed."""
    if split == "test":
        return {
            f"{method}, keep {keep:g}, {tokens:,} tokens": {
                **BASE,
                "keep": keep,
                "recovery_tokens": tokens,
                **settings,
            }
            for keep, tokens, (method, settings) in itertools.product(
                SIZES, BUDGETS, METHODS.items()
            )
        }
    common = {**CHOICE, "keep": SIZES[0], "recovery_tokens": BUDGETS[0]}
    rows = {
        f"cpt, learning rate {rate:g}": {**common, **METHODS["cpt"], "learning_rate": rate}
        for rate in (3e-4, 6e-4)
    }
    for temperature in (1.0, 2.0):
        changes = {"learning_rate": 6e-4, "distill_temperature": temperature}
        rows[f"distill, learning rate 0.0006, temperature {temperature:g}"] = {
            **common,
            **METHODS["distill"],
            **changes,
        }
    return rows


def measure(
    split: str, task: str, seeds: Sequence[int], file: Path, names: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure what the file does not hold yet; it is written after every row.

    With ``names``, only rows whose name contains one of them.
    """
    rows: dict[str, Row] = json.loads(file.read_text()) if file.is_file() else {}
    for (name, settings), seed in itertools.product(settings_by_row(split).items(), seeds):
        key, full = f"{name}, seed {seed}", {**settings, "seed": seed}
        wanted = not names or any(each in name for each in names)
        if wanted and rows.get(key, {}).get("settings") != full:
            rows[key] = {"settings": full, "commit": short_commit(), **measure_run(full, task)}
            write_json(file, rows)
            print(
                f"{key}: {rows[key]['accuracy']}% after {rows[key]['cpu_seconds']} CPU seconds of"
                " recovery",
                flush=True,
            )
    return rows


def measure_run(settings: Settings, task: str) -> Row:
    """One run: size, accuracy of the result, and the CPU time of recovery, the teacher's passes
    included.
    """
    from ptl_fast import compress
    from ptl_fast.config.model import ModelSettings
    from ptl_fast.evaluation import tasks
    from ptl_fast.model import loading
    from ptl_fast.recovery import registry

    seconds_of_rounds, recover = [], registry.recover

    def timed_recover(*arguments: Any) -> Any:
        spent, seconds = timed(functools.partial(recover, *arguments), clock.cpu_seconds)
        seconds_of_rounds.append(seconds)
        return spent

    # a run takes hundreds of megabytes, and only its numbers are kept
    folder = Path(tempfile.mkdtemp())
    try:
        # a run reports wall seconds only, so its recovery is replaced by one that is timed
        registry.recover = timed_recover  # type: ignore[assignment]
        report = compress(**settings, output=str(folder / "run"))
        final = str(folder / "run" / "final")
        loaded = tasks.load_lm_eval_task(tasks.parse_tasks([task])[0])
        model, tokenizer = (
            loading.load_model(final, ModelSettings(), "cpu"),
            loading.load_tokenizer(final),
        )
        (accuracy,) = tasks.run_lm_eval(model, tokenizer, loaded, 250, None).metrics.values()
    finally:
        registry.recover = recover
        shutil.rmtree(folder)
    return {
        "accuracy": round(100 * float(accuracy), 1),
        "parameters": round(
            report["final"]["num_parameters"] / report["dense"]["num_parameters"], 4
        ),
        "cpu_seconds": round(sum(seconds_of_rounds), 1),
        "tokens": sum(each["recovery_tokens"] for each in report["rounds"]),
    }
