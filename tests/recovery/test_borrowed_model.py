"""A trainer borrows the model, and leaves nothing on it."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from ptl_fast.recovery.borrowed_model import borrowed
from support.models import make_model
from support.recovery import cast, config, packed, train


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounds_in_one_process_do_not_disturb_each_other(
    llama: PreTrainedModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    """The second recovery equals the same recovery by a fresh copy of the weights; nothing of the
    first stays attached.
    """
    llama = cast(llama, dtype)
    train(llama, packed(), 400, config(), tmp_path / "round-01" / "recovery")
    assert not {"forward", "_is_accelerate_prepared"} & set(llama.__dict__)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in llama.modules())
    assert llama.model.rotary_emb.inv_freq.dtype == torch.float32
    fresh = cast(make_model("llama"), dtype)
    fresh.load_state_dict(llama.state_dict())
    train(llama, packed(seed=6), 400, config(), tmp_path / "round-02" / "recovery")
    train(fresh, packed(seed=6), 400, config(), tmp_path / "round-03" / "recovery")
    for name, parameter in llama.named_parameters():
        assert torch.equal(parameter, fresh.get_parameter(name)), name


@pytest.mark.parametrize(
    ("with_deepspeed", "inside"), [(False, torch.float32), (True, torch.bfloat16)]
)
def test_half_precision_weights_have_masters_while_they_train(
    with_deepspeed: bool, inside: torch.dtype
) -> None:
    """DeepSpeed keeps its own; and what a Trainer puts on the model is gone afterwards."""
    model = cast(make_model("llama", tie_word_embeddings=True), torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with borrowed(model, with_deepspeed):
        assert {parameter.dtype for parameter in model.parameters()} == {inside}
        assert model.lm_head.weight is model.model.embed_tokens.weight
        model.config.use_cache = False
        model.model.layers[1].ds_grads_remaining = 3
        model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq.bfloat16()
        trained = model.model.norm.weight
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.use_cache
    assert not hasattr(model.model.layers[1], "ds_grads_remaining")
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.model.norm.weight is not trained, "a training's hooks stay on its parameters"


def test_a_parameter_of_another_type_comes_back_as_it_was() -> None:
    """transformers keeps single ones in float32 in a model of half precision."""
    model = cast(make_model("llama"), torch.bfloat16)
    model.model.layers[1].input_layernorm.float()
    with borrowed(model, with_deepspeed=False):
        pass
    assert model.model.layers[1].input_layernorm.weight.dtype == torch.float32
    assert model.model.layers[2].input_layernorm.weight.dtype == torch.bfloat16
