"""Is the compressed model really faster? Two models in turns, against what their operations
predict.

    python -m benchmarks.inference.speedup --model DIR --compressed DIR --json FILE
    python -m benchmarks.inference.speedup --model DIR --width 1024 --layers 28
    python -m benchmarks.inference.speedup --shape llama3-8b

Without --compressed, both models get random weights: speed does not depend on their values. Without
--model and --shape, the bundled model against half its FFN width.

- prefill: a forward pass that fills the KV cache and computes the last position's logits, as
  generation does
- decode: the time of a step, a token of every sequence, in transformers' generate, after the first
  token
- paper: the protocol of arXiv 2602.04919, batch 1, 64 new tokens, five samples. It mixes prefill
  and decode, and at batch 1 the host's time between operations weighs most, so it is reported
  beside the others and not in their place

Each sample times both models, one after the other, on fresh random tokens; the median ratio counts.
The prediction (prediction.py) knows nothing of these times.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.harness import clock, nvml
from benchmarks.harness.environment import dtype_name, environment
from benchmarks.harness.markdown import head, line
from benchmarks.harness.models import SHAPES, random_model, resized, shape_config
from benchmarks.harness.results import MEASURED, errors_in_one_line, not_measured, write_json
from benchmarks.harness.stopwatch import FLUSH_BYTES, Stopwatch
from benchmarks.harness.turns import forth_and_back, median_and_spread
from benchmarks.inference import vllm_speed
from benchmarks.inference.model_size import ModelSize
from benchmarks.inference.prediction import Models, flops_and_bytes, predict
from benchmarks.inference.roofline import Rates
from benchmarks.inference.workloads import Times, Workload, run
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
# (batch, prompt length), by whether the device is a CPU
PREFILL = {True: [(1, 128), (1, 512), (8, 256)], False: [(1, 512), (1, 4096), (8, 2048)]}
DECODE = {True: [(1, 64), (8, 64)], False: [(1, 512), (16, 512), (64, 512)]}
ENERGY_SECONDS = 1.0  # NVML's counter moves every tenth of a second or so


def measure(models: Models, workload: Workload, rates: Rates, num_samples: int) -> dict[str, Any]:
    """One row. Where the device lacks the memory, a row that says so."""
    columns = {"engine": "transformers", **workload.columns()}
    try:
        # the runs for the peaks warm up, too
        peaks = {name: peak_gib(model, workload) for name, model in models.items()}
        predicted = predict(models, workload, rates)
        samples = [
            {name: run(models[name], workload) for name in forth_and_back(list(models), sample)}
            for sample in range(num_samples)
        ]
    except torch.cuda.OutOfMemoryError as error:
        return {**columns, "status": not_measured(str(error).splitlines()[0])}
    row = {**columns, "status": MEASURED}
    for name, model in models.items():
        medians = {
            key: statistics.median(getattr(sample[name], key) for sample in samples)
            for key in Times.__dataclass_fields__
        }
        row[name] = {
            **medians,
            **flops_and_bytes(ModelSize(model.config, model.dtype), workload),
            **predicted[name],
            "peak_gib": peaks[name],
            "joules_per_token": joules_per_token(model, workload),
        }
    ratios = [sample["dense"].time_ms / sample["compressed"].time_ms for sample in samples]
    speedup, p20, p80 = median_and_spread(ratios)
    whole, device = (
        predicted["dense"][key] / predicted["compressed"][key]
        for key in ("predicted_ms", "device_ms")
    )
    return {
        **row,
        **{"speedup": speedup, "speedup_p20": p20, "speedup_p80": p80},
        **beside_prediction(speedup, whole),
        "device_speedup": device,
    }


def beside_prediction(measured: float, predicted: float) -> dict[str, float]:
    """The predicted speedup, and how much of it was measured."""
    return {"predicted_speedup": predicted, "of_predicted": measured / predicted}


def peak_gib(model: PreTrainedModel, workload: Workload) -> float | None:
    """Run once; this model's weights and the most that the run allocated beside them. None on a
    CPU, where it is not measured.
    """
    if model.device.type != "cuda":
        run(model, workload)
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run(model, workload)
    # the other model is in memory too, hence this one's weights and the difference
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return (weights + torch.cuda.max_memory_allocated() - before) / 2**30


def joules_per_token(model: PreTrainedModel, workload: Workload) -> float | None:
    """The whole device's energy, idle power included, over the tokens of the workload (the prompt's
    for prefill, else the new ones). None where the energy is not counted.
    """
    read = nvml.energy_reader() if model.device.type == "cuda" else None
    if read is None:
        return None
    num_runs, start, before = 0, clock.now(model.device), read()
    # one run may be shorter than the counter's step
    while clock.now(model.device) - start < ENERGY_SECONDS:
        run(model, workload)
        num_runs += 1
    per_sequence = workload.prompt_length if workload.kind == "prefill" else workload.new_tokens
    return (read() - before) / (num_runs * workload.batch_size * per_sequence)


def measure_all(
    models: Models, workloads: list[Workload], rates: Rates, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The rows of every engine, one by one."""
    # vLLM replays recorded launches (CUDA graphs), so its rows are predicted by the device alone
    predicted: dict[Workload, float | None] = {}
    with torch.inference_mode():
        for workload in workloads:
            num_samples = PAPER_SAMPLES if workload.kind == "paper" else options.samples
            row = measure(models, workload, rates, num_samples)
            predicted[workload] = row.get("device_speedup")
            yield row
    configs = {name: model.config for name, model in models.items()}
    models.clear()  # vLLM wants the memory
    if options.device != "cpu":
        torch.cuda.empty_cache()
    of_vllm = vllm_speed.rows(configs, workloads, options)
    for workload, row in zip(workloads, of_vllm, strict=True):
        prediction = predicted[workload] if row["status"] == MEASURED else None
        yield {**row, **(beside_prediction(row["speedup"], prediction) if prediction else {})}


def make_models(options: argparse.Namespace, device: str, dtype: torch.dtype) -> Models:
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
    # None leaves a size as it is in the dense model
    width, layers = options.width, options.layers
    if width is None and layers is None:
        width, layers = (
            SHAPES[options.shape][2:] if options.shape else (dense.intermediate_size // 2, None)
        )
    configs = {"dense": dense, "compressed": resized(dense, width, layers)}
    return {key: random_model(config, device, dtype) for key, config in configs.items()}


def make_workloads(options: argparse.Namespace) -> list[Workload]:
    """What to measure; prefill and decode, each by itself, come before the paper's mix of both."""
    workloads = []
    if options.protocol != "paper":
        workloads += [Workload("prefill", batch, length, 1) for batch, length in options.prefill]
        workloads += [
            Workload("decode", batch, length, options.new_tokens)
            for batch, length in options.decode
        ]
    if options.protocol != "sound":
        workloads.append(Workload("paper", 1, PAPER_PROMPT, PAPER_NEW_TOKENS))
    return workloads


def table_row(row: dict[str, Any]) -> list[str]:
    """The cells of one row, by COLUMNS."""
    cells = [row["work"], row["engine"], str(row["batch_size"]), str(row["prompt_length"])]
    if row["status"] == MEASURED:
        cells += [f"{row[name]['time_ms']:.1f}" for name in ("dense", "compressed")]
        cells += ratio_cells(row)
    else:
        cells += [""] * 5
    return [*cells, row["status"]]


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


def batch_and_length(text: str) -> tuple[int, int]:
    """8x256 as (8, 256)."""
    batch_size, length = map(int, text.split("x"))
    if batch_size < 1 or length < 1:
        raise ValueError(text)  # argparse names the flag and the text
    return batch_size, length


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Flags; the sizes of the workloads depend on the device where they are not given."""
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
        "--protocol",
        default="both",
        choices=["sound", "paper", "both"],
        help="sound: prefill and decode; default: both",
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
    with errors_in_one_line():
        options = parse(arguments)
        torch.manual_seed(0)
        clock.choose(options.clock)
        dtype, device_type = getattr(torch, options.dtype), options.device.partition(":")[0]
        models = make_models(options, options.device, dtype)
    # measured for the dense model's shapes, and used for both models
    stopwatch = Stopwatch(options.device, FLUSH_BYTES[device_type])
    rates = Rates(models["dense"], stopwatch)
    results: dict[str, Any] = {
        "environment": environment(device_type),
        "model": options.shape or Path(options.model or loading.DEMO).name,
        "weights": "the folders' own" if options.compressed else "random",
        "dtype": options.dtype,
        "sizes": {name: ModelSize(model.config, dtype).as_dict() for name, model in models.items()},
        "rates": rates.measured,
        "rows": [],
    }
    print(head(COLUMNS))
    for row in measure_all(models, make_workloads(options), rates, options):
        results["rows"].append(row)
        print(line(table_row(row)), flush=True)
        if options.json:
            write_json(options.json, results)


if __name__ == "__main__":
    main()
