"""What a recovery is worth: the bundled model is pruned once, and each way of recovering starts
from that same pruned model.

    python -m benchmarks.recovery.study                                     # test problems, seeds
    0, 1, 2
    python -m benchmarks.recovery.study --split validation --seeds 10 11    # to choose settings;
    writes elsewhere
    python -m benchmarks.recovery.study --section distillation              # whole runs: see
    benchmarks/recovery/distillation.py python -m benchmarks.recovery.study --render
    # docs/recovery.md again, from the rows alone

Interrupted, the same command goes on with the next row. Time is the process's CPU time, so that
other work on the machine does not count; with one thread (OMP_NUM_THREADS=1) on a free core it is
the time that passes.
"""

import argparse
import copy
import functools
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.environment import processor_name
from benchmarks.harness.markdown import Makers, fill
from benchmarks.harness.results import commit, write_text
from benchmarks.recovery import distillation as distillation_module
from ptl_fast.config.config import Config
from ptl_fast.run.start import make_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.recovery.task import RecoveryTask

ROOT = Path(__file__).parents[2]
DOCUMENT, RESULTS = (
    ROOT / "docs" / "recovery.md",
    ROOT / "benchmarks" / "results" / "recovery_demo.json",
)
TASKS = {"test": "demo_arithmetic", "validation": "demo_arithmetic_validation"}
NUM_DOCUMENTS = 8000
# How text is trained on, and the width of evaluation; not a preset's, so that the rows do not
# change when one does.
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


class Seed:
    """The pruned model of one seed and what it recovers on; both the same for every arm."""

    def __init__(self, seed: int, split: str, settings: dict[str, Any], width: int) -> None:
        # training is imported too, so that its time is not counted as a recovery's
        from ptl_fast.data import documents as documents_module
        from ptl_fast.data import packing, readers, sampling
        from ptl_fast.evaluation import tasks
        from ptl_fast.model import loading
        from ptl_fast.model.families import find_family
        from ptl_fast.pruning import compact, plan, schedule
        from ptl_fast.scoring import scorers
        from ptl_fast.scoring import statistics as statistics_module

        self.config: Config = make_config(
            **{**settings, "seed": seed, "device": "cpu", "eval_tasks": [TASKS[split]]}
        )
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
            scorers.Evidence(statistics=taken, model=self.model, family=family, seed=seed)
        )
        compact.compact_(self.model, family, plan.plan_neurons(step, scores, None, "activation"))

    def recover(self, model: "PreTrainedModel", name: str, num_tokens: int = 0) -> Row:
        """Recover in place, and measure."""
        from ptl_fast.recovery import registry

        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            spent = registry.recover([name], model, self._task(Path(folder), num_tokens))
            seconds = time.process_time() - start
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
        ).values()
        return round(100 * value, 1)

    def _task(self, folder: Path, num_tokens: int) -> "RecoveryTask":
        from ptl_fast.recovery.task import RecoveryTask

        return RecoveryTask(
            tokens=self.tokens,
            num_tokens=num_tokens,
            name="round-01",
            folder=folder / "round-01" / "recovery",
            log_folder=folder / "log",
            tokenizer=self.tokenizer,
            problems=self.corpus.documents[0],
            model=self.config.model,
            trainer=self.config.trainer,
            distill=self.config.distill,
            grpo=self.config.grpo,
            seed=self.config.run.seed,
        )


def reinforcement_rows(
    seed: Seed, rows: dict[str, Row], done: Callable[[str, Row], None], first_tokens: int
) -> None:
    """Untouched; grpo; cpt and then grpo; and cpt alone for as long as those two together took.

    A row that is there is not measured again, except that the row after cpt needs its model.
    """
    if "untouched" not in rows:
        done("untouched", {"accuracy": seed.accuracy(seed.model), "tokens": 0, "cpu_seconds": 0.0})
    if "grpo" not in rows:
        done("grpo", seed.recover(copy.deepcopy(seed.model), "grpo"))
    if "cpt, then grpo" not in rows:
        model = copy.deepcopy(seed.model)
        before = seed.recover(model, "cpt", first_tokens)
        done("cpt", before)
        after = seed.recover(model, "grpo")
        seconds = round(before["cpu_seconds"] + after["cpu_seconds"], 1)
        done("cpt, then grpo", {**after, "tokens": before["tokens"], "cpu_seconds": seconds})
    if "cpt, as long" not in rows:
        longer = rows["cpt, then grpo"]["cpu_seconds"] / rows["cpt"]["cpu_seconds"]
        done(
            "cpt, as long",
            seed.recover(copy.deepcopy(seed.model), "cpt", round(first_tokens * longer)),
        )


def reinforcement_table(results: dict[str, Any]) -> list[list[str]]:
    """Accuracy of each arm: mean, lowest and highest over seeds."""
    named = {
        "untouched": "the pruned model, untouched",
        "grpo": "`grpo`",
        "cpt": "`cpt`, short",
        "cpt, then grpo": "`cpt,grpo`: short, then reinforced",
        "cpt, as long": "`cpt` alone, as long as that",
    }
    table = [
        [
            "recovery",
            "accuracy %, mean (lowest to highest)",
            "seeds",
            "CPU seconds",
            "tokens of text",
            "rollouts",
        ]
    ]
    for arm, name in named.items():
        rows = [arms[arm] for arms in results["rows"].values() if arm in arms]
        if not rows:
            table.append([name, *["not measured"] * 5])
            continue
        values = [row["accuracy"] for row in rows]
        accuracy = f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
        seconds, tokens = (
            f"{statistics.mean(row[key] for row in rows):,.0f}" for key in ("cpu_seconds", "tokens")
        )
        rollouts = f"{rows[0]['grpo']['rollouts']:,}" if "grpo" in rows[0] else "0"
        table.append([name, accuracy, str(len(rows)), seconds, tokens, rollouts])
    return table


# {marker in the document: (rows of a seed, table)}
SECTIONS = {"reinforcement": reinforcement_table}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what --json does not hold yet; it is written after every row."""
    setup = {
        "split": options.split,
        "width": options.width,
        "first_tokens": options.first_tokens,
        "settings": options.settings,
    }
    results = {"setup": setup, "environment": {}, "rows": {}}
    if options.json.is_file():
        results = json.loads(options.json.read_text())
        if results["setup"] != setup:
            raise ValueError(
                f"{options.json} holds rows of other settings ({results['setup']}); give another"
                " --json or delete it"
            )
    results["environment"] = {"device": processor_name(), "commit": commit(), "threads": _threads()}
    for number in options.seeds:
        rows = results["rows"].setdefault(str(number), {})

        def done(arm: str, row: Row, number: int = number, rows: dict[str, Row] = rows) -> None:
            rows[arm] = row
            write_text(options.json, json.dumps(results, indent=1) + "\n")
            print(
                f"seed {number}, {arm}: {row['accuracy']}% after {row['cpu_seconds']} CPU seconds",
                flush=True,
            )

        if "cpt, as long" not in rows:
            reinforcement_rows(
                Seed(number, options.split, options.settings, options.width),
                rows,
                done,
                options.first_tokens,
            )
    return results


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def render(results: dict[str, Any], document: Path) -> None:
    makers: Makers = {name: functools.partial(make, results) for name, make in SECTIONS.items()}
    makers |= distillation_module.makers(RESULTS.parent)
    write_text(document, fill(document.read_text(), makers))


def distillation(options: argparse.Namespace) -> int:
    """Measure the rows of that section; by default its file of rows has a name for each split."""
    from ptl_fast.base.console import quiet_libraries

    quiet_libraries()
    file = options.json or RESULTS.parent / f"recovery_distill_{options.split}.json"
    distillation_module.run(options.split, TASKS[options.split], options.seeds, file, options.only)
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--section", choices=["reinforcement", "distillation"], default="reinforcement"
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
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    parser.add_argument(
        "--render",
        action="store_true",
        help="measure nothing; write the document's tables from --json",
    )
    options = parser.parse_args(arguments)
    if options.section == "distillation":
        return distillation(options)
    options.json = options.json or RESULTS
    if options.split != "test" and options.json == RESULTS:
        parser.error("--split validation needs a --json of its own")
    from ptl_fast.base.console import quiet_libraries

    try:
        if not options.render:
            quiet_libraries()
        results = json.loads(options.json.read_text()) if options.render else measure(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.split == "test":
        render(results, options.document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
