"""Whole passes of the bundled model under pytest-benchmark: scoring against its peers, and a compressed against the dense model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.bench_scoring import ways_to_run
from benchmarks.shapes import random_model, resized
from benchmarks.works import Work, run
from ptl_fast import data, models, sources
from ptl_fast.config import Config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NUM_TOKENS, SEQUENCE_LENGTH, BATCH = 4096, 512, 4


@pytest.fixture(scope="module")
def scoring() -> dict[str, Callable[[], Any]]:
    model = models.load_model(models.DEMO, Config(model=models.DEMO), DEVICE)
    tokenizer = models.load_tokenizer(models.DEMO)
    documents = list(data.tokenize(sources.load_documents(models.DEMO), tokenizer, NUM_TOKENS))
    tokens = data.pack(documents, SEQUENCE_LENGTH, data.padding_token(tokenizer), models.DEMO)
    with torch.inference_mode():
        return ways_to_run(model, tokens, documents, BATCH)


@pytest.mark.parametrize("name", ["ours", "plain_forward", "packed_forward", "plain_decoder", "eager_hooks", "reference_rule"])
def test_scoring(benchmark: Any, scoring: dict[str, Callable[[], Any]], name: str) -> None:
    benchmark.group, benchmark.extra_info["contender"] = f"scoring pass ptl-demo {DEVICE}", name
    with torch.inference_mode():
        benchmark.pedantic(scoring[name], rounds=10, warmup_rounds=1)


@pytest.mark.parametrize("work", [Work("prefill", 1, 128, 1), Work("prefill", 8, 256, 1)], ids=["1x128", "8x256"])
@pytest.mark.parametrize("name", ["ours", "dense"])
def test_prefill(benchmark: Any, work: Work, name: str) -> None:
    """ "ours" is the model at half its FFN width."""
    benchmark.group = f"prefill ptl-demo {work.batch_size}x{work.prompt_length} {DEVICE}"
    benchmark.extra_info["contender"] = name
    config = models.load_config(models.DEMO)
    model = random_model(config if name == "dense" else resized(config, config.intermediate_size // 2, None), DEVICE, torch.float32)
    with torch.inference_mode():
        benchmark.pedantic(run, args=(model, work), rounds=20, warmup_rounds=3)
