"""How fast is recovery? Tokens per second and model-FLOPs utilisation of our training, step by
step, beside plain TRL's.

    python -m benchmarks.recovery.throughput [--model DIR --data FILE] --json FILE

- ours: continual pre-training as a round runs it, on packed sequences
- ours, fused FFN: the same with --fused-ffn
- ours, without packing: a document a row, padded to the longest
- ours, flash attention: packed sequences in one row (a GPU, and flash-attn installed)
- ours, Liger; TRL, Liger: with --liger (a GPU, and liger-kernel installed)
- TRL: trl's SFTTrainer as it comes, on the same documents: no packing, a batch padded to its
  longest document

All train the same model with the same optimizer, without gradient checkpointing, on about as many
tokens a step. They take turns: each starts with a copy of the model, and its first step is not
timed. Tokens are those of documents, padding not counted. Utilisation (MFU) is the FLOPs of three
forward passes (ptl_fast/model/flops.py) for these tokens, over the rate of a large matrix product
on this device. Where another attention or kernel changes the first loss of ours by more than its
rounding could, the program stops.
"""

import argparse
import contextlib
import copy
import functools
import importlib.util
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.harness import clock
from benchmarks.harness.ceilings import ceilings
from benchmarks.harness.environment import dtype_name, environment
from benchmarks.harness.markdown import to_markdown
from benchmarks.harness.results import MEASURED, not_measured, write_json
from benchmarks.harness.stopwatch import FLUSH_BYTES, Stopwatch
from benchmarks.harness.turns import forth_and_back
from benchmarks.recovery.trainings import TimedSteps, TrainingSetup, train_ours, train_trl
from ptl_fast.config.model import ModelSettings
from ptl_fast.data import readers, sampling
from ptl_fast.model import flops, loading
from ptl_fast.recovery import liger as liger_kernels

LOSS_TOLERANCE = 0.02  # of the first loss, relative
# These train on the same sequences in the same order, so their first losses must agree.
PACKED = ("ours", "ours, fused FFN", "ours, flash attention", "ours, Liger")
COLUMNS = ["way", "tokens/s", "utilisation", "/ TRL (lowest to highest)"]

Training = Callable[[TrainingSetup, PreTrainedModel], TimedSteps]


def trainings(model: PreTrainedModel, liger: bool) -> dict[str, Training | str]:
    """Each way to train, or why it is not measured."""
    on_gpu = model.device.type == "cuda"
    flash = on_gpu and importlib.util.find_spec("flash_attn") is not None

    def with_flash(setup: TrainingSetup, model: PreTrainedModel) -> TimedSteps:
        model.set_attn_implementation("flash_attention_2")
        return train_ours(setup, model)

    no_liger = "a GPU and --liger are needed"
    return {
        "ours": train_ours,
        "ours, fused FFN": functools.partial(train_ours, fused=True),
        "ours, without packing": functools.partial(train_ours, packing=False),
        "ours, flash attention": with_flash if flash else "a GPU and flash-attn are needed",
        "ours, Liger": functools.partial(train_ours, liger=True) if liger else no_liger,
        "TRL": train_trl,
        "TRL, Liger": functools.partial(train_trl, liger=True) if liger else no_liger,
    }


def measure(
    setup: TrainingSetup, num_rounds: int, peak: float, liger: bool
) -> list[dict[str, Any]]:
    """A row for each way to train; they take turns ``num_rounds`` times.

    ``peak`` is the device's rate of matrix products, in FLOP/s.
    """
    every = trainings(setup.model, liger)
    measured = {name: train for name, train in every.items() if not isinstance(train, str)}
    results = train_in_turns(setup, measured, num_rounds)
    rates = {name: [rate(steps) for steps in of_name] for name, of_name in results.items()}
    # three forward passes: the backward pass computes about twice what the forward pass does; a
    # token of a sequence attends to half of it on average
    sizes = flops.model_size(setup.model.config, setup.sequence_length // 2)
    flops_per_token = 3 * sizes["flops_per_token"]
    rows: list[dict[str, Any]] = []
    for name, train in every.items():
        if isinstance(train, str):
            rows.append({"way": name, "status": not_measured(train)})
            continue
        ratios = sorted(mine / other for mine, other in zip(rates[name], rates["TRL"], strict=True))
        median = statistics.median(rates[name])
        rows.append(
            {
                "way": name,
                "status": MEASURED,
                "tokens_per_second": median,
                "utilisation": median * flops_per_token / peak,
                "vs_trl": statistics.median(ratios),
                "vs_trl_range": [ratios[0], ratios[-1]],
                "tokens_per_step": results[name][0].tokens_per_step,
                "first_loss": results[name][0].losses[0],
            }
        )
    return rows


def train_in_turns(
    setup: TrainingSetup, measured: dict[str, Training], num_rounds: int
) -> dict[str, list[TimedSteps]]:
    """The steps of every training, by name; each training starts with a copy of the model."""
    results: dict[str, list[TimedSteps]] = {name: [] for name in measured}
    for number in range(num_rounds):
        for name in forth_and_back(list(measured), number):
            # Liger patches transformers' classes, which the trainings after it must not inherit
            patched = (
                liger_kernels.unpatched_afterwards(setup.model)
                if "Liger" in name
                else contextlib.nullcontext()
            )
            with patched:
                results[name].append(measured[name](setup, copy.deepcopy(setup.model)))
        check_losses({name: steps[-1].losses[0] for name, steps in results.items()})
    return results


def rate(steps: TimedSteps) -> float:
    """Tokens per second after the first step, which warms up."""
    return steps.tokens_per_step / statistics.median(steps.seconds[1:])


def check_losses(first: dict[str, float]) -> None:
    """Stop the program where another kernel changes the first loss by more than rounding could.

    Ways that are not in PACKED have other documents in their first step and are not compared."""
    for name in PACKED:
        if name in first and abs(first[name] / first["ours"] - 1) > LOSS_TOLERANCE:
            raise SystemExit(
                f"refusing to time {name!r}: its first loss is {first[name]:.4f}, and ours"
                f" {first['ours']:.4f}"
            )


def table_row(row: dict[str, Any]) -> list[str]:
    """The cells of one row, by COLUMNS."""
    if row["status"] != MEASURED:
        return [row["way"], *[row["status"]] * (len(COLUMNS) - 1)]
    low, high = row["vs_trl_range"]
    return [
        row["way"],
        f"{row['tokens_per_second']:.0f}",
        f"{row['utilisation']:.0%}",
        f"{row['vs_trl']:.2f} ({low:.2f} to {high:.2f})",
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default=loading.DEMO, help="folder or hub name (default: the bundled model)"
    )
    parser.add_argument(
        "--data", default=loading.DEMO, help="what to train on (default: the bundled model's data)"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8, help="packed sequences in a step")
    parser.add_argument(
        "--steps", type=int, default=6, help="of one turn; at least 2, the first is not timed"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--liger", action="store_true", help="measure Liger's kernels too")
    parser.add_argument("--json", type=Path, help="file for the results")
    clock.add_flag(parser)
    options = parser.parse_args(arguments)
    clock.choose(options.clock)
    device = loading.resolve_device(options.device)
    if options.liger:
        liger_kernels.check_liger(device)
    if options.steps < 2:
        parser.error("--steps must be at least 2: the first one is not timed")
    torch.manual_seed(0)
    model = loading.load_model(
        options.model, ModelSettings(dtype=options.dtype, attn="sdpa"), device
    )
    tokenizer = loading.load_tokenizer(options.model)
    # one step more than is trained, since packing leaves a rest
    needed = (options.steps + 1) * options.batch * options.sequence_length
    documents = [
        list(ids)
        for ids in sampling.tokenize(readers.load_documents(options.data), tokenizer, needed)
    ]
    setup = TrainingSetup(
        model, tokenizer, documents, options.sequence_length, options.batch, options.steps
    )
    device_type, dtype = device.partition(":")[0], dtype_name(model.dtype)
    stopwatch = Stopwatch(device, FLUSH_BYTES[device_type])
    reached = ceilings(device_type, [model.dtype], stopwatch, quick=False)
    peak = 1e12 * reached["gemm_tflops"][dtype]
    results: dict[str, Any] = {
        "environment": environment(device_type),
        "model": Path(options.model).name,
        "dtype": dtype,
        "sequence_length": options.sequence_length,
        "batch": options.batch,
        "gemm_tflops": peak / 1e12,
        "rows": measure(setup, options.rounds, peak, options.liger),
    }
    print(to_markdown([COLUMNS, *map(table_row, results["rows"])]))
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
