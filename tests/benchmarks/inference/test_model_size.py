"""Parameters, FLOPs and bytes by formula."""

import torch

from benchmarks.harness.models import shape_config
from benchmarks.inference.model_size import ModelSize


def test_size_by_hand() -> None:
    """Llama: 2 layers, hidden 64, width 256, 4 heads of 16, 2 key heads, vocabulary 512."""
    size = ModelSize(shape_config("tiny"), torch.bfloat16)
    layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 256
    assert size.cache_bytes == 2 * 2 * 2 * 16 * 2
    assert size.weight_bytes == 2 * (
        2 * (layer + 2 * 64) + 64 + 512 * 64
    )  # norms; the embedding is looked up, the head is read
    decode = size.decode(batch_size=8, context=100)
    assert decode["flops"] == 8 * (2 * (2 * layer + 512 * 64) + 2 * 4 * 64 * 100)
    assert decode["num_bytes"] == size.weight_bytes + 8 * 100 * size.cache_bytes
    prefill = size.prefill(batch_size=3, length=10)
    assert prefill["flops"] == 3 * (10 * (2 * 2 * layer + 2 * 4 * 64 * 5) + 2 * 512 * 64)
