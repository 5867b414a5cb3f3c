"""Is the compressed model really faster? Prefill and batched decode of two models, interleaved, against the prediction.

    python -m benchmarks.bench_speedup --dense DIR --compressed DIR --json FILE

Without --dense, the bundled model against itself with half the FFN width (random weights of that shape: speed does not depend on
their values). Each sample times both models, one after the other, on fresh random tokens; the median ratio counts.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ptl_fast import models
from ptl_fast.families import resize_config
from ptl_fast.flops import model_size


def prefill(model: PreTrainedModel, batch_size: int, length: int) -> None:
    """One forward pass over (batch_size, length) tokens."""
    model(_random_tokens(model, batch_size, length), use_cache=True)


def decode(model: PreTrainedModel, batch_size: int, length: int) -> None:
    """``length`` new tokens for each of ``batch_size`` prompts of 16 tokens."""
    prompts = _random_tokens(model, batch_size, 16)
    model.generate(prompts, max_new_tokens=length, min_new_tokens=length, do_sample=False)  # type: ignore[operator]


def compare(
    dense: PreTrainedModel, compressed: PreTrainedModel, work: Callable[..., None], batch_size: int, length: int, num_samples: int
) -> dict[str, Any]:
    """Time ``work`` on both models in turns; return medians, spread and the speedup beside its prediction from FLOPs."""
    times: dict[str, list[float]] = {"dense": [], "compressed": []}
    for sample in range(num_samples + 1):
        for name, model in (("dense", dense), ("compressed", compressed)):
            _synchronize(model)
            start = time.perf_counter()
            work(model, batch_size, length)
            _synchronize(model)
            if sample:  # the first round warms up
                times[name].append(1000 * (time.perf_counter() - start))
    ratios = [slow / fast for slow, fast in zip(times["dense"], times["compressed"], strict=True)]
    flops = [model_size(model.config, length // 2)["flops_per_token"] for model in (dense, compressed)]
    quintiles = statistics.quantiles(ratios, n=5)
    return {
        "work": work.__name__,
        "batch_size": batch_size,
        "length": length,
        "dense_ms": statistics.median(times["dense"]),
        "compressed_ms": statistics.median(times["compressed"]),
        "speedup": statistics.median(ratios),
        "speedup_p20": quintiles[0],
        "speedup_p80": quintiles[-1],
        "predicted_from_flops": flops[0] / flops[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", help="model folder (default: the bundled model)")
    parser.add_argument("--compressed", help="model folder (default: the shape of the dense one with half the FFN width)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--json", type=Path, help="file for the rows")
    arguments = parser.parse_args()
    device = models.resolve_device(arguments.device)
    dense = _load(arguments.dense or str(models.DEMO_FOLDER), device)
    if arguments.compressed:
        compressed = _load(arguments.compressed, device)
    else:
        config = copy.deepcopy(dense.config)
        resize_config(config, config.intermediate_size // 2, list(range(config.num_hidden_layers)))
        compressed = AutoModelForCausalLM.from_config(config).to(dense.device, dense.dtype).eval()
    rows = []
    print("| work | batch | length | dense ms | compressed ms | speedup (p20 to p80) | predicted from FLOPs |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    with torch.inference_mode():
        for work, batch_size, length in ((prefill, 1, 512), (prefill, 8, 256), (decode, 1, 32), (decode, 32, 32)):
            row = compare(dense, compressed, work, batch_size, length, arguments.samples)
            rows.append(row)
            print(_table_row(row), flush=True)
    if arguments.json:
        environment = {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")


def _table_row(row: dict[str, Any]) -> str:
    spread = f"{row['speedup']:.2f} ({row['speedup_p20']:.2f} to {row['speedup_p80']:.2f})"
    times = f"{row['dense_ms']:.1f} | {row['compressed_ms']:.1f}"
    return f"| {row['work']} | {row['batch_size']} | {row['length']} | {times} | {spread} | {row['predicted_from_flops']:.2f} |"


def _load(name: str, device: str) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(name)
    return model.to(device).eval()  # type: ignore[arg-type]


def _random_tokens(model: PreTrainedModel, batch_size: int, length: int) -> torch.Tensor:
    return torch.randint(2, model.config.vocab_size, (batch_size, length), device=model.device)


def _synchronize(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


if __name__ == "__main__":
    main()
