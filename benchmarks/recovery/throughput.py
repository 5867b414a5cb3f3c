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
tokens a step, in turns: each starts with a copy of the model, and its first step is not timed.
Tokens are those of documents, padding not counted. Utilisation is the FLOPs of three forward passes
(flops.py) for these tokens, over the rate of a large matrix product on this device. Where another
attention or kernel changes ours' first loss by more than its rounding could, the program stops.
"""

import argparse
import contextlib
import copy
import importlib.util
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    trainer,
)

from benchmarks.harness import clock
from benchmarks.harness.ceilings import ceilings
from benchmarks.harness.environment import environment
from benchmarks.harness.results import MEASURED, write_text
from benchmarks.harness.stopwatch import FLUSH_BYTES, Stopwatch
from ptl_fast.config.model import ModelSettings
from ptl_fast.config.trainer import TrainerSettings
from ptl_fast.data import packing as packing_module
from ptl_fast.data import readers, sampling
from ptl_fast.model import flops, loading
from ptl_fast.model.families import feed_forwards, find_family
from ptl_fast.recovery import continual_pretraining
from ptl_fast.recovery import liger as liger_kernels
from ptl_fast.recovery.task import RecoveryTask
from ptl_kernels import fused_ffns

LOSS_TOLERANCE = 0.02
SEED = 0
PACKED = (
    "ours",
    "ours, fused FFN",
    "ours, flash attention",
    "ours, Liger",
)  # the same sequences in the same order


@dataclass
class Steps:
    """What one training did: seconds of each step and the losses."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    tokens_per_step: float = 0.0


class StepTimer(TrainerCallback):
    """Notes when steps begin and end."""

    def __init__(self, steps: Steps, device: torch.device) -> None:
        self.steps, self.device, self.start = steps, device, 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = clock.now(self.device)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps.seconds.append(clock.now(self.device) - self.start)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "loss" in kwargs["logs"]:
            self.steps.losses.append(float(kwargs["logs"]["loss"]))


@contextlib.contextmanager
def timed(device: torch.device) -> Iterator[Steps]:
    """Inside, every Trainer is timed, whoever makes it."""
    steps = Steps()
    callbacks: list[Any] = trainer.DEFAULT_CALLBACKS
    callbacks.append(StepTimer(steps, device))
    try:
        yield steps
    finally:
        callbacks.pop()


@dataclass(frozen=True)
class Bench:
    """What every contender trains, and how much."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    documents: list[list[int]]
    sequence_length: int
    batch: int
    num_steps: int

    def settings(self, **settings: Any) -> TrainerSettings:
        """Settings of our own training."""
        sizes = {"global_batch": self.batch, "micro_batch": self.batch}
        return TrainerSettings(
            **{
                **sizes,
                "gradient_checkpointing": False,
                "checkpoint_minutes": 1e6,
                **settings,
            }
        )

    def packed(self) -> packing_module.PackedTokens:
        """The documents as a round packs them."""
        return packing_module.pack(
            self.documents, self.sequence_length, packing_module.padding_token(self.tokenizer)
        )

    def documents_per_step(self) -> int:
        """As many as hold about the tokens of a step on packed sequences."""
        mean = sum(map(len, self.documents)) / len(self.documents)
        return max(1, round(self.batch * self.packed().num_tokens / len(self.packed()) / mean))


def ours(
    bench: Bench, model: PreTrainedModel, fused: bool = False, packing: bool = True, **settings: Any
) -> Steps:
    """Train as a round's recovery does."""
    tokens, batch = (
        (bench.packed(), bench.batch)
        if packing
        else (a_document_a_row(bench), bench.documents_per_step())
    )
    trainer = bench.settings(global_batch=batch, micro_batch=batch, fused_ffn=fused, **settings)
    order = continual_pretraining.Sequences(tokens, bench.num_steps * batch, SEED).order
    per_step = float(tokens.rows(order).num_tokens / bench.num_steps)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if fused:
            stack.enter_context(fused_ffns(feed_forwards(model, find_family(model))))
        task = RecoveryTask(
            tokens=tokens,
            num_tokens=round(bench.num_steps * batch * tokens.num_tokens / len(tokens)),
            name="ours",
            folder=Path(folder) / "recovery",
            log_folder=Path(folder) / "log",
            tokenizer=bench.tokenizer,
            trainer=trainer,
            seed=SEED,
            has_own_ffn=fused,
        )
        steps = stack.enter_context(timed(model.device))
        continual_pretraining.train(model, task)
    steps.tokens_per_step = per_step
    return steps


def a_document_a_row(bench: Bench) -> packing_module.PackedTokens:
    """Documents without packing: each in a row of its own, padded to the longest."""
    pieces = [document[: bench.sequence_length] for document in bench.documents]
    length, pad = max(map(len, pieces)), packing_module.padding_token(bench.tokenizer)
    input_ids = torch.tensor([[*piece, *[pad] * (length - len(piece))] for piece in pieces])
    mask = torch.tensor([[True] * len(piece) + [False] * (length - len(piece)) for piece in pieces])
    return packing_module.PackedTokens(
        input_ids, torch.arange(length).expand_as(input_ids).where(mask, 0), mask
    )


def plain_trl(bench: Bench, model: PreTrainedModel, liger: bool = False) -> Steps:
    """trl's SFTTrainer on the documents, already tokenized."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    seen: list[int] = []

    class Counting(SFTTrainer):
        def training_step(
            self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
        ) -> Any:
            seen.append(
                int(inputs["attention_mask"].sum())
                if "attention_mask" in inputs
                else inputs["input_ids"].numel()
            )
            return super().training_step(model, inputs, *args, **kwargs)

    with tempfile.TemporaryDirectory() as folder, timed(model.device) as steps:
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=bench.num_steps,
            per_device_train_batch_size=bench.documents_per_step(),
            max_length=bench.sequence_length,
            packing=False,
            learning_rate=bench.settings().learning_rate,
            gradient_checkpointing=False,
            bf16=model.dtype == torch.bfloat16,
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=model.device.type != "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_liger_kernel=liger,
            seed=SEED,
        )
        rows = Dataset.from_list([{"input_ids": list(document)} for document in bench.documents])
        plain = Counting(
            model=model, args=arguments, train_dataset=rows, processing_class=bench.tokenizer
        )
        plain.remove_callback(PrinterCallback)
        plain.train()
    steps.tokens_per_step = sum(seen) / max(1, len(seen))
    return steps


Contender = Callable[[Bench, PreTrainedModel], Steps]


def contenders(model: PreTrainedModel, liger: bool) -> dict[str, Contender | str]:
    """Each way to train, or why it is not measured."""
    on_gpu = model.device.type == "cuda"
    flash = on_gpu and importlib.util.find_spec("flash_attn") is not None

    def with_flash(bench: Bench, model: PreTrainedModel) -> Steps:
        model.set_attn_implementation("flash_attention_2")
        return ours(bench, model)

    no_liger = "a GPU and --liger are needed"
    return {
        "ours": ours,
        "ours, fused FFN": lambda bench, model: ours(bench, model, fused=True),
        "ours, without packing": lambda bench, model: ours(bench, model, packing=False),
        "ours, flash attention": with_flash if flash else "a GPU and flash-attn are needed",
        "ours, Liger": (lambda bench, model: ours(bench, model, liger=True)) if liger else no_liger,
        "TRL": plain_trl,
        "TRL, Liger": (lambda bench, model: plain_trl(bench, model, liger=True))
        if liger
        else no_liger,
    }


def measure(bench: Bench, num_rounds: int, peak: float, liger: bool) -> list[dict[str, Any]]:
    """A row for each contender; they take turns ``num_rounds`` times."""
    every = contenders(bench.model, liger)
    run: dict[str, Contender] = {
        name: way for name, way in every.items() if not isinstance(way, str)
    }
    results: dict[str, list[Steps]] = {name: [] for name in run}
    for number in range(num_rounds):
        for name in list(run) if number % 2 == 0 else list(run)[::-1]:
            context = (
                liger_kernels.unpatched_afterwards(bench.model)
                if "Liger" in name
                else contextlib.nullcontext()
            )
            with context:
                results[name].append(run[name](bench, copy.deepcopy(bench.model)))
        check_losses({name: steps[-1].losses[0] for name, steps in results.items()})
    rates = {name: [rate(steps) for steps in each] for name, each in results.items()}
    per_token = (
        3 * flops.model_size(bench.model.config, bench.sequence_length // 2)["flops_per_token"]
    )
    rows: list[dict[str, Any]] = []
    for name, way in every.items():
        if isinstance(way, str):
            rows.append({"way": name, "status": f"not measured: {way}"})
            continue
        ratios = sorted(mine / other for mine, other in zip(rates[name], rates["TRL"], strict=True))
        median = statistics.median(rates[name])
        row: dict[str, Any] = {
            "way": name,
            "status": MEASURED,
            "tokens_per_second": median,
            "utilisation": median * per_token / peak,
        }
        row |= {"vs_trl": statistics.median(ratios), "vs_trl_range": [ratios[0], ratios[-1]]}
        rows.append(
            {
                **row,
                "tokens_per_step": results[name][0].tokens_per_step,
                "first_loss": results[name][0].losses[0],
            }
        )
    return rows


def rate(steps: Steps) -> float:
    """Tokens per second after the first step, which warms up."""
    return steps.tokens_per_step / statistics.median(steps.seconds[1:])


def check_losses(first: dict[str, float]) -> None:
    """Stop where a faster kernel trains on something else. Others see other documents in their
    first step.
    """
    for name in PACKED:
        if name in first and abs(first[name] / first["ours"] - 1) > LOSS_TOLERANCE:
            raise SystemExit(
                f"refusing to time {name!r}: its first loss is {first[name]:.4f}, and ours"
                f" {first['ours']:.4f}"
            )


def table_row(row: dict[str, Any]) -> list[str]:
    """Cells of one line: way, tokens/s, utilisation, against TRL."""
    if row["status"] != MEASURED:
        return [row["way"], *[row["status"]] * 3]
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
    needed = (options.steps + 1) * options.batch * options.sequence_length
    documents = [
        list(ids)
        for ids in sampling.tokenize(readers.load_documents(options.data), tokenizer, needed)
    ]
    bench = Bench(
        model, tokenizer, documents, options.sequence_length, options.batch, options.steps
    )
    kind, dtype_name = device.partition(":")[0], str(model.dtype).removeprefix("torch.")
    peak = (
        1e12
        * ceilings(kind, Stopwatch(device, FLUSH_BYTES[kind]), quick=False)["gemm_tflops"][
            dtype_name
        ]
    )
    results: dict[str, Any] = {
        "environment": environment(kind),
        "model": Path(options.model).name,
        "dtype": dtype_name,
        "sequence_length": options.sequence_length,
        "batch": options.batch,
        "gemm_tflops": peak / 1e12,
        "rows": measure(bench, options.rounds, peak, options.liger),
    }
    print("| way | tokens/s | utilisation | / TRL (lowest to highest) |\n|---|--:|--:|--:|")
    for row in results["rows"]:
        print(f"| {' | '.join(table_row(row))} |")
    if options.json:
        write_text(options.json, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
