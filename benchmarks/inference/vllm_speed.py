"""The workloads of speedup.py in vLLM, each model in a process of its own: vLLM does not release
its memory before its process ends.

So the models do not take turns here as they do in transformers: every sample of one comes before
the other's. Weights are random (vLLM's "dummy" format): only the config is written to a folder. Run
as a program, this file is that process.
"""

import argparse
import functools
import importlib.util
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.harness.results import MEASURED, not_measured, write_json
from benchmarks.harness.stopwatch import timed

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from benchmarks.inference.workloads import Workload

ENGINE = "vllm"


def rows(
    configs: "dict[str, PretrainedConfig]", workloads: "list[Workload]", options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each workload, with numbers or with the reason why there are none."""
    reason = why_not_measured(options.device)
    if reason is None:
        try:
            times = {name: times_of(config, workloads, options) for name, config in configs.items()}
        except subprocess.CalledProcessError as error:
            # what it printed is above, and the rows of transformers are kept
            reason = f"vllm failed with exit code {error.returncode}"
    if reason is not None:
        return [
            {"engine": ENGINE, **workload.columns(), "status": not_measured(reason)}
            for workload in workloads
        ]
    return [
        {"engine": ENGINE, **workload.columns(), **median_times(times, index)}
        for index, workload in enumerate(workloads)
    ]


def why_not_measured(device: str) -> str | None:
    """Why vLLM cannot be measured; None if it can."""
    if importlib.util.find_spec("vllm") is None:
        return "vllm is not installed"
    return None if device.startswith("cuda") else "vllm is measured on GPUs only"


def times_of(
    config: "PretrainedConfig", workloads: "list[Workload]", options: argparse.Namespace
) -> list[list[float]]:
    """For each workload the milliseconds of each sample."""
    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        result = Path(folder) / "times.json"
        order = {
            "workloads": [workload.columns() for workload in workloads],
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


def median_times(times: dict[str, list[list[float]]], index: int) -> dict[str, Any]:
    """Medians of both models, and the ratio of them."""
    medians = {name: statistics.median(samples[index]) for name, samples in times.items()}
    return {
        "status": MEASURED,
        **{name: {"time_ms": value} for name, value in medians.items()},
        "speedup": medians["dense"] / medians["compressed"],
    }


def measure(folder: str, order: dict[str, Any]) -> list[list[float]]:
    """Milliseconds of each sample of every workload, in this process.

    ``order`` is what ``times_of`` hands over: workloads by their columns, samples and dtype.
    """
    from vllm import LLM

    longest = max(each["prompt_length"] + each["new_tokens"] for each in order["workloads"])
    llm = LLM(
        model=folder,
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype=order["dtype"],
        max_model_len=longest,
        enable_prefix_caching=False,  # it would skip the prefill of a prompt that came before
    )
    vocab_size = llm.llm_engine.model_config.get_vocab_size()
    times = []
    for workload in order["workloads"]:
        samples = [time_ms(llm, workload, vocab_size) for _ in range(order["samples"] + 1)]
        times.append(samples[1:])  # the first one warms up
    return times


def time_ms(llm: Any, workload: dict[str, Any], vocab_size: int) -> float:
    """prefill: the pass; decode: one step, as the difference to a generation of one token; paper:
    all tokens.
    """
    whole = seconds_of_generation(llm, workload, workload["new_tokens"], vocab_size)
    if workload["work"] != "decode":
        return 1e3 * whole
    # the prefill and the first token are in both, so the difference is that of the other steps
    to_first_token = seconds_of_generation(llm, workload, 1, vocab_size)
    return 1e3 * (whole - to_first_token) / (workload["new_tokens"] - 1)


def seconds_of_generation(
    llm: Any, workload: dict[str, Any], num_tokens: int, vocab_size: int
) -> float:
    """Seconds for ``num_tokens`` new tokens on fresh random prompts."""
    from vllm import SamplingParams

    # token ids, so that no tokenizer is needed
    prompts = [
        {
            "prompt_token_ids": [
                random.randrange(2, vocab_size) for _ in range(workload["prompt_length"])
            ]
        }
        for _ in range(workload["batch_size"])
    ]
    sampling = SamplingParams(
        max_tokens=num_tokens,
        min_tokens=num_tokens,
        temperature=0.0,
        ignore_eos=True,
        detokenize=False,
    )
    return timed(functools.partial(llm.generate, prompts, sampling, use_tqdm=False))[1]


if __name__ == "__main__":
    folder, order, result = sys.argv[1:]
    write_json(Path(result), measure(folder, json.loads(order)))
