"""Whole passes of the bundled model under pytest-benchmark: scoring against its peers, and a
compressed against the dense model.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.harness.models import random_model, resized
from benchmarks.inference.workloads import Work, run
from benchmarks.scoring.bench_scoring import ways_to_run
from ptl_fast.config.model import ModelSettings
from ptl_fast.data import packing, readers, sampling
from ptl_fast.model import loading

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NUM_TOKENS, SEQUENCE_LENGTH, BATCH = 4096, 512, 4


@pytest.fixture(scope="module")
def scoring() -> dict[str, Callable[[], Any]]:
    model = loading.load_model(loading.DEMO, ModelSettings(), DEVICE)
    tokenizer = loading.load_tokenizer(loading.DEMO)
    documents = list(sampling.tokenize(readers.load_documents(loading.DEMO), tokenizer, NUM_TOKENS))
    tokens = packing.pack(
        documents, SEQUENCE_LENGTH, packing.padding_token(tokenizer), loading.DEMO
    )
    with torch.inference_mode():
        return ways_to_run(model, tokens, documents, BATCH)


@pytest.mark.parametrize(
    "name",
    ["ours", "plain_forward", "packed_forward", "plain_decoder", "eager_hooks", "reference_rule"],
)
def test_scoring(benchmark: Any, scoring: dict[str, Callable[[], Any]], name: str) -> None:
    benchmark.group, benchmark.extra_info["contender"] = f"scoring pass ptl-demo {DEVICE}", name
    with torch.inference_mode():
        benchmark.pedantic(scoring[name], rounds=10, warmup_rounds=1)


@pytest.mark.parametrize(
    "work", [Work("prefill", 1, 128, 1), Work("prefill", 8, 256, 1)], ids=["1x128", "8x256"]
)
@pytest.mark.parametrize("name", ["ours", "dense"])
def test_prefill(benchmark: Any, work: Work, name: str) -> None:
    """ "ours" is the model at half its FFN width."""
    benchmark.group = f"prefill ptl-demo {work.batch_size}x{work.prompt_length} {DEVICE}"
    benchmark.extra_info["contender"] = name
    config = loading.load_config(loading.DEMO)
    model = random_model(
        config if name == "dense" else resized(config, config.intermediate_size // 2, None),
        DEVICE,
        torch.float32,
    )
    with torch.inference_mode():
        benchmark.pedantic(run, args=(model, work), rounds=20, warmup_rounds=3)
