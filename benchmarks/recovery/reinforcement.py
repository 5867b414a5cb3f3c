"""The section of benchmarks.recovery.study on reinforcement learning: each way of recovering starts
from the same pruned model.
"""

import argparse
import copy
import functools
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.harness import clock
from benchmarks.harness.environment import processor_name, short_commit
from benchmarks.harness.results import write_json
from benchmarks.harness.stopwatch import timed
from ptl_fast.config.config import Config
from ptl_fast.run.start import make_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.recovery.task import RecoveryTask

TASKS = {"test": "demo_arithmetic", "validation": "demo_arithmetic_validation"}
NUM_DOCUMENTS = 8000
# How text is trained on, and the batch of evaluation. They are written out here and not taken from
# a preset, so that the rows keep their meaning when a preset changes.
SETTINGS: dict[str, Any] = {
    "model": "ptl-demo",
    "data": "ptl-demo",
    "learning_rate": 1.5e-4,
    "sequence_length": 256,
    "global_batch": 4,
    "micro_batch": 16,
    "gradient_checkpointing": False,
    "calibration_tokens": 32768,
    "eval_batch": 250,
    # chosen on validation problems with seed 10: of learning rates 1e-4 and 4e-4 the one under
    # which the reward rose
    "grpo_steps": 30,
    "grpo_prompts": 16,
    "grpo_rollouts": 8,
    "grpo_learning_rate": 1e-4,
    "grpo_prompt_tokens": 64,
    "grpo_response_tokens": 48,
}
WIDTH, FIRST_TOKENS = 256, 20_000

Row = dict[str, Any]


class PrunedModel:
    """The pruned model of one seed and what it recovers on; both the same for every arm."""

    def __init__(self, seed: int, split: str, settings: dict[str, Any], width: int) -> None:
        # These also import what training needs, so that its import time counts for no recovery.
        from ptl_fast.data import documents as documents_module
        from ptl_fast.data import packing, readers, sampling
        from ptl_fast.evaluation import tasks
        from ptl_fast.model import loading
        from ptl_fast.model.families import find_family
        from ptl_fast.pruning import compact, plan, schedule
        from ptl_fast.scoring import scorers
        from ptl_fast.scoring import statistics as statistics_module
        from ptl_fast.scoring.evidence import Evidence

        self.own = {"seed": seed, "device": "cpu", "eval_tasks": [TASKS[split]]}
        self.configure(settings)
        self.tokenizer = loading.load_tokenizer("ptl-demo")
        (task,) = tasks.parse_tasks(self.config.evaluation.eval_tasks)
        self.task = tasks.load_lm_eval_task(task)
        documents = itertools.islice(
            readers.open_parts("ptl-demo", documents_module.Form())[0].documents, NUM_DOCUMENTS
        )
        part = readers.Part("ptl-demo", 1.0, documents)
        split_as = {
            "shares": [1.0],
            "num_tokens": None,
            "num_held_out": 0,
            "seed": seed,
            "keep_documents": True,
        }
        self.corpus = sampling.split_corpus([part], self.tokenizer, **split_as)  # type: ignore[arg-type]
        pad, length = packing.padding_token(self.tokenizer), self.config.data.sequence_length
        self.tokens = packing.pack(self.corpus.subsets[0], length, pad)
        self.model = loading.load_model("ptl-demo", self.config.model, "cpu")
        family = find_family(self.model)
        calibration = self.tokens.first(self.config.score.calibration_tokens)
        taken = statistics_module.collect(
            self.model, family, calibration, self.config.trainer.micro_batch
        )
        step = schedule.Round(
            number=1, kind="neurons", width=width, num_layers=4, recovery_share=1.0
        )
        scores = scorers.activation(
            Evidence(statistics=taken, model=self.model, family=family, seed=seed)
        )
        compact.compact_(self.model, family, plan.plan_neurons(step, scores, None, "activation"))

    def configure(self, settings: dict[str, Any]) -> None:
        """Recover by other settings from here on; the pruned model stays the same."""
        self.config: Config = make_config(**{**settings, **self.own})

    def recover(self, model: "PreTrainedModel", name: str, num_tokens: int = 0) -> Row:
        """Recover in place, and measure."""
        from ptl_fast.recovery import registry

        with tempfile.TemporaryDirectory() as folder:
            task = self._task(Path(folder), num_tokens)
            train = functools.partial(registry.recover, [name], model, task)
            # CPU time: training on a machine that others use does not count their work
            spent, seconds = timed(train, clock.cpu_seconds)
        taken = {"tokens": spent.num_tokens, "cpu_seconds": round(seconds, 1)}
        return {"accuracy": self.accuracy(model), **taken, **spent.details}

    def accuracy(self, model: "PreTrainedModel") -> float:
        """Per cent of the problems that greedy decoding answers right."""
        from ptl_fast.evaluation import tasks

        (value,) = tasks.run_lm_eval(
            model,
            self.tokenizer,
            self.task,
            self.config.evaluation.eval_batch,
            self.config.evaluation.eval_limit,
        ).metrics.values()
        return round(100 * value, 1)

    def _task(self, folder: Path, num_tokens: int) -> "RecoveryTask":
        from ptl_fast.base.run_files import RunFiles
        from ptl_fast.recovery.task import RecoveryTask

        return RecoveryTask(
            tokens=self.tokens,
            num_tokens=num_tokens,
            name="round-01",
            folder=RunFiles(folder).round(1).recovery_folder(),
            log_folder=folder / "log",
            tokenizer=self.tokenizer,
            problems=self.corpus.documents[0],
            model=self.config.model,
            trainer=self.config.trainer,
            distill=self.config.distill,
            opd=self.config.opd,
            grpo=self.config.grpo,
            seed=self.config.run.seed,
        )


def measure_arms(
    pruned: PrunedModel,
    rows: dict[str, Row],
    on_row: Callable[[str, Row], None],
    first_tokens: int,
) -> None:
    """Measure the arms: untouched; grpo; cpt and then grpo; and cpt alone for as long as those two
    together took.

    Each row goes to ``on_row``, which adds it to ``rows``. A row that is there is not measured
    again, except that the row of grpo after cpt needs cpt's model.
    """
    if "untouched" not in rows:
        accuracy = pruned.accuracy(pruned.model)
        on_row("untouched", {"accuracy": accuracy, "tokens": 0, "cpu_seconds": 0.0})
    if "grpo" not in rows:
        on_row("grpo", pruned.recover(copy.deepcopy(pruned.model), "grpo"))
    if "cpt, then grpo" not in rows:
        model = copy.deepcopy(pruned.model)
        before = pruned.recover(model, "cpt", first_tokens)
        on_row("cpt", before)
        after = pruned.recover(model, "grpo")
        seconds = round(before["cpu_seconds"] + after["cpu_seconds"], 1)
        on_row("cpt, then grpo", {**after, "tokens": before["tokens"], "cpu_seconds": seconds})
    if "cpt, as long" not in rows:
        longer = rows["cpt, then grpo"]["cpu_seconds"] / rows["cpt"]["cpu_seconds"]
        num_tokens = round(first_tokens * longer)
        on_row("cpt, as long", pruned.recover(copy.deepcopy(pruned.model), "cpt", num_tokens))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what --json does not hold yet; it is written after every row.

    Raises:
        ValueError: --json holds rows of other settings.
    """
    setup = {
        "split": options.split,
        "width": options.width,
        "first_tokens": options.first_tokens,
        "settings": options.settings,
    }
    results: dict[str, Any] = {"setup": setup, "environment": {}, "rows": {}}
    if options.json.is_file():
        results = json.loads(options.json.read_text())
        if results["setup"] != setup:
            raise ValueError(
                f"{options.json} holds rows of other settings ({results['setup']}); give another"
                " --json or delete it"
            )
    results["environment"] = {
        "device": processor_name(),
        "commit": short_commit(),
        "threads": torch.get_num_threads(),
    }
    for seed in options.seeds:
        rows = results["rows"].setdefault(str(seed), {})

        def on_row(arm: str, row: Row, seed: int = seed, rows: dict[str, Row] = rows) -> None:
            rows[arm] = row
            write_json(options.json, results)
            print(
                f"seed {seed}, {arm}: {row['accuracy']}% after {row['cpu_seconds']} CPU seconds",
                flush=True,
            )

        if "cpt, as long" not in rows:  # the last arm
            pruned = PrunedModel(seed, options.split, options.settings, options.width)
            measure_arms(pruned, rows, on_row, options.first_tokens)
    return results
