"""Tiny random models of every tested family, the demo's tokenizer, and a way to run the command
line.
"""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

# before anything imports Hugging Face's libraries: a name that is no file must not wait for the hub
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# before anything imports Triton kernels: without a GPU its interpreter runs them on the CPU
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ptl_fast.demo.problems import generate
from support.files import write_rows
from support.models import DEMO_MODEL, FAMILIES, make_model
from support.processes import without_waiting_for_disks

# What takes longest begins first, so that several workers end together.
LONGEST = ("end_to_end", "recovery", "run", "benchmarks", "kernels")


@pytest.fixture(scope="session", autouse=True)
def signals() -> None:
    """As a terminal starts a program: nohup and a shell's background jobs have it ignore two."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def quick_writes() -> Iterator[None]:
    """See without_waiting_for_disks; tests of fsync put their own in its place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fsync)
        without_waiting_for_disks()
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folders in the order of LONGEST, then the others."""

    def place(item: pytest.Item) -> int:
        folder = next((part for part in LONGEST if part in item.path.parts), None)
        return LONGEST.index(folder) if folder is not None else len(LONGEST)

    items.sort(key=place)


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> None:
    """Every recovery ends with several garbage collections, and most of what they would look at are
    the libraries.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


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
    """Settings that name a tiny model, arithmetic problems and an evaluation on a few of them, all
    on disk.
    """
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
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "TRITON_INTERPRET": "0",
    }


@pytest.fixture
def command_line(
    environment: dict[str, str], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python -m ptl_fast.compress`` with these flags in an empty folder."""

    def run(*flags: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ptl_fast.compress", *map(str, flags)]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout
        )

    return run
