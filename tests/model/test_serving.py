"""What answering takes, by hand for the bundled model and against a saved file."""

from pathlib import Path

import pytest
from transformers import AutoConfig, PreTrainedModel

from ptl_fast.model import flops, parts
from ptl_fast.model.serving import Peaks, Serving, Work
from support.models import DEMO_MODEL
from support.wholes import whole_config

CONFIG = AutoConfig.from_pretrained(DEMO_MODEL)
WIDE = Peaks(flops=1e12, bytes=1e30)
NARROW = Peaks(flops=1e30, bytes=1e9)


def test_bytes_by_hand() -> None:
    model = Serving(CONFIG, 2)
    # 4 layers of keys and values, 2 heads of 32
    assert model.token_bytes == 2 * 4 * 64 * 2
    assert model.weight_bytes == 2 * 1_416_576
    assert model.memory_bytes(3, 100) == model.weight_bytes + 300 * model.token_bytes


def test_flops_are_those_of_flops_py() -> None:
    assert Serving(CONFIG, 4).flops_per_token(128) == flops.flops_per_token(CONFIG, 128)


def test_a_device_of_fast_memory_takes_the_flops() -> None:
    model, work = Serving(CONFIG, 2), Work(batch=2, prompt=8, new_tokens=1)
    per_token = flops.flops_per_token(CONFIG, 4, lm_head=False)
    expected = 2 * (8 * per_token + 2 * model.weights.head)
    assert model.seconds(work, WIDE) == pytest.approx(expected / 1e12)


def test_a_device_of_slow_memory_takes_the_bytes() -> None:
    """Every pass reads all weights, as the embedding is the head, and the cache so far."""
    model, work = Serving(CONFIG, 2), Work(batch=2, prompt=8, new_tokens=5)
    prompt = model.weight_bytes + 16 * model.token_bytes
    step = model.weight_bytes + 2 * 10.5 * model.token_bytes
    assert model.seconds(work, NARROW) == pytest.approx((prompt + 4 * step) / 1e9)


def test_a_file_is_as_large_as_predicted_or_smaller(
    any_model: PreTrainedModel, tmp_path: Path
) -> None:
    any_model.save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    model = Serving(any_model.config, 4)
    assert model.weight_bytes < size <= model.file_bytes


def test_a_pass_over_text_reads_no_vision_tower() -> None:
    config = parts.decoder_config(whole_config("gemma3"))
    work, slow = Work(batch=1, prompt=4, new_tokens=2), Peaks(flops=1e30, bytes=1e3)
    seconds = Serving(config, 2).seconds(work, slow)
    delattr(config, parts.BESIDE)
    assert seconds == Serving(config, 2).seconds(work, slow)
