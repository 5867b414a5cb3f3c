"""The works of speedup.py in vLLM, each model in a process of its own, because vLLM does not give
its memory back.

So the models do not take turns here as they do in transformers; every sample of one comes before
the other's. Weights are random (vLLM's "dummy" format): only the config is written to a folder. Run
as a program, this file is that process.
"""

import argparse
import importlib.util
import json
import random
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.harness.results import MEASURED

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from benchmarks.inference.workloads import Work

ENGINE = "vllm"


def rows(
    configs: "dict[str, PretrainedConfig]", works: "list[Work]", options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each work, with numbers or with the reason why there are none."""
    reason = why_not(options.device)
    if reason is None:
        try:
            times = {name: times_of(config, works, options) for name, config in configs.items()}
        except subprocess.CalledProcessError as error:
            reason = f"vllm failed with exit code {error.returncode}"
    if reason is not None:
        return [
            {"engine": ENGINE, **asdict(work), "status": f"not measured: {reason}"}
            for work in works
        ]
    return [
        {"engine": ENGINE, **asdict(work), **numbers(times, index)}
        for index, work in enumerate(works)
    ]


def why_not(device: str) -> str | None:
    """Why vLLM cannot be measured; None if it can."""
    if importlib.util.find_spec("vllm") is None:
        return "vllm is not installed"
    return None if device.startswith("cuda") else "vllm is measured on GPUs only"


def times_of(
    config: "PretrainedConfig", works: "list[Work]", options: argparse.Namespace
) -> list[list[float]]:
    """For each work the milliseconds of each sample."""
    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        result = Path(folder) / "times.json"
        order = {
            "works": [asdict(work) for work in works],
            "samples": options.samples,
            "dtype": options.dtype,
        }
        subprocess.run(
            [
                sys.executable,
                "-m",
                "benchmarks.inference.vllm_speed",
                folder,
                json.dumps(order),
                str(result),
            ],
            check=True,
        )
        return json.loads(result.read_text())


def numbers(times: dict[str, list[list[float]]], index: int) -> dict[str, Any]:
    """Medians of both models, and the ratio of them."""
    medians = {name: statistics.median(samples[index]) for name, samples in times.items()}
    return {
        "status": MEASURED,
        **{name: {"time_ms": value} for name, value in medians.items()},
        "speedup": medians["dense"] / medians["compressed"],
    }


def measure(folder: str, order: dict[str, Any]) -> list[list[float]]:
    """Time every work, in this process."""
    from vllm import LLM

    longest = max(work["prompt_length"] + work["new_tokens"] for work in order["works"])
    llm = LLM(
        model=folder,
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype=order["dtype"],
        max_model_len=longest,
        enable_prefix_caching=False,
    )
    vocab_size = llm.llm_engine.model_config.get_vocab_size()
    times = []
    for work in order["works"]:
        samples = [time_ms(llm, work, vocab_size) for _ in range(order["samples"] + 1)]
        times.append(samples[1:])  # the first one warms up
    return times


def time_ms(llm: Any, work: dict[str, Any], vocab_size: int) -> float:
    """prefill: the pass; decode: one step, as the difference to a generation of one token; paper:
    all tokens.
    """
    whole = generate(llm, work, work["new_tokens"], vocab_size)
    if work["work"] != "decode":
        return 1e3 * whole
    return 1e3 * (whole - generate(llm, work, 1, vocab_size)) / (work["new_tokens"] - 1)


def generate(llm: Any, work: dict[str, Any], num_tokens: int, vocab_size: int) -> float:
    """Seconds for ``num_tokens`` new tokens on fresh random prompts."""
    from vllm import SamplingParams

    prompts = [
        {
            "prompt_token_ids": [
                random.randrange(2, vocab_size) for _ in range(work["prompt_length"])
            ]
        }
        for _ in range(work["batch_size"])
    ]
    sampling = SamplingParams(
        max_tokens=num_tokens,
        min_tokens=num_tokens,
        temperature=0.0,
        ignore_eos=True,
        detokenize=False,
    )
    start = time.perf_counter()
    llm.generate(prompts, sampling, use_tqdm=False)
    return time.perf_counter() - start


if __name__ == "__main__":
    folder, order, result = sys.argv[1:]
    Path(result).write_text(json.dumps(measure(folder, json.loads(order))))
