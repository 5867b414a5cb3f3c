"""Training on Liger's kernels: refused where it cannot run, and leaving no trace of them."""

import copy
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ptl_fast import compress
from ptl_fast.base.run_files import RecoveryFolder
from ptl_fast.config.trainer import TrainerSettings
from ptl_fast.recovery import liger as liger_module
from ptl_fast.recovery import trainer
from support.models import make_model
from support.runs import main


def test_liger_is_refused_on_a_cpu_and_where_it_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--preset", "demo", "--device", "cpu", "--liger", "--output", str(tmp_path / "out")]
    assert main(flags) == 2
    assert "--liger trains on kernels that run on GPUs only" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(liger_module.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ValueError, match="pip install liger-kernel"):
            liger_module.check_liger("cuda")
        patch.setattr(liger_module.importlib.util, "find_spec", lambda name: name)
        liger_module.check_liger("cuda:1")
    with pytest.raises(ValueError, match="--liger is about training"):
        compress(model="x", data="x", liger=True, recovery="none", output=str(tmp_path / "out"))


@pytest.mark.parametrize(("has_own_ffn", "ffn"), [(False, True), (True, False)])
def test_trainer_gets_liger_with_the_ffn_that_is_not_ours(has_own_ffn: bool, ffn: bool) -> None:
    model: Any = make_model("llama")

    def arguments(liger: bool) -> dict[str, Any]:
        task: Any = types.SimpleNamespace(
            folder=RecoveryFolder(Path("x")),
            trainer=TrainerSettings(liger=liger),
            seed=0,
            run_name="x",
            has_own_ffn=has_own_ffn,
        )
        return trainer.common_arguments(model, task)

    with_liger = arguments(liger=True)
    assert with_liger["use_liger_kernel"]
    kernels = with_liger["liger_kernel_config"]
    assert kernels["swiglu"] is kernels["geglu"] is ffn
    assert not kernels["cross_entropy"]
    assert not arguments(liger=False)["use_liger_kernel"]


def test_what_liger_patches_is_undone(llama: Any, input_ids: torch.Tensor) -> None:
    """As Liger does it: new forwards in the modules' own dictionaries, and other classes and
    functions for the family.
    """
    expected = llama(input_ids).logits
    namespace = sys.modules[type(llama).__module__]
    names = ("LlamaRMSNorm", "apply_rotary_pos_emb")
    before = {name: getattr(namespace, name) for name in names}
    with liger_module.unpatched_afterwards(llama):
        for module in llama.modules():
            if isinstance(module, before["LlamaRMSNorm"]):
                module.__dict__["forward"] = types.MethodType(
                    lambda self, hidden: hidden * 0, module
                )
                module.offset = 1.0
        for name in names:
            setattr(namespace, name, nn.Identity)
    assert {name: getattr(namespace, name) for name in names} == before
    assert torch.equal(llama(input_ids).logits, expected)
    assert not any(hasattr(module, "offset") for module in llama.modules())


def test_real_liger_is_undone(llama: Any, input_ids: torch.Tensor) -> None:
    liger = pytest.importorskip("liger_kernel.transformers")
    expected = llama(input_ids).logits
    undone = copy.deepcopy(llama)
    with liger_module.unpatched_afterwards(undone):
        kernels = liger_module.liger_kernels(has_own_ffn=False)
        liger._apply_liger_kernel_to_instance(undone, **kernels)
        assert undone.model.layers[0].mlp._get_name() == "LigerSwiGLUMLP"
    assert torch.equal(undone(input_ids).logits, expected)
