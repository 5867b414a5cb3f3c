"""The section of benchmarks.recovery.study on distillation: against continual pre-training with
equal tokens, over whole runs.

Every row is a run of four rounds on the bundled model. All settings that matter are named here, so
that no default and no preset
changes what a row means: neurons go by output-change and nothing makes up for them before recovery,
which is then worth most."""

import functools
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.results import commit, write_text

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
    "eval_tasks": ["nll"],  # of each round, short; what is reported is the result's accuracy
    "eval_limit": 8,
    "device": "cpu",
}
# What distillation's settings were chosen on: fewer steps, so that recovery is weaker.
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


def grid(split: str) -> dict[str, Settings]:
    """{row's name: settings}."""
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


def run(
    split: str, task: str, seeds: Sequence[int], file: Path, names: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure what the file does not hold yet; it is written after every row. ``names`` restricts
    to rows whose name has one.
    """
    rows: dict[str, Row] = json.loads(file.read_text()) if file.is_file() else {}
    for (name, settings), seed in itertools.product(grid(split).items(), seeds):
        key, full = f"{name}, seed {seed}", {**settings, "seed": seed}
        wanted = not names or any(part in name for part in names)
        if wanted and rows.get(key, {}).get("settings") != full:
            rows[key] = {"settings": full, "commit": commit(), **measure(full, task)}
            write_text(file, json.dumps(rows, indent=1) + "\n")
            print(
                f"{key}: {rows[key]['accuracy']}% after {rows[key]['cpu_seconds']} CPU seconds of"
                " recovery",
                flush=True,
            )
    return rows


def measure(settings: Settings, task: str) -> Row:
    """One run: size, accuracy of the result, and the CPU time of recovery, the teacher's passes
    included.
    """
    from ptl_fast.config.model import ModelSettings
    from ptl_fast.evaluation import tasks
    from ptl_fast.model import loading
    from ptl_fast.recovery import registry
    from ptl_fast.run.start import compress

    seconds, before = [0.0], registry.recover

    def timed(*arguments: Any) -> Any:
        start = time.process_time()
        spent = before(*arguments)
        seconds[0] += time.process_time() - start
        return spent

    folder = Path(tempfile.mkdtemp())
    try:
        registry.recover = timed  # type: ignore[assignment]
        report = compress(**settings, output=str(folder / "run"))
        final = str(folder / "run" / "final")
        loaded = tasks.load_lm_eval_task(tasks.parse_tasks([task])[0])
        model, tokenizer = (
            loading.load_model(final, ModelSettings(), "cpu"),
            loading.load_tokenizer(final),
        )
        (accuracy,) = tasks.run_lm_eval(model, tokenizer, loaded, 250, None).values()
    finally:
        registry.recover = before
        shutil.rmtree(folder)
    return {
        "accuracy": round(100 * float(accuracy), 1),
        "parameters": round(
            report["final"]["num_parameters"] / report["dense"]["num_parameters"], 4
        ),
        "cpu_seconds": round(seconds[0], 1),
        "tokens": sum(each["recovery_tokens"] for each in report["rounds"]),
    }


def table(rows: dict[str, Row], split: str = "test") -> list[list[str]]:
    """Accuracy of each row: mean, lowest and highest over seeds."""
    lines = [
        ["recovery", "seeds", "accuracy %, mean (lowest to highest)", "CPU seconds of recovery"]
    ]
    for name in grid(split):
        found = [row for key, row in rows.items() if key.startswith(f"{name}, seed ")]
        if not found:
            lines.append([name, "0", "not measured", ""])
            continue
        values = [row["accuracy"] for row in found]
        accuracy = f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
        lines.append(
            [
                name,
                str(len(found)),
                accuracy,
                f"{statistics.mean(row['cpu_seconds'] for row in found):.0f}",
            ]
        )
    return lines


def makers(folder: Path) -> dict[str, Callable[[], list[list[str]]]]:
    """{marker in the document: its table} from the files of rows in a folder."""
    files = {split: folder / f"recovery_distill_{split}.json" for split in ("test", "validation")}
    rows = {
        split: json.loads(file.read_text()) if file.is_file() else {}
        for split, file in files.items()
    }
    return {
        f"distillation_{split}": functools.partial(table, rows[split], split) for split in files
    }
