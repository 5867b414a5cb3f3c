"""The scoring pass of the bundled model and its peers under pytest-benchmark: python -m pytest
benchmarks --benchmark-enable.
"""

from typing import Any

import pytest
import torch

from benchmarks.scoring.bench_scoring import Passes, make_passes
from ptl_fast.config.model import ModelSettings
from ptl_fast.data import packing, readers, sampling
from ptl_fast.model import loading

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NUM_TOKENS, SEQUENCE_LENGTH, BATCH = 4096, 512, 4


@pytest.fixture(scope="module")
def passes() -> Passes:
    model = loading.load_model(loading.DEMO, ModelSettings(), DEVICE)
    tokenizer = loading.load_tokenizer(loading.DEMO)
    documents = list(sampling.tokenize(readers.load_documents(loading.DEMO), tokenizer, NUM_TOKENS))
    tokens = packing.pack(
        documents, SEQUENCE_LENGTH, packing.padding_token(tokenizer), loading.DEMO
    )
    with torch.inference_mode():
        return make_passes(model, tokens, documents, BATCH)


@pytest.mark.parametrize(
    "name",
    ["ours", "plain_forward", "packed_forward", "plain_decoder", "eager_hooks", "reference_rule"],
)
def test_scoring(benchmark: Any, passes: Passes, name: str) -> None:
    benchmark.group, benchmark.extra_info["contender"] = f"scoring pass ptl-demo {DEVICE}", name
    with torch.inference_mode():
        benchmark.pedantic(passes[name], rounds=10, warmup_rounds=1)
