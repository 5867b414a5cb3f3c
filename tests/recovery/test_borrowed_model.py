"""A trainer borrows the model, and leaves nothing on it."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

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
