"""A model is loaded where it was asked for; weights that do not fit are refused, and
others are noticed.
"""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from ptl_fast.model import loading
from support.files import write_data
from support.mixtures import make_mixture
from support.models import make_model
from support.runs import main
from support.settings import settings


@pytest.mark.parametrize("problem", ["missing", "truncated", "more-layers", "fewer-layers"])
def test_weights_that_do_not_fit_are_refused(
    problem: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """transformers would fill the gaps with random weights and go on."""
    monkeypatch.chdir(tmp_path)
    make_model("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_data(tmp_path / "data.jsonl", 600)
    weights, config = tmp_path / "model" / "model.safetensors", tmp_path / "model" / "config.json"
    if problem == "missing":
        kept = {
            name: tensor
            for name, tensor in load_file(weights).items()
            if "layers.2.mlp" not in name
        }
        save_file(kept, weights, metadata={"format": "pt"})
    elif problem == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        settings = json.loads(config.read_text())
        settings["num_hidden_layers"] = 7 if problem == "more-layers" else 3
        config.write_text(json.dumps(settings))
    flags = "--model model --data data.jsonl --output out --keep 0.5 --width-multiple 8"
    assert main([*flags.split(), "--recovery", "none", "--sequence-length", "64"]) == 2
    message = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    assert message.startswith("error: --model model")
    assert ("do not belong together" in message) == (problem != "truncated")
    assert not (tmp_path / "out").exists()


def test_a_routers_missing_row_is_told_with_both_shapes(tmp_path: Path) -> None:
    make_mixture("mixtral").save_pretrained(tmp_path)
    file, name = tmp_path / "model.safetensors", "model.layers.1.block_sparse_moe.gate.weight"
    weights = load_file(file)
    save_file({**weights, name: weights[name][:3].clone()}, file, metadata={"format": "pt"})
    told = r"mlp.gate.weight, which is stored as \[3, 32\], and by the config \[4, 32\]$"
    with pytest.raises(ValueError, match=told):
        loading.load_model(str(tmp_path), settings().model, "cpu")


@pytest.mark.parametrize(
    ("count", "local_rank", "asked", "expected"),
    [
        pytest.param(0, None, "auto", "cpu", id="none"),
        pytest.param(
            0, None, "cuda", "not present .found 0 CUDA devices.; use --device cpu", id="cuda"
        ),
        pytest.param(2, None, "auto", "cuda:0", id="first"),
        pytest.param(2, "1", "cuda", "cuda:1", id="the-ranks-own"),
        pytest.param(2, "1", "cuda:0", "cuda:0", id="the-one-named"),
        pytest.param(
            2, None, "cuda:2", "not present .found 2 CUDA devices.; use --device cuda", id="third"
        ),
        pytest.param(2, None, "cuda:x", "unknown --device cuda:x", id="no-number"),
        pytest.param(2, None, "cpu", "cpu", id="cpu"),
    ],
)
def test_device_is_the_ranks_own_or_the_one_named(
    count: int, local_rank: str | None, asked: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    if " " in expected:
        with pytest.raises(ValueError, match=expected):
            loading.resolve_device(asked)
        return
    assert loading.resolve_device(asked) == expected
    assert [f"cuda:{number}" for number in chosen] == [expected] * expected.startswith("cuda")


def test_stages_do_not_depend_on_what_ran_before() -> None:
    def drawn() -> tuple[float, float]:
        loading.seed_everything(5)
        return random.random(), float(torch.rand(()))

    first = drawn()
    torch.rand(7)
    random.random()
    assert drawn() == first
