"""The section of benchmarks.recovery.study on on-policy distillation: beside training on text and
distillation on text for as much time, each from the same pruned model.

The model is that of the section on reinforcement, with a quarter of its FFN instead of a third.
"""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.environment import processor_name, short_commit
from benchmarks.harness.results import write_json
from benchmarks.recovery.reinforcement import SETTINGS as SHARED
from benchmarks.recovery.reinforcement import PrunedModel, Row

# Written out, as those of the other sections.
SETTINGS: dict[str, Any] = {
    **{name: value for name, value in SHARED.items() if not name.startswith("grpo")},
    "opd_steps": 30,
    "opd_prompts": 32,
    "opd_learning_rate": 5e-4,
    "opd_start_tokens": 12,
    "opd_prompt_tokens": 64,
    "opd_max_tokens": 48,
    "opd_micro_batch": 32,
    "distill_temperature": 2.0,
    "distill_weight": 0.9,
    "distill_top_k": 64,
}
WIDTH = 192
# Of text, to find out how long a token takes.
PROBE_TOKENS = 30_000
ARMS: dict[str, dict[str, Any]] = {
    "opd": {},
    "opd, all answers long": {"opd_start_tokens": 48},
    "opd, jsd": {"opd_divergence": "jsd"},
}
"""Ways to distil on policy: {row: what differs from SETTINGS}."""
ON_TEXT: dict[str, dict[str, Any]] = {
    "cpt": {"learning_rate": 3e-4},
    "distill": {"learning_rate": 6e-4},
}
"""Ways to train on text, with the learning rates of the section on distillation."""


def measure_arms(
    pruned: PrunedModel,
    rows: dict[str, Row],
    on_row: Callable[[str, Row], None],
    settings: dict[str, Any],
) -> None:
    """Measure the pruned model, each way of ARMS, and text for as long as the first of them took:
    by each method of ON_TEXT, and half of that time by cpt before half of opd's steps.

    Each row goes to ``on_row``, which adds it to ``rows``; a row that is there is not measured
    again.
    """
    if "untouched" not in rows:
        accuracy = pruned.accuracy(pruned.model)
        on_row("untouched", {"accuracy": accuracy, "tokens": 0, "cpu_seconds": 0.0})
    for arm, changes in ARMS.items():
        if arm not in rows:
            pruned.configure({**settings, **changes})
            on_row(arm, pruned.recover(copy.deepcopy(pruned.model), "opd"))
    for name, changes in ON_TEXT.items():
        pruned.configure({**settings, **changes})
        if f"{name}, probe" not in rows:
            row = pruned.recover(copy.deepcopy(pruned.model), name, PROBE_TOKENS)
            on_row(f"{name}, probe", row)
        longer = rows["opd"]["cpu_seconds"] / rows[f"{name}, probe"]["cpu_seconds"]
        if f"{name}, as long" not in rows:
            tokens = round(longer * PROBE_TOKENS)
            on_row(f"{name}, as long", pruned.recover(copy.deepcopy(pruned.model), name, tokens))
    if "cpt, then opd" not in rows:
        half = {"opd_steps": settings["opd_steps"] // 2}
        pruned.configure({**settings, **ON_TEXT["cpt"], **half})
        model, tokens = copy.deepcopy(pruned.model), rows["cpt, as long"]["tokens"] // 2
        before = pruned.recover(model, "cpt", tokens)
        after = pruned.recover(model, "opd")
        seconds = round(before["cpu_seconds"] + after["cpu_seconds"], 1)
        on_row("cpt, then opd", {**after, "tokens": before["tokens"], "cpu_seconds": seconds})


def measure(split: str, seeds: Sequence[int], file: Path) -> dict[str, Any]:
    """Measure what the file does not hold yet; it is written after every row.

    Raises:
        ValueError: it holds rows of other settings.
    """
    setup = {
        "split": split,
        "width": WIDTH,
        "probe_tokens": PROBE_TOKENS,
        "settings": SETTINGS,
        "on_text": ON_TEXT,
    }
    results: dict[str, Any] = {"setup": setup, "environment": {}, "rows": {}}
    if file.is_file():
        results = json.loads(file.read_text())
        if results["setup"] != setup:
            raise ValueError(
                f"{file} holds rows of other settings ({results['setup']}); give another --json or"
                " delete it"
            )
    results["environment"] = {
        "device": processor_name(),
        "commit": short_commit(),
        "threads": torch.get_num_threads(),
    }
    for seed in seeds:
        rows = results["rows"].setdefault(str(seed), {})

        def on_row(arm: str, row: Row, seed: int = seed, rows: dict[str, Row] = rows) -> None:
            rows[arm] = row
            write_json(file, results)
            print(
                f"seed {seed}, {arm}: {row['accuracy']}% after {row['cpu_seconds']} CPU seconds",
                flush=True,
            )

        if "cpt, then opd" not in rows:  # the last row
            measure_arms(PrunedModel(seed, split, SETTINGS, WIDTH), rows, on_row, SETTINGS)
    return results
