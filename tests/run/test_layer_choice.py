"""Layers of any decoder go, those that were named, or those that leave the attention pattern."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from ptl_fast import compress
from ptl_fast.config.config import Config
from ptl_fast.run import layer_choice
from support.models import make_model
from support.runs import RUN, plans
from support.settings import settings

DROP = {**RUN, "keep": 1.0, "recovery": "none", "calibration_tokens": 500}
TINY = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 0,
    "bos_token_id": None,
    "pad_token_id": 1,
}
SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 2}


def save(model_type: str, folder: Path, tokenizer: PreTrainedTokenizerBase, **own: Any) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **TINY, **own)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("model_type", "own"),
    [("gpt_neox", {}), ("glm4", {"head_dim": 8}), ("mixtral", {"num_local_experts": 4})],
)
def test_layers_go_from_models_whose_ffns_are_of_any_form(
    model_type: str,
    own: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    tiny_run: dict[str, str],
    tmp_path: Path,
    input_ids: torch.Tensor,
) -> None:
    save(model_type, tmp_path / "model", tokenizer, **own)
    run = {**tiny_run, **DROP, "model": str(tmp_path / "model"), "drop_layers": 1}
    report = compress(**run, output=tmp_path / "out")
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "final")
    assert final.config.num_hidden_layers == report["final"]["num_layers"] == 3
    assert final.num_parameters() == report["final"]["num_parameters"]
    tokens = {"max_new_tokens": 4, "do_sample": False}
    cached, uncached = (final.generate(input_ids, **tokens, use_cache=use) for use in (True, False))
    assert torch.equal(cached, uncached)


def test_named_layers_go_in_their_order(tiny_run: dict[str, str], tmp_path: Path) -> None:
    compress(**tiny_run, **DROP, layers="3,0,1", layers_per_round=2, output=tmp_path)
    dropped = [plan["dropped_layers"] for plan in plans(tmp_path)]
    # the original layer 1 is the first that is left
    assert dropped == [[0, 3], [0]]
    assert [plan["scorer"] for plan in plans(tmp_path)] == [layer_choice.NAMED] * 2
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "final").state_dict()
    original = AutoModelForCausalLM.from_pretrained(tiny_run["model"]).state_dict()
    for new, old in enumerate((2, 4)):
        name = "self_attn.q_proj.weight"
        assert torch.equal(
            weights[f"model.layers.{new}.{name}"], original[f"model.layers.{old}.{name}"]
        )


def test_the_attention_pattern_survives_unless_it_need_not(
    tiny_run: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model("gemma2").save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_run["model"]).save_pretrained(tmp_path / "model")
    run = {**tiny_run, **DROP, "model": str(tmp_path / "model"), "drop_layers": 1}
    for keeps in (True, False):
        out = tmp_path / str(keeps)
        compress(**run, keep_attention_pattern=keeps, output=out)
        kinds = json.loads((out / "final" / "config.json").read_text())["layer_types"]
        (plan,) = plans(out)
        lowest = min(range(5), key=plan["layer_scores"].__getitem__)
        if keeps:
            assert kinds == ["sliding_attention", "full_attention"] * 2
            assert plan["dropped_layers"] == [4]
        else:
            assert plan["dropped_layers"] == [lowest] != [4]
    assert "so that the attention pattern survives" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model_type", "own", "flags", "reason"),
    [
        ("minicpm3", {}, {"drop_layers": 1}, "model_type minicpm3.*residual_scale"),
        ("diffllama", {}, {"drop_layers": 1}, "lambda_init"),
        ("diffllama", {}, {"layers": "0,3"}, "--layers 0,3: diffllama: layer 1 depends"),
        ("diffllama", {}, {"layers": "3"}, None),
        (
            "jamba",
            {"attn_layer_period": 2, "attn_layer_offset": 1},
            {"drop_layers": 1},
            "not have the same",
        ),
        # every second layer has experts
        ("qwen3_moe", SPARSE, {"layers": "0,1"}, "ends without 0 alone: .*--layers-per-round 2"),
        ("qwen3_moe", SPARSE, {"layers": "0,1", "layers_per_round": 2}, None),
        (
            "qwen3_moe",
            SPARSE,
            {"drop_layers": 2},
            "such as --layers 0,1 --layers-per-round 2",
        ),
        ("llama", {}, {"layers": "1,4"}, "the model's layers are 0 to 3, and there is no 4"),
        ("gpt_neox_japanese", {}, {"drop_layers": 2}, None),
        ("bert", {}, {"drop_layers": 1}, "is_decoder false"),
        ("bart", {}, {"drop_layers": 1}, "no list of modules is so long"),
        ("gemma2", {}, {"drop_layers": 2}, None),
    ],
)
def test_what_cannot_go_is_refused_before_any_work(
    model_type: str, own: dict[str, Any], flags: dict[str, Any], reason: str | None
) -> None:
    config = AutoConfig.for_model(model_type, **TINY, **own)
    prune = settings(keep=1.0, **flags).prune
    if reason is None:
        layer_choice.check(prune, config)
        return
    with pytest.raises(ValueError, match=reason):
        layer_choice.check(prune, config)


def test_a_pattern_that_no_choice_keeps_is_refused() -> None:
    """Every sixth layer has full attention: without the first five, none could have it so early."""
    kinds = ["full_attention", *["sliding_attention"] * 3]
    config = AutoConfig.for_model("cwm", **{**TINY, "bos_token_id": 2}, layer_types=kinds)
    layer_choice.check(settings(keep=1.0, drop_layers=3).prune, config)
    config = AutoConfig.for_model("gemma3_text", **{**TINY, "num_hidden_layers": 12})
    layer_choice.check(settings(keep=1.0, drop_layers=5).prune, config)


@pytest.mark.parametrize(
    ("model_type", "flags", "told"),
    [
        pytest.param("gemma2", {"layers": "0"}, "llama.cpp cannot represent", id="named"),
        pytest.param("gemma2", {"layers": "2,3"}, None, id="a-whole-period"),
        pytest.param("gemma2", {"drop_layers": 1}, None, id="pattern-kept"),
        pytest.param(
            "gemma2",
            {"drop_layers": 1, "keep_attention_pattern": False},
            "llama.cpp assumes that every second layer",
            id="pattern-free",
        ),
        pytest.param(
            "smollm3", {"drop_layers": 1}, "llama.cpp assumes that every fourth", id="positions"
        ),
        pytest.param("llama", {"drop_layers": 1}, None, id="no-pattern"),
        pytest.param("gemma2", {"keep": 0.5}, None, id="no-layers"),
    ],
)
def test_what_an_engine_would_misread_is_told_beforehand(
    model_type: str, flags: dict[str, Any], told: str | None
) -> None:
    original = AutoConfig.for_model(model_type, num_hidden_layers=8)
    notes = layer_choice.engine_notes(Config.from_flat(**flags).prune, original)
    found = [note for note in notes if note.startswith("llama.cpp")]
    assert [note.startswith(str(told)) for note in found] == [True] * (told is not None)
