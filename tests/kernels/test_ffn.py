"""Statistics of a whole model: by structure, exact, and without leaving a trace."""

import copy
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ptl_kernels import (
    Ffn,
    FfnStatistics,
    NeuronSums,
    collect_statistics,
    find_gated_ffns,
    fused_ffns,
    matrix,
    reference,
)
from ptl_kernels.ffn import recognize_activation
from support.models import WIDTH, make_model

RELATIVE = 1e-5


def eager_sums(
    model: PreTrainedModel, input_ids: Tensor, mask: Tensor | None = None
) -> dict[str, tuple[Tensor, ...]]:
    """The same statistics by plain hooks on the unchanged model."""
    seen: dict[str, list[Tensor]] = {name: [] for name in find_gated_ffns(model)}
    handles = [
        ffn.down.register_forward_pre_hook(
            lambda module, args, into=seen[name]: into.append(args[0].detach().flatten(0, -2))
        )
        for name, ffn in find_gated_ffns(model).items()
    ]
    with torch.inference_mode():
        model(input_ids)
    for handle in handles:
        handle.remove()
    return {
        name: reference.neuron_sums(torch.cat(parts), None if mask is None else mask.flatten())
        for name, parts in seen.items()
    }


def untouched(model: nn.Module) -> bool:
    return not any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
        for module in model.modules()
    )


@pytest.mark.parametrize("use_dual_gemm", [False, True])
@pytest.mark.parametrize("mode", ["fast", "match_hf"])
def test_statistics_of_any_family_equal_hooks(
    any_model: PreTrainedModel, input_ids: Tensor, mode: str, use_dual_gemm: bool
) -> None:
    mask = torch.rand(input_ids.shape) < 0.7
    expected = eager_sums(any_model, input_ids, mask)
    with torch.inference_mode():
        logits = any_model(input_ids).logits
        with collect_statistics(
            any_model, every=True, mode=mode, use_dual_gemm=use_dual_gemm
        ) as statistics:
            statistics.token_mask = mask
            watched = any_model(input_ids).logits
        assert torch.equal(any_model(input_ids).logits, logits)
    if mode == "match_hf":
        assert torch.equal(watched, logits)
    torch.testing.assert_close(watched, logits, atol=2e-5, rtol=2e-5)
    assert list(statistics.sums) == list(expected)
    assert statistics.square().shape == (5, WIDTH)
    for name, sums in statistics.sums.items():
        for total, value in zip(sums.tensors(), expected[name], strict=True):
            torch.testing.assert_close(total, value, rtol=RELATIVE, atol=RELATIVE)
    assert untouched(any_model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_biases(dtype: torch.dtype, input_ids: Tensor) -> None:
    model = make_model("llama", mlp_bias=True).to(dtype)
    expected = eager_sums(model, input_ids)
    with torch.inference_mode(), collect_statistics(model, mode="match_hf") as statistics:
        model(input_ids)
    for name, sums in statistics.sums.items():
        torch.testing.assert_close(sums.square, expected[name][0], rtol=RELATIVE, atol=RELATIVE)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_counts_each_token_once(
    llama: PreTrainedModel, input_ids: Tensor, use_reentrant: bool
) -> None:
    """And the gradients are those of the unchanged model."""
    expected = eager_sums(llama, input_ids)
    llama(input_ids, labels=input_ids).loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in llama.named_parameters()}
    llama.zero_grad()
    llama.train()
    llama.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    llama.enable_input_require_grads()
    with collect_statistics(llama, mode="match_hf") as statistics:
        llama(input_ids, labels=input_ids).loss.backward()
    for name, sums in statistics.sums.items():
        torch.testing.assert_close(sums.square, expected[name][0], rtol=RELATIVE, atol=RELATIVE)
    for name, parameter in llama.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)


def test_fused_training_keeps_one_activation_less(
    llama: PreTrainedModel, input_ids: Tensor
) -> None:
    def kept_bytes() -> int:
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            seen[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            llama(input_ids, labels=input_ids)
        return sum(seen.values())

    eager = kept_bytes()
    with fused_ffns(find_gated_ffns(llama)):
        fused = kept_bytes()
    activation = input_ids.numel() * WIDTH * 4
    assert eager - fused >= 5 * activation


def test_model_is_restored_after_an_exception(llama: PreTrainedModel, input_ids: Tensor) -> None:
    with pytest.raises(RuntimeError, match="inside"), collect_statistics(llama):
        raise RuntimeError("inside")
    assert untouched(llama)


def test_disabled_statistics_count_nothing(llama: PreTrainedModel, input_ids: Tensor) -> None:
    with torch.inference_mode(), collect_statistics(llama) as statistics:
        statistics.enabled = False
        llama(input_ids)
    assert not statistics.square().any()


def test_device_map(llama: PreTrainedModel, input_ids: Tensor, tmp_path: Path) -> None:
    """accelerate's hooks stay around the swapped forward: weights on disk are loaded for it."""
    from transformers import AutoModelForCausalLM

    expected = eager_sums(llama, input_ids)
    llama.save_pretrained(tmp_path / "model")
    placed = {
        "model.embed_tokens": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    }
    placed |= {f"model.layers.{index}": "disk" if index == 2 else "cpu" for index in range(5)}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=placed, offload_folder=tmp_path / "offload"
    )
    with torch.inference_mode():
        logits = model(input_ids).logits
        with collect_statistics(model) as statistics:
            watched = model(input_ids).logits
        torch.testing.assert_close(watched, logits, atol=2e-5, rtol=2e-5)
        assert torch.equal(model(input_ids).logits, logits)
    for name, sums in statistics.sums.items():
        torch.testing.assert_close(sums.square, expected[name][0], rtol=RELATIVE, atol=RELATIVE)


class OddFfn(nn.Module):
    """Carries the usual names and computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (
            nn.Linear(6, 9),
            nn.Linear(6, 9),
            nn.Linear(9, 6),
        )
        self.act_fn = nn.SiLU()

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden) + 1.0)


def test_a_module_that_computes_something_else_keeps_its_forward() -> None:
    model, hidden = nn.Sequential(OddFfn()), torch.randn(4, 6)
    expected = model(hidden)
    with (
        pytest.warns(UserWarning, match="OddFfn runs as it is.*does not compute"),
        collect_statistics(model) as statistics,
    ):
        assert torch.equal(model(hidden), expected)
    ffn = model[0]
    activation = ffn.act_fn(ffn.gate_proj(hidden)) * ffn.up_proj(hidden) + 1.0
    torch.testing.assert_close(
        statistics.sums["0"].square, reference.neuron_sums(activation)[0], rtol=RELATIVE, atol=0.0
    )
    assert untouched(model)


class TwoArguments(OddFfn):
    def forward(self, hidden: Tensor, scale: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden)) * scale


def test_a_module_that_cannot_be_checked_keeps_its_forward() -> None:
    module, hidden, scale = TwoArguments(), torch.randn(4, 6), torch.tensor(2.0)
    expected = module(hidden, scale)
    with (
        pytest.warns(UserWarning, match="TwoArguments runs as it is.*TypeError"),
        collect_statistics(module) as statistics,
    ):
        assert torch.equal(module(hidden, scale), expected)
    assert (statistics.square() > 0).all()


def test_every_module_is_checked(llama: PreTrainedModel, input_ids: Tensor) -> None:
    """One of five layers computes something else, though its class is that of the others."""
    mlp = llama.model.layers[1].mlp
    original = mlp.forward
    mlp.forward = lambda hidden: original(hidden) * 0.5
    with torch.inference_mode():
        expected = llama(input_ids).logits
        with (
            pytest.warns(UserWarning, match="LlamaMLP runs as it is"),
            collect_statistics(llama) as statistics,
        ):
            torch.testing.assert_close(llama(input_ids).logits, expected, atol=2e-5, rtol=2e-5)
    assert (statistics.square() > 0).all()


def test_nested_and_hooked_blocks_see_real_tokens_only(
    llama: PreTrainedModel, input_ids: Tensor
) -> None:
    expected, seen = eager_sums(llama, input_ids), []
    handles = [
        llama.model.layers[0].mlp.down_proj.register_forward_hook(lambda *args: seen.append(0))
    ]
    handles.append(
        llama.model.layers[0].mlp.act_fn.register_forward_hook(
            lambda module, args, output: seen.append(output)
        )
    )
    with torch.inference_mode(), collect_statistics(llama) as outer:
        with collect_statistics(llama) as inner:
            pass
        assert seen == []
        llama(input_ids)
    for handle in handles:
        handle.remove()
    assert len(seen) == 2
    gate = llama.model.layers[0].mlp.gate_proj
    assert seen[0].shape == (*input_ids.shape, gate.out_features), (
        "what a hook keeps is not written over"
    )
    assert not inner.square().any()
    for name, sums in outer.sums.items():
        torch.testing.assert_close(sums.square, expected[name][0], rtol=RELATIVE, atol=RELATIVE)


def test_a_copy_made_inside_is_a_model_of_its_own(
    llama: PreTrainedModel, input_ids: Tensor
) -> None:
    with torch.inference_mode(), collect_statistics(llama) as statistics:
        clone = copy.deepcopy(llama)
        for layer in clone.model.layers:
            layer.mlp.down_proj.weight.zero_()
        assert not torch.allclose(clone(input_ids).logits, llama(input_ids).logits)
        counted = statistics.square()
        clone(input_ids)
        assert torch.equal(statistics.square(), counted)


def test_autocast_is_no_reason_to_fall_back(llama: PreTrainedModel, input_ids: Tensor) -> None:
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        warnings.simplefilter("error")
        with collect_statistics(llama) as statistics:
            llama(input_ids)
    assert (statistics.square() > 0).all()


def test_other_activations_run_as_they_are(input_ids: Tensor) -> None:
    """ReLU and exact GELU: the module's own function, then the fused product."""
    for name in ("relu", "gelu"):
        model = make_model("llama", hidden_act=name)
        expected = eager_sums(model, input_ids)
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("error")
            with collect_statistics(model) as statistics:
                model(input_ids)
        for each, sums in statistics.sums.items():
            torch.testing.assert_close(sums.square, expected[each][0], rtol=RELATIVE, atol=RELATIVE)


def test_activations_are_recognized_by_what_they_compute() -> None:
    assert recognize_activation(nn.SiLU()) == "silu"
    assert recognize_activation(lambda x: x * torch.sigmoid(x)) == "silu"
    assert recognize_activation(nn.GELU(approximate="tanh")) == "gelu_tanh"
    assert recognize_activation(nn.GELU()) == "gelu"
    assert recognize_activation(nn.ReLU()) == "relu"
    assert recognize_activation(lambda x: x.relu().square()) == "relu2"
    assert recognize_activation(lambda x: x * torch.sigmoid(1.702 * x)) is None
    assert recognize_activation(nn.PReLU()) is None
    assert recognize_activation(lambda x: nn.functional.silu(x).clamp(max=7.0)) is None
    assert recognize_activation("silu") is None


def test_a_model_without_gated_ffns_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="Linear has no module with linear gate_proj"),
        collect_statistics(nn.Linear(2, 2)),
    ):
        pass


WITHOUT_OTHERS = """
import sys
for name in ("transformers", "numpy", "ptl_fast", "datasets", "accelerate"):
    sys.modules[name] = None  # importing it here would fail
import torch
from torch import nn
import ptl_kernels
gate, up = torch.randn(5, 8), torch.randn(5, 8)
sums = ptl_kernels.NeuronSums.zeros(8, "cpu")
ptl_kernels.gated_activation(gate, up, sums=sums)
print(float(sums.square.sum()) > 0)
"""


def test_needs_only_torch_and_triton(tmp_path: Path) -> None:
    # Triton's interpreter, unlike Triton, needs NumPy.
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", WITHOUT_OTHERS]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == "True", result.stderr


class Ungated(nn.Module):
    """down(act(up(x))), with biases; ``transposed`` with transformers' Conv1D."""

    def __init__(self, act: nn.Module, transposed: bool) -> None:
        super().__init__()
        if transposed:
            from transformers.pytorch_utils import Conv1D

            self.up, self.down = Conv1D(40, 16), Conv1D(16, 40)
        else:
            self.up, self.down = nn.Linear(16, 40), nn.Linear(40, 16)
        self.act = act

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down(self.act(self.up(hidden)))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", ["relu", "relu2", "gelu", "gelu_new", "gelu_pytorch_tanh", "silu"])
def test_ffns_without_a_gate_run_fused_and_give_statistics(
    name: str, transposed: bool, recwarn: pytest.WarningsRecorder
) -> None:
    from transformers.activations import ACT2FN

    module = Ungated(ACT2FN[name], transposed)
    ffn = Ffn(module, [module.up], module.down)
    assert (ffn.gated, ffn.fused, ffn.width) == (False, False, 40)
    hidden = torch.randn(3, 7, 16)
    expected, seen = module(hidden), module.act(module.up(hidden)).flatten(0, 1)
    statistics = FfnStatistics({"0": NeuronSums.zeros(40, "cpu", every=True)})
    with fused_ffns({"0": ffn}, statistics):
        assert module.__dict__["forward"], "not swapped"
        out = module(hidden)
        leaf = hidden.clone().requires_grad_()
        module(leaf).sum().backward()
    assert not recwarn.list
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    for total, each in zip(
        statistics.sums["0"].tensors(), reference.neuron_sums(seen), strict=True
    ):
        factor = 1 if total is statistics.sums["0"].maximum else 2  # two passes counted
        torch.testing.assert_close(total, factor * each, rtol=1e-4, atol=1e-5)
    other = hidden.clone().requires_grad_()
    module(other).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_matrix_is_a_view_in_which_weights_can_be_changed() -> None:
    from transformers.pytorch_utils import Conv1D

    linear = Conv1D(40, 16)
    with torch.no_grad():
        matrix(linear)[7] = 3
    assert matrix(linear).shape == (40, 16)
    assert (linear.weight[:, 7] == 3).all()
    plain = nn.Linear(16, 40)
    assert matrix(plain) is plain.weight
