"""Is the compressed model really faster? Two models in turns, against what their operations
predict.

    python -m benchmarks.inference.speedup --model DIR --compressed DIR --json FILE
    python -m benchmarks.inference.speedup --model DIR --width 1024 --layers 28
    python -m benchmarks.inference.speedup --shape llama3-8b

Without --compressed, both models get random weights: speed does not depend on their values. Without
--model and --shape, the bundled model against half its FFN width.

- prefill: a forward pass that fills the cache and computes the last position's logits, as
  generation does
- decode: the time of a token of every sequence in transformers' generate, after the first one
- paper: the protocol of arXiv 2602.04919, batch 1, 64 new tokens, five samples; it mixes prefill
  and decode, and at batch 1 the host's time between operations weighs most, so that it stands
  beside the others and not for them

Each sample times both models, one after the other, on fresh random tokens; the median ratio counts.
The prediction knows nothing of
these times: what the operations must take (roofline.py), and the host's part, measured on a twin
with as many layers and next to no arithmetic.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.harness import clock, nvml
from benchmarks.harness.environment import dtype_name, environment
from benchmarks.harness.models import SHAPES, random_model, resized, shape_config, tiny_twin
from benchmarks.harness.results import MEASURED, told_in_one_line, write_text
from benchmarks.harness.stopwatch import FLUSH_BYTES, Stopwatch
from benchmarks.inference import vllm_speed
from benchmarks.inference.roofline import Rates, Size, decode_operations, prefill_operations
from benchmarks.inference.workloads import Times, Work, run
from ptl_fast.config.model import ModelSettings
from ptl_fast.model import loading

COLUMNS = [
    "work",
    "engine",
    "batch",
    "prompt",
    "dense ms",
    "compressed ms",
    "speedup (p20 to p80)",
    "predicted",
    "of predicted",
    "status",
]
PAPER_SAMPLES, PAPER_PROMPT, PAPER_NEW_TOKENS = 5, 128, 64
# batch and prompt length, by whether the device is a CPU
PREFILL = {True: [(1, 128), (1, 512), (8, 256)], False: [(1, 512), (1, 4096), (8, 2048)]}
DECODE = {True: [(1, 64), (8, 64)], False: [(1, 512), (16, 512), (64, 512)]}
HOST_SAMPLES = 15
ENERGY_SECONDS = 1.0  # NVML's counter moves every tenth of a second or so
Pair = dict[str, PreTrainedModel]


def device_ms(model: PreTrainedModel, work: Work, rates: Rates) -> float:
    """Roofline of what ``Times.time_ms`` measures. Decode steps are all taken to be the one
    halfway.
    """
    seconds, width = 0.0, model.config.intermediate_size
    if work.work != "decode":
        seconds += rates.seconds(
            prefill_operations(model, work.batch_size, work.prompt_length), width
        )
    if work.work != "prefill":
        num_steps = 1 if work.work == "decode" else work.new_tokens - 1
        seconds += num_steps * rates.seconds(
            decode_operations(model, work.batch_size, work.context), width
        )
    return 1e3 * seconds


def host_ms(pair: Pair, work: Work) -> dict[str, float]:
    """The host's part of what ``Times.time_ms`` measures: the same work on one token of a twin,
    which is little else.
    """
    alone, times = replace(work, batch_size=1, prompt_length=1), dict[str, float]()
    for name, model in pair.items():
        same = [
            other
            for other in times
            if pair[other].config.num_hidden_layers == model.config.num_hidden_layers
        ]
        if same:  # one measurement for both, so that its noise is no difference
            times[name] = times[same[0]]
            continue
        twin = random_model(tiny_twin(model.config), str(model.device), model.dtype)
        run(twin, alone)
        times[name] = statistics.median(run(twin, alone).time_ms for _ in range(HOST_SAMPLES))
    return times


def predict(pair: Pair, work: Work, rates: Rates) -> dict[str, dict[str, float]]:
    """By model: what the device's operations must take, the host's part, and the whole.

    On a CPU one follows the other. A GPU works while the host prepares what comes next, so there
    the longer one counts."""
    predicted, host = {}, host_ms(pair, work)
    for name, model in pair.items():
        device = device_ms(model, work, rates)
        whole = device + host[name] if model.device.type == "cpu" else max(device, host[name])
        predicted[name] = {"predicted_ms": whole, "device_ms": device, "host_ms": host[name]}
    return predicted


def counts(size: Size, work: Work) -> dict[str, int]:
    """FLOPs of what ``Times.time_ms`` measures, and the bytes that it must at least move."""
    step = size.decode(work.batch_size, work.context)
    if work.work == "decode":
        return step
    prefill = size.prefill(work.batch_size, work.prompt_length)
    return {name: prefill[name] + (work.new_tokens - 1) * step[name] for name in step}


def measure(pair: Pair, work: Work, rates: Rates, num_samples: int) -> dict[str, Any]:
    """One row. Where the device lacks the memory, a row that says so."""
    place = {"engine": "transformers", **asdict(work)}
    try:
        peaks = {
            name: peak_gib(model, work) for name, model in pair.items()
        }  # the first runs warm up, too
        predicted = predict(pair, work, rates)
        samples = [
            {name: run(pair[name], work) for name in order}
            for order in _turns(list(pair), num_samples)
        ]
    except torch.cuda.OutOfMemoryError as error:
        return {**place, "status": f"not measured: {str(error).splitlines()[0]}"}
    row = {**place, "status": MEASURED}
    for name, model in pair.items():
        row[name] = {
            **{
                key: statistics.median(getattr(sample[name], key) for sample in samples)
                for key in Times.__dataclass_fields__
            },
            **counts(Size(model.config, model.dtype), work),
            **predicted[name],
            "peak_gib": peaks[name],
            "joules_per_token": joules_per_token(model, work),
        }
    ratios = [sample["dense"].time_ms / sample["compressed"].time_ms for sample in samples]
    whole, device = (
        predicted["dense"][key] / predicted["compressed"][key]
        for key in ("predicted_ms", "device_ms")
    )
    return {
        **row,
        **speedup(ratios),
        **against(statistics.median(ratios), whole),
        "device_speedup": device,
    }


def speedup(ratios: list[float]) -> dict[str, float]:
    """Median and quintiles over the samples."""
    quintiles = statistics.quantiles(ratios, n=5, method="inclusive")
    return {
        "speedup": statistics.median(ratios),
        "speedup_p20": quintiles[0],
        "speedup_p80": quintiles[-1],
    }


def against(measured: float, predicted: float) -> dict[str, float]:
    """The prediction, and how much of it was measured."""
    return {"predicted_speedup": predicted, "of_predicted": measured / predicted}


def _turns(names: list[str], num_samples: int) -> Iterator[list[str]]:
    """Who goes first changes from sample to sample."""
    for sample in range(num_samples):
        yield names if sample % 2 == 0 else names[::-1]


def peak_gib(model: PreTrainedModel, work: Work) -> float | None:
    """Run once; this model's weights and the most that the run held beside them. None on a CPU,
    where it is not measured.
    """
    if model.device.type != "cuda":
        run(model, work)
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run(model, work)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return (weights + torch.cuda.max_memory_allocated() - before) / 2**30


def joules_per_token(model: PreTrainedModel, work: Work) -> float | None:
    """The whole device's energy, idle power included, over the tokens of the work (the prompt's for
    prefill, else the new ones).
    """
    read = nvml.energy_reader() if model.device.type == "cuda" else None
    if read is None:
        return None
    num_runs, start, before = 0, time.perf_counter(), read()
    while time.perf_counter() - start < ENERGY_SECONDS:
        run(model, work)
        num_runs += 1
    num_tokens = work.batch_size * (
        work.prompt_length if work.work == "prefill" else work.new_tokens
    )
    return (read() - before) / (num_runs * num_tokens)


def make_pair(options: argparse.Namespace, device: str, dtype: torch.dtype) -> Pair:
    """The dense and the compressed model.

    Raises:
        ValueError: a model cannot be loaded, or a size is not below the dense model's.
    """
    if options.compressed:
        names = {"dense": options.model or loading.DEMO, "compressed": options.compressed}
        settings: dict[str, Any] = {"dtype": dtype_name(dtype), "attn": "sdpa"}
        return {
            key: loading.load_model(name, ModelSettings(**settings), device)
            for key, name in names.items()
        }
    dense = (
        shape_config(options.shape)
        if options.shape
        else loading.load_config(options.model or loading.DEMO)
    )
    width, layers = options.width, options.layers
    if width is None and layers is None:
        width, layers = (
            SHAPES[options.shape][2:] if options.shape else (dense.intermediate_size // 2, None)
        )
    configs = {"dense": dense, "compressed": resized(dense, width, layers)}
    return {key: random_model(config, device, dtype) for key, config in configs.items()}


def make_works(options: argparse.Namespace) -> list[Work]:
    """What to measure, the sound protocol first."""
    works = []
    if options.protocol != "paper":
        works += [Work("prefill", batch_size, length, 1) for batch_size, length in options.prefill]
        works += [
            Work("decode", batch_size, length, options.new_tokens)
            for batch_size, length in options.decode
        ]
    if options.protocol != "sound":
        works.append(Work("paper", 1, PAPER_PROMPT, PAPER_NEW_TOKENS))
    return works


def batch_and_length(text: str) -> tuple[int, int]:
    """8x256 as (8, 256)."""
    batch_size, length = map(int, text.split("x"))
    if batch_size < 1 or length < 1:
        raise ValueError(text)
    return batch_size, length


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Flags; the sizes of the works depend on the device where they are not given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    dense = parser.add_mutually_exclusive_group()
    dense.add_argument(
        "--model", help="folder or hub name of the dense model (default: the bundled model)"
    )
    dense.add_argument(
        "--shape", choices=list(SHAPES), help="a known dense model, with random weights"
    )
    parser.add_argument("--compressed", help="folder or hub name of the compressed model")
    parser.add_argument(
        "--width", type=int, help="FFN width of the compressed model, instead of --compressed"
    )
    parser.add_argument(
        "--layers", type=int, help="decoder layers of the compressed model, instead of --compressed"
    )
    parser.add_argument(
        "--protocol", default="both", choices=["sound", "paper", "both"], help="default: both"
    )
    parser.add_argument("--prefill", nargs="*", type=batch_and_length, metavar="BATCHxLENGTH")
    parser.add_argument("--decode", nargs="*", type=batch_and_length, metavar="BATCHxPROMPT")
    parser.add_argument("--new-tokens", type=int, default=32, help="of decode; at least 2")
    parser.add_argument(
        "--samples", type=int, default=9, help="at least 2; the paper's protocol always has five"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"]
    )
    parser.add_argument("--json", type=Path, help="file for the results, written after every row")
    clock.add_flag(parser)
    options = parser.parse_args(arguments)
    if options.compressed and (options.shape or options.width or options.layers):
        parser.error(
            "--compressed is a model of its own: give it with --model, and without --shape,"
            " --width and --layers"
        )
    if min(1 if each is None else each for each in (options.width, options.layers)) < 1:
        parser.error("--width and --layers must be at least 1")
    if options.new_tokens < 2 or options.samples < 2:
        parser.error("--new-tokens and --samples must be at least 2")
    options.device = loading.resolve_device(options.device)
    on_cpu = options.device == "cpu"
    options.prefill = PREFILL[on_cpu] if options.prefill is None else options.prefill
    options.decode = DECODE[on_cpu] if options.decode is None else options.decode
    if options.dtype == "auto":
        options.dtype = "float32" if on_cpu else "bfloat16"
    return options


def main(arguments: list[str] | None = None) -> None:
    with told_in_one_line():
        options = parse(arguments)
        torch.manual_seed(0)
        clock.choose(options.clock)
        dtype, device_type = getattr(torch, options.dtype), options.device.partition(":")[0]
        pair = make_pair(options, options.device, dtype)
    stopwatch = Stopwatch(options.device, FLUSH_BYTES[device_type])
    rates = Rates(pair["dense"], stopwatch)
    results: dict[str, Any] = {
        "environment": environment(device_type),
        "model": options.shape or Path(options.model or loading.DEMO).name,
        "weights": "the folders' own" if options.compressed else "random",
        "dtype": options.dtype,
        "sizes": {name: Size(model.config, dtype).as_dict() for name, model in pair.items()},
        "rates": rates.measured,
        "rows": [],
    }
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for row in rows(pair, make_works(options), rates, options):
        results["rows"].append(row)
        print(table_row(row), flush=True)
        if options.json:
            write_text(options.json, json.dumps(results, indent=1) + "\n")


def rows(
    pair: Pair, works: list[Work], rates: Rates, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Every engine's rows, one by one."""
    predicted: dict[Work, float | None] = {}  # of the device alone: vLLM replays recorded launches
    with torch.inference_mode():
        for work in works:
            row = measure(
                pair, work, rates, PAPER_SAMPLES if work.work == "paper" else options.samples
            )
            predicted[work] = row.get("device_speedup")
            yield row
    configs = {name: model.config for name, model in pair.items()}
    pair.clear()  # vLLM wants the memory
    if options.device != "cpu":
        torch.cuda.empty_cache()
    for work, row in zip(works, vllm_speed.rows(configs, works, options), strict=True):
        prediction = predicted[work] if row["status"] == MEASURED else None
        yield {**row, **(against(row["speedup"], prediction) if prediction else {})}


def table_row(row: dict[str, Any]) -> str:
    """One line of the table on the screen."""
    cells = [row["work"], row["engine"], str(row["batch_size"]), str(row["prompt_length"])]
    if row["status"] == MEASURED:
        cells += [f"{row[name]['time_ms']:.1f}" for name in ("dense", "compressed")] + ratio_cells(
            row
        )
    else:
        cells += [""] * 5
    return f"| {' | '.join([*cells, row['status']])} |"


def ratio_cells(row: dict[str, Any]) -> list[str]:
    """Speedup with its spread, prediction, and their ratio, of a measured row; empty where a row
    has none.
    """
    spread = (
        f" ({row['speedup_p20']:.2f} to {row['speedup_p80']:.2f})" if "speedup_p20" in row else ""
    )
    predicted = (
        [f"{row['predicted_speedup']:.2f}", f"{row['of_predicted']:.0%}"]
        if "predicted_speedup" in row
        else ["", ""]
    )
    return [f"{row['speedup']:.2f}{spread}", *predicted]


if __name__ == "__main__":
    main()
