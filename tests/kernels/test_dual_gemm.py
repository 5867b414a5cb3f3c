"""The dual GEMM with statistics equals its twin in float64: both kernels (interpreted where there
is no GPU), and the op on a CPU.
"""

import sys

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ptl_kernels import NeuronSums, reference
from ptl_kernels.dual_gemm import POINTERS, TMA, choose_launcher, dual_gemm, launch, launch_tma
from support.triton import TRITON_DEVICE

# Relative and absolute.
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}
# Blocks of which few tokens make several, for the interpreter.
SMALL = {"BLOCK_T": 32, "BLOCK_I": 32, "BLOCK_H": 16, "GROUP": 2, "num_warps": 4, "num_stages": 2}
LAUNCHERS = [pytest.param(launch, id="pointers"), pytest.param(launch_tma, id="tma")]
SHIPPED = [pytest.param(launch, POINTERS, id="pointers"), pytest.param(launch_tma, TMA, id="tma")]
SHAPES = [
    pytest.param(63, 100, 40, id="T63-I100-H40"),
    pytest.param(66, 129, 48, id="T66-I129-H48"),  # 3 x 5 tiles: groups of 2 and 1; whole depth
    pytest.param(1, 33, 8, id="T1-I33-H8"),
]
HALVES = [pytest.param(torch.float16, id="fp16"), pytest.param(torch.bfloat16, id="bf16")]
needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device, and there is none"
)


@pytest.fixture(autouse=True)
def unwritten_memory_holds_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def poisoned(*shape: object, **options: object) -> Tensor:
        tensor = empty(*shape, **options)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def generator() -> torch.Generator:
    seed = torch.seed() % 2**31
    print(f"seed {seed}", file=sys.stderr)  # pytest shows it where a test fails
    return torch.Generator().manual_seed(seed)


def inputs(
    generator: torch.Generator,
    tokens: int,
    width: int,
    hidden: int,
    dtype: torch.dtype,
    bias: bool = False,
) -> list:
    """[hidden, gate_weight, up_weight, gate_bias, up_bias] with gate and up of about unit size."""

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(TRITON_DEVICE, dtype)

    matrices = [random(tokens, hidden), *(random(width, hidden) / hidden**0.5 for _ in range(2))]
    return matrices + ([random(width), random(width)] if bias else [None, None])


def run_kernel(
    launcher,
    tensors: list,
    activation: str | None,
    mode: str,
    mask_T: Tensor | None,
    every: bool,
    config=SMALL,
    store: bool = True,
):
    """(out, sums) of one launch; out lies inside a larger tensor, which must stay as it was around
    it.
    """
    _require(launcher)
    tokens, width = len(tensors[0]), len(tensors[1])
    around = torch.full(
        (tokens + 3, width), torch.nan, dtype=tensors[0].dtype, device=TRITON_DEVICE
    )
    sums = NeuronSums.zeros(width, TRITON_DEVICE, every)
    launcher(
        *tensors,
        around[:tokens] if store else None,
        activation,
        sums.tensors(),
        mask_T,
        mode,
        config,
    )
    assert around[tokens if store else 0 :].isnan().all()
    return around[:tokens], sums


def _require(launcher) -> None:
    if (
        TRITON_DEVICE == "cuda"
        and launcher is launch_tma
        and torch.cuda.get_device_capability()[0] < 9
    ):
        pytest.skip("this CUDA device has no TMA, which needs compute capability 9.0")


def assert_close_to_twin(
    out: Tensor, tensors: list, activation: str | None, mask_T: Tensor | None = None
) -> None:
    tolerance = TOLERANCES[out.dtype]
    twin = reference.dual_gemm(
        *(None if tensor is None else tensor.double() for tensor in tensors), activation
    )
    counted = slice(None) if mask_T is None else mask_T
    torch.testing.assert_close(out[counted].double(), twin[counted], rtol=tolerance, atol=tolerance)


def assert_sums_are_of(out: Tensor, sums: NeuronSums, mask_T: Tensor | None) -> None:
    """Of the values as returned: only the order of an fp32 sum is left, whatever the type."""
    for total, expected in zip(sums.tensors(), reference.neuron_sums(out, mask_T), strict=False):
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("dtype", [*HALVES, pytest.param(torch.float32, id="fp32")])
@pytest.mark.parametrize(("tokens", "width", "hidden"), SHAPES)
def test_kernel_equals_twin_in_fp64(launcher, dtype, tokens, width, hidden, generator):
    if TRITON_DEVICE == "cuda" and dtype == torch.float32:
        pytest.skip("on a GPU the op sends fp32 to two linear layers, not to this kernel")
    if TRITON_DEVICE == "cpu" and dtype == torch.bfloat16:
        pytest.skip(
            "Triton's interpreter multiplies the bits of bf16 as integers; bf16 kernels need a"
            " CUDA device"
        )
    tensors = inputs(generator, tokens, width, hidden, dtype)
    out, sums = run_kernel(launcher, tensors, "silu", "fast", None, every=True)
    assert_close_to_twin(out, tensors, "silu")
    assert_sums_are_of(out, sums, None)


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("mode", ["fast", "match_hf"])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", None])
def test_activations_and_modes_with_biases(launcher, mode, activation, generator):
    tensors = inputs(generator, 63, 100, 40, torch.float16, bias=True)
    out, sums = run_kernel(launcher, tensors, activation, mode, None, every=False)
    assert_close_to_twin(out, tensors, activation)
    assert_sums_are_of(out, sums, None)


@pytest.mark.parametrize("bias", ["gate", "up"])
def test_one_bias_alone(bias, generator):
    tensors = inputs(generator, 33, 40, 16, torch.float16, bias=True)
    tensors[4 if bias == "gate" else 3] = None
    out, _ = run_kernel(launch, tensors, "silu", "fast", None, every=False)
    assert_close_to_twin(out, tensors, "silu")


@pytest.mark.parametrize(("launcher", "config"), SHIPPED)
def test_shipped_configuration(launcher, config, generator):
    tensors = inputs(generator, 130, 257, 96, torch.float16, bias=True)
    mask_T = torch.rand(130, generator=generator).to(TRITON_DEVICE) < 0.5
    tensors[0][~mask_T] = torch.nan
    out, sums = run_kernel(launcher, tensors, "silu", "fast", mask_T, every=True, config=config)
    assert_close_to_twin(out, tensors, "silu", mask_T)
    assert_sums_are_of(out, sums, mask_T)


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("every", [False, True])
def test_masked_tokens_may_be_nan(launcher, every, generator):
    tensors = inputs(generator, 63, 100, 40, torch.float16)
    mask_T = torch.rand(63, generator=generator).to(TRITON_DEVICE) < 0.5
    mask_T[62] = False  # the last row, which the rows beyond the end repeat
    tensors[0][~mask_T] = torch.nan
    out, sums = run_kernel(launcher, tensors, "silu", "fast", mask_T, every)
    assert_close_to_twin(out, tensors, "silu", mask_T)
    assert_sums_are_of(out, sums, mask_T)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_rows_beyond_the_end_are_not_counted(launcher, generator):
    """With 33 tokens the second tile repeats its only row, or reads zeros that a bias makes
    nonzero.
    """
    tensors = inputs(generator, 33, 40, 16, torch.float16, bias=True)
    out, sums = run_kernel(launcher, tensors, None, "fast", None, every=True)
    assert_sums_are_of(out, sums, None)


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("mode", ["fast", "match_hf"])
def test_statistics_alone_equal_statistics_with_the_store(launcher, mode, generator):
    tensors = inputs(generator, 66, 100, 40, torch.float16, bias=True)
    mask_T = torch.rand(66, generator=generator).to(TRITON_DEVICE) < 0.7
    _, with_store = run_kernel(launcher, tensors, "silu", mode, mask_T, every=True)
    _, alone = run_kernel(launcher, tensors, "silu", mode, mask_T, every=True, store=False)
    for total, expected in zip(alone.tensors(), with_store.tensors(), strict=True):
        torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_match_hf_rounds_gate_and_up_first_and_fast_does_not(launcher, generator):
    tensors = inputs(generator, 63, 100, 40, torch.float16)
    gate, up = (tensors[0].double() @ weight.double().T for weight in tensors[1:3])
    expected = reference.gated_activation(gate.half(), up.half(), "silu", "match_hf")
    equal = {
        mode: (run_kernel(launcher, tensors, "silu", mode, None, False)[0] == expected)
        .float()
        .mean()
        for mode in ("fast", "match_hf")
    }
    assert equal["match_hf"] > 0.97, equal
    assert equal["fast"] < 0.9, equal


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_rows_and_weights_may_be_slices(launcher, generator):
    """Hidden states with a longer row stride, and the two halves of a fused weight."""
    wide, fused = (
        torch.randn(shape, generator=generator).to(TRITON_DEVICE, torch.float16)
        for shape in [(63, 80), (200, 40)]
    )
    tensors = [wide[:, :40], *fused.chunk(2), None, None]
    out, sums = run_kernel(launcher, tensors, "silu", "fast", None, every=True)
    assert_close_to_twin(out, tensors, "silu")
    assert_sums_are_of(out, sums, None)


def test_calls_add_to_the_sums_and_repeat_exactly(generator):
    tensors = inputs(generator, 66, 100, 40, torch.float16)
    _, once = run_kernel(launch, tensors, "silu", "fast", None, every=True, store=False)
    twice = NeuronSums.zeros(100, TRITON_DEVICE, every=True)
    for _ in range(2):
        launch(*tensors, None, "silu", twice.tensors(), None, "fast", SMALL)
    for name in ("square", "sum", "absolute"):
        assert torch.equal(getattr(twice, name), 2 * getattr(once, name)), name
    assert torch.equal(twice.maximum, once.maximum)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.float16],
    ids=["fp64", "fp32", "bf16", "fp16"],
)
@pytest.mark.parametrize("mode", ["fast", "match_hf"])
def test_op_equals_twin(dtype, mode, generator):
    tensors = inputs(generator, 65, 100, 40, dtype, bias=True)
    mask_T = torch.rand(65, generator=generator).to(TRITON_DEVICE) < 0.6
    tensors[0][~mask_T] = torch.nan
    sums, alone = (NeuronSums.zeros(100, TRITON_DEVICE, every=True) for _ in range(2))
    options = {"token_mask": mask_T.view(5, 13), "mode": mode}
    hidden = tensors[0].view(5, 13, 40)
    out = dual_gemm(hidden, *tensors[1:], "gelu_tanh", sums=sums, **options)
    assert out.shape == (5, 13, 100)
    assert out.dtype == dtype
    assert_close_to_twin(out.view(65, 100), tensors, "gelu_tanh", mask_T)
    assert_sums_are_of(out.view(65, 100), sums, mask_T)
    assert dual_gemm(hidden, *tensors[1:], "gelu_tanh", sums=alone, store=False, **options) is None
    for total, expected in zip(alone.tensors(), sums.tensors(), strict=True):
        torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("hidden_size", [40, 41])
def test_op_equals_twin_whether_rows_are_aligned_or_not(hidden_size, generator):
    tensors = inputs(generator, 63, 100, hidden_size, torch.bfloat16)
    assert_close_to_twin(dual_gemm(*tensors), tensors, "silu")


@needs_cuda
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("hidden_size", [512, 520])
def test_op_on_cuda_runs_the_kernel_and_equals_twin(dtype, hidden_size, generator):
    tensors = inputs(generator, 300, 1000, hidden_size, dtype, bias=True)
    expected = launch_tma if torch.cuda.get_device_capability()[0] == 9 else launch
    assert choose_launcher(*tensors[:3]) is expected
    sums = NeuronSums.zeros(1000, TRITON_DEVICE, every=True)
    out = dual_gemm(*tensors, sums=sums)
    assert_close_to_twin(out, tensors, "silu")
    assert_sums_are_of(out, sums, None)


@needs_cuda
@pytest.mark.parametrize("dtype", HALVES)
def test_statistics_alone_on_cuda_allocate_no_activation(dtype, generator):
    tensors = inputs(generator, 4096, 4096, 256, dtype)
    sums = NeuronSums.zeros(4096, TRITON_DEVICE)
    dual_gemm(*tensors, sums=sums, store=False)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    dual_gemm(*tensors, sums=sums, store=False)
    # Less than half of the activation's bytes.
    assert torch.cuda.max_memory_allocated() - before < 4096 * 4096


@needs_cuda
def test_unaligned_rows_on_cuda_take_no_kernel(generator):
    tensors = inputs(generator, 63, 100, 41, torch.bfloat16)
    assert choose_launcher(*tensors[:3]) is None


def test_no_tokens_add_nothing(generator):
    tensors = inputs(generator, 0, 100, 40, torch.float32)
    sums = NeuronSums.zeros(100, TRITON_DEVICE, every=True)
    assert dual_gemm(*tensors, sums=sums).shape == (0, 100)
    assert all(not total.any() for total in sums.tensors())


@pytest.mark.parametrize("store", [True, False])
def test_a_forward_pass_that_checkpointing_repeats_adds_nothing(store, generator):
    tensors = inputs(generator, 5, 100, 40, torch.float32)
    once, sums = (NeuronSums.zeros(100, TRITON_DEVICE) for _ in range(2))
    dual_gemm(*tensors, sums=once)
    calls = []

    def layer(hidden: Tensor) -> Tensor:
        with torch.no_grad():
            dual_gemm(hidden, *tensors[1:], sums=sums, store=store)
        calls.append(1)
        return hidden * hidden

    checkpoint(layer, tensors[0].requires_grad_(), use_reentrant=False).sum().backward()
    assert len(calls) == 2
    assert torch.equal(sums.square, once.square)


def test_gradients_are_refused(generator):
    tensors = inputs(generator, 5, 100, 40, torch.float32)
    tensors[1].requires_grad_()
    with pytest.raises(ValueError, match="no gradient"):
        dual_gemm(*tensors)
    with torch.no_grad():
        dual_gemm(*tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            {"hidden": torch.zeros(5, 39)}, "last dimension must be the weights'", id="hidden-size"
        ),
        pytest.param({"up_weight_IH": torch.zeros(99, 40)}, "both weights must be", id="widths"),
        pytest.param(
            {"up_weight_IH": torch.zeros(100, 40).half()}, "both weights must be", id="dtype"
        ),
        pytest.param(
            {"gate_weight_IH": torch.zeros(40, 100).T}, "must be contiguous", id="transposed"
        ),
        pytest.param({"up_bias_I": torch.zeros(99)}, "up_bias is", id="bias"),
        pytest.param(
            {"hidden": torch.zeros(40, 5).T}, "rows must be contiguous", id="hidden-transposed"
        ),
        pytest.param({"activation": "tanh"}, "choose silu", id="activation"),
        pytest.param({"mode": "slow"}, "choose fast", id="mode"),
        pytest.param({"store": False}, "give sums", id="nothing-asked-for"),
        pytest.param({"token_mask": torch.ones(4, dtype=torch.bool)}, "token_mask is", id="mask"),
        pytest.param({"sums": NeuronSums.zeros(99, "cpu")}, "sums must be", id="sums"),
    ],
)
def test_errors_say_what_was_expected(change, message):
    arguments = {
        "hidden": torch.zeros(5, 40),
        "gate_weight_IH": torch.zeros(100, 40),
        "up_weight_IH": torch.zeros(100, 40),
    }
    with pytest.raises(ValueError, match=message):
        dual_gemm(**{**arguments, **change})
