"""Tiny random models of every tested family, the demo's tokenizer, and a way to run the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton kernels: they then run on the CPU

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ptl_fast.demo.problems import generate

# Where Triton kernels run in the tests, and with which types: Triton's interpreter computes bf16 products wrongly.
TRITON_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON_DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else [])]
# Relative error of a whole tensor, ||out - expected|| / ||expected||, against float64: a few roundings of each type.
ERRORS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

DEMO_MODEL = Path(__file__).parents[1] / "ptl_fast" / "demo" / "model"
FAMILIES = ["llama", "qwen2", "gemma2", "mistral", "qwen3", "phi3"]
NUM_LAYERS, WIDTH, HIDDEN = 5, 48, 32


def write_rows(path: Path, *rows: object) -> str:
    """Write a jsonl file, texts as they are; return its path."""
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """||out - expected|| / ||expected|| of values of order 1, in float64; NaN or a wrong shape never passes.

    A few values may all be tiny by chance, and then be rounded to zero: the norm counts as at least a tenth an element.
    """
    assert out.shape == expected.shape
    scale = expected.double().norm().clamp_min(0.1 * expected.numel() ** 0.5)
    error = float((out.double() - expected.double()).norm() / scale)
    return error if error == error else float("inf")


def make_model(family: str, **overrides: object) -> PreTrainedModel:
    """A random float32 model with 5 layers; biases are random too, where the family has them."""
    settings = {
        "vocab_size": 384,
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "pad_token_id": 1,
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    if family in ("gemma2", "mistral"):
        settings["sliding_window"] = 8
    if family == "gemma2":
        settings["query_pre_attn_scalar"] = 8
    config = AutoConfig.for_model(family, **{**settings, **overrides})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(params=FAMILIES)
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_model(request.param)


@pytest.fixture
def llama() -> PreTrainedModel:
    return make_model("llama")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DEMO_MODEL)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings that name a tiny model, arithmetic problems and an evaluation on a few of them, all on disk."""
    folder = tmp_path_factory.mktemp("inputs")
    make_model("llama").save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained(folder / "model")
    write_rows(folder / "data.jsonl", *generate(400, 9, "training"))
    write_rows(folder / "test.jsonl", *generate(8, 10, "training"))
    return {
        "model": str(folder / "model"),
        "data": str(folder / "data.jsonl"),
        "eval_tasks": f"nll={folder / 'test.jsonl'}",
    }


@pytest.fixture
def input_ids() -> torch.Tensor:
    return torch.randint(2, 384, (3, 21), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """One thread a process, so that parallel ones do not fight, and no network."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu", "TRITON_INTERPRET": "0"}


@pytest.fixture
def command_line(environment: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python -m ptl_fast.compress`` with these flags in an empty folder."""

    def run(*flags: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ptl_fast.compress", *map(str, flags)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout)

    return run
