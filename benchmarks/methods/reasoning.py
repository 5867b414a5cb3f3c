"""A chat model that was made smaller: does it still solve problems? Every method on the same
problems, judged by right answers, problem by problem.

    python -m benchmarks.methods.reasoning --model DIR --data DATA --traces gsm8k=FILE mbpp=FILE \
        --allow-code-execution
    python -m benchmarks.methods.reasoning ... --list
    python -m benchmarks.methods.reasoning ... --cells 'default_80_*' --seconds 3600
    python -m benchmarks.methods.reasoning ... --development --variant ridge:calibration_tokens=8192
    python -m benchmarks.methods.reasoning ... --small      # two cells in half an hour

A cell is a model: the dense one, or what a method leaves of it at a share of its parameters. It is
calibrated and pruned in float32, then answers 150 problems of GSM8K and 150 of MBPP, greedily, in
its chat template. DATA holds gsm8k/ and mbpp/ as train.jsonl, test.jsonl and (MBPP)
validation.jsonl. Cells run in the order of their importance; interrupted, the same command goes on
where it was, also inside a cell. --traces are rows of the model's own answers to training problems,
{messages: [user, assistant]} or {problem, answer} with the problem's number in the training file;
without them the model answers some itself first.

Test problems are the first rows of the test files. For choices use --development: rows of GSM8K's
training file from 7000 on, and MBPP's validation file; its results are in a folder of their own.
benchmarks.documents.reasoning_table writes docs/reasoning.md from the results.
"""

import argparse
import fnmatch
import functools
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.environment import ROOT
from benchmarks.harness.results import errors_in_one_line
from benchmarks.methods import reasoning_cells, reasoning_problems, reasoning_results
from benchmarks.methods.one_calibration import one_calibration
from benchmarks.methods.reasoning_cells import DENSE, METHODS, Cell, Plan
from benchmarks.methods.reasoning_problems import PROBLEM_SETS, Problems
from benchmarks.methods.reasoning_run import Bench, progress, run_cell
from benchmarks.methods.reasoning_traces import make_traces
from ptl_fast.config.model import ModelSettings
from ptl_fast.model import loading

LENGTH = 1024  # of the packed sequences that models are calibrated and trained on
NUM_PROBLEMS, NUM_TRACED = 150, 512
SMALL_PROBLEMS, SMALL_CALIBRATION = 32, 8192
SMALL_CELLS = (Cell(method=DENSE), Cell(share=reasoning_cells.SHARES[0]))
FINISHED = "finished"
SHARED = os.environ.get("PTL_SHARED_DATA", str(ROOT.parent / "shared" / "data"))


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when every chosen cell is finished or out of time, 1 when one failed."""
    options = parse(arguments)
    if options.list:
        print("\n".join(f"{cell.name:40} {status}" for cell, status in chosen(options)))
        return 0
    start = time.monotonic()
    with errors_in_one_line():
        torch.set_num_threads(options.threads)
        bench = make_bench(options)

    def out_of_time() -> bool:
        # looked at between batches: a cell may run over by one of them, or by its pruning
        return options.seconds is not None and time.monotonic() - start > options.seconds

    failed = 0
    tried: set[str] = set()
    try:
        with one_calibration():
            # asked again after each: which methods lead after pruning is known only then
            while (cell := _next(options, tried)) is not None and not out_of_time():
                tried.add(cell.name)
                failed += not _run(cell, bench, out_of_time)
    except KeyboardInterrupt:
        print("interrupted; the same command continues from here", file=sys.stderr)
        return 130
    if out_of_time():
        print(f"stopped after {options.seconds:.0f} s; the same command continues from here")
    return 1 if failed else 0


def _next(options: argparse.Namespace, tried: set[str]) -> Cell | None:
    """The first cell that is neither finished nor was tried by this command; None without any."""
    return next(
        (cell for cell, status in chosen(options) if status != FINISHED and cell.name not in tried),
        None,
    )


def chosen(options: argparse.Namespace) -> list[tuple[Cell, str]]:
    """The cells that --cells and --small name, each with what is known of it."""
    found = reasoning_results.read_all(options.results)
    plan = Plan(
        shares=options.shares,
        more_shares=options.more_shares,
        seeds=options.seeds,
        variants=list(options.variant),
    )
    cells = list(SMALL_CELLS) if options.small else reasoning_cells.cells(plan, found)
    named = [
        each
        for each in cells
        if any(fnmatch.fnmatch(each.name, pattern) for pattern in options.cells)
    ]
    return [(each, _status(each, found.get(each.name))) for each in named]


def _status(cell: Cell, result: dict[str, Any] | None) -> str:
    if result is None:
        return "waiting"
    return FINISHED if result["finished"] else progress(result)


def _run(cell: Cell, bench: Bench, out_of_time: Any) -> bool:
    """Run one cell; a cell that cannot run says why and does not stop the others."""
    try:
        if cell.method != DENSE:
            lacks = reasoning_cells.missing(bench.settings(cell))
            if lacks:
                print(f"{cell.name}: left out, as this version lacks {', '.join(lacks)}")
                return True
        print(f"{cell.name}: {progress(run_cell(cell, bench, out_of_time))}", flush=True)
    except (ValueError, OSError) as error:
        print(f"{cell.name}: failed: {' '.join(str(error).split())}", file=sys.stderr)
        return False
    return True


def make_bench(options: argparse.Namespace) -> Bench:
    """What all cells have in common. Writes their calibration data; makes traces if none are given.

    Raises:
        ValueError: data or settings do not fit.
    """
    kind = "development" if options.development else "test"
    load = functools.partial(reasoning_problems.load_problems, options.data)
    problems, training = load(kind, options.problems), load("training", None)
    positions = getattr(loading.load_config(options.model), "max_position_embeddings", None)
    work = options.work / Path(options.model).name
    unseen = [*problems.values(), *load("development" if kind == "test" else "test", None).values()]
    exchanges = {}
    for name in PROBLEM_SETS:
        written = reasoning_problems.written_exchanges(options.data, name)
        traces = reasoning_problems.read_traces(
            _traces(options, name, work, training[name]), training[name].questions
        )
        for kind_of_answers, found in (("written", written), ("traces", traces)):
            file = work / "data" / f"{name}-{kind_of_answers}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            reasoning_problems.write_exchanges(file, found, unseen)
            exchanges[f"{name}-{kind_of_answers}"] = file
    options.results.mkdir(parents=True, exist_ok=True)
    base = {
        "model": options.model,
        "device": options.device,
        "dtype": "float32",
        "template": "chat",
        "calibration_tokens": options.calibration_tokens,
        "recovery_tokens": options.recovery_tokens,
        "sequence_length": min(LENGTH, positions or LENGTH),
        "global_batch": 8,
        "micro_batch": 1,
        "eval_batch": 2,
        # a run measures something; what counts here is measured below
        "eval_tasks": [f"nll={exchanges['gsm8k-traces']}"],
        "eval_limit": 4,
        **_config(options.config),
        "data": str(exchanges["gsm8k-traces"]),
    }
    return Bench(
        model=options.model,
        problems=problems,
        exchanges=exchanges,
        base=base,
        methods={**METHODS, **options.variant},
        width_multiple=options.width_multiple,
        device=options.device,
        dtype=options.dtype,
        batch_size=options.batch,
        max_tokens=options.max_tokens,
        folder=options.results,
        work=work / kind,
        runs=work / "runs",
        keep_models=options.keep_models,
    )


def _traces(options: argparse.Namespace, name: str, work: Path, training: Problems) -> Path:
    """The file of the model's own answers to training problems of a benchmark."""
    if name in options.traces:
        return Path(options.traces[name])
    file = work / "traces" / f"{name}.jsonl"
    problems = Problems(training.task, training.rows[: options.num_traced])
    num_made = len(file.read_text().splitlines()) if file.is_file() else 0
    if num_made < len(problems.rows):
        file.parent.mkdir(parents=True, exist_ok=True)
        model = loading.load_model(
            options.model, ModelSettings(dtype=options.dtype, attn="sdpa"), options.device
        )
        tokenizer = loading.load_tokenizer(options.model)
        make_traces(model, tokenizer, problems, file, options.batch, options.max_tokens)
    return file


def _config(file: Path | None) -> dict[str, Any]:
    """The settings of --config, for every cell."""
    if file is None:
        return {}
    import yaml

    return yaml.safe_load(file.read_text())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Flags; what --small and --development change is already in the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="folder or hub name of a model with a chat template")
    add("--data", type=Path, default=Path(SHARED), help="folder with gsm8k/ and mbpp/")
    add("--traces", nargs="*", default=[], metavar="BENCHMARK=FILE", help="own answers")
    add("--num-traced", type=int, default=NUM_TRACED, help="problems that it answers without them")
    add("--list", action="store_true", help="print the cells and what is known of them, and stop")
    add("--cells", nargs="*", default=["*"], metavar="PATTERN", help="only cells with such names")
    add("--small", action="store_true", help="two cells, few problems: half an hour")
    add("--development", action="store_true", help="on held-back training problems, for choices")
    add("--variant", action="append", default=[], metavar="NAME:SETTING=VALUE,...")
    add("--config", type=Path, help="YAML file of settings of ptl_fast.compress for every cell")
    add("--shares", type=float, nargs="*", default=list(reasoning_cells.SHARES))
    add("--more-shares", type=float, nargs="*", default=list(reasoning_cells.MORE_SHARES))
    add("--seeds", type=int, nargs="*", default=[0])
    add("--seconds", type=float, help="stop after this time, between two batches of answers")
    add("--problems", type=int, default=None, help=f"of each benchmark (default: {NUM_PROBLEMS})")
    add("--calibration-tokens", type=int, default=None, help="default: 131072")
    add("--recovery-tokens", type=int, default=300_000)
    add("--width-multiple", type=int, default=64)
    add("--max-tokens", type=int, default=512, help="longer answers are cut off")
    add("--batch", type=int, default=50, help="problems answered at once")
    add("--dtype", default="bfloat16", choices=["bfloat16", "float32", "float16"])
    add("--device", default="cpu")
    add("--threads", type=int, default=1)
    add("--results", type=Path, help="default: a folder in benchmarks/results")
    add("--work", type=Path, default=Path("runs/reasoning"), help="for runs and what models wrote")
    add("--keep-models", action="store_true", help="keep the runs of finished cells")
    add(
        "--allow-code-execution", action="store_true", help="MBPP runs what models write, sandboxed"
    )
    options = parser.parse_args(arguments)
    if not options.allow_code_execution and not options.list:
        parser.error(
            "MBPP runs the code that the models write, in a sandbox (ptl_fast/evaluation/sandbox.py"
            " says what it does not protect from); allow it with --allow-code-execution"
        )
    try:
        options.variant = dict(map(reasoning_cells.variant, options.variant))
    except ValueError as error:
        parser.error(str(error))
    pairs = dict(each.partition("=")[::2] for each in options.traces)
    if pairs.keys() - PROBLEM_SETS.keys():
        parser.error(f"--traces are BENCHMARK=FILE with BENCHMARK of {', '.join(PROBLEM_SETS)}")
    options.traces = pairs
    small = options.small
    options.problems = options.problems or (SMALL_PROBLEMS if small else NUM_PROBLEMS)
    options.calibration_tokens = options.calibration_tokens or (
        SMALL_CALIBRATION if small else reasoning_cells.CALIBRATION_TOKENS
    )
    suffix = ("_small" if small else "") + ("_development" if options.development else "")
    options.results = options.results or ROOT / "benchmarks" / "results" / f"reasoning{suffix}"
    return options


if __name__ == "__main__":
    sys.exit(main())
