"""The fused activation equals its twin in float64, on every path: Triton (interpreted without a
GPU), csrc, plain PyTorch.
"""

import importlib
import itertools
import typing

import pytest
import torch
from torch import Tensor

from ptl_kernels import Activation, NeuronSums, gated_activation, reference
from ptl_kernels.gated_activation import (
    BACKWARD,
    FORWARD,
    SPLIT_TOKENS,
    launch_backward,
    launch_forward,
)
from support.numbers import ERRORS, relative_error
from support.triton import TRITON_DEVICE, TRITON_DTYPES

# ptl_kernels.gated_activation is the function of that name.
module = importlib.import_module("ptl_kernels.gated_activation")
SHAPES = [
    pytest.param(1, 1, id="T1-I1"),
    pytest.param(63, 100, id="T63-I100"),
    pytest.param(SPLIT_TOKENS + 5, 17, id="T261-I17"),
]
# For the interpreter, whose time grows with the rows: with splits of 8 tokens, 21 make three, the
# last one of 5 rows, which is one more than a block.
FEW_TOKENS, FEW_TOKENS_A_SPLIT = 21, 8
CPU_DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SUMS_ERROR = 3e-6  # float32 sums over some hundred tokens


def make_inputs(
    num_tokens: int, width: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Gate and up as halves of one tensor, as a fused projection gives them, and a mask; NaN where
    a token does not count.
    """
    gate, up = (3 * torch.randn(num_tokens, 2 * width, device=device)).to(dtype).chunk(2, dim=-1)
    mask = torch.rand(num_tokens, device=device) < 0.7
    mask[0] = True
    gate[~mask] = float("nan")
    return gate, up, mask


def check_sums(sums: NeuronSums, out: Tensor, mask: Tensor | None) -> None:
    """The statistics are those of the values as returned."""
    for total, expected in zip(sums.tensors(), reference.neuron_sums(out, mask), strict=False):
        # A sum with signs may cancel: its error is measured by sum |a|.
        scale = reference.neuron_sums(out, mask)[2]
        assert ((total - expected).abs() <= SUMS_ERROR * torch.maximum(expected.abs(), scale)).all()


def expected_output(gate: Tensor, up: Tensor, activation: str | None) -> Tensor:
    return reference.activate(gate.double(), activation) * up.double()


@pytest.mark.parametrize(("num_tokens", "width"), [(1, 1), (FEW_TOKENS, 100)])
@pytest.mark.parametrize("dtype", TRITON_DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", None])
def test_triton_forward(
    num_tokens: int,
    width: int,
    dtype: torch.dtype,
    activation: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SPLIT_TOKENS", FEW_TOKENS_A_SPLIT)
    for mode, every, masked in itertools.product(
        ("fast", "match_hf"), (False, True), (False, True)
    ):
        gate, up, mask = make_inputs(num_tokens, width, dtype, TRITON_DEVICE)
        if not masked:
            gate, mask = gate.nan_to_num(), None
        sums = NeuronSums.zeros(width, TRITON_DEVICE, every)
        out = torch.full((num_tokens, width), float("nan"), dtype=dtype, device=TRITON_DEVICE)
        launch_forward(gate, up, out, activation, sums.tensors(), mask, mode)
        counted = slice(None) if mask is None else mask
        assert (
            relative_error(out[counted], expected_output(gate, up, activation)[counted])
            < 2 * ERRORS[dtype]
        )
        assert out[~mask].isnan().all() if mask is not None else True
        check_sums(sums, out, mask)


@pytest.mark.parametrize("dtype", TRITON_DTYPES, ids=str)
def test_triton_forward_with_the_shipped_split(dtype: torch.dtype) -> None:
    num_tokens, width = SPLIT_TOKENS + 5, 17
    gate, up, mask = make_inputs(num_tokens, width, dtype, TRITON_DEVICE)
    sums = NeuronSums.zeros(width, TRITON_DEVICE, every=True)
    out = torch.full((num_tokens, width), float("nan"), dtype=dtype, device=TRITON_DEVICE)
    launch_forward(gate, up, out, "gelu_tanh", sums.tensors(), mask, "match_hf")
    expected = expected_output(gate, up, "gelu_tanh")
    assert relative_error(out[mask], expected[mask]) < 2 * ERRORS[dtype]
    check_sums(sums, out, mask)


@pytest.mark.parametrize("num_columns", [FORWARD["BLOCK_I"] - 1, FORWARD["BLOCK_I"] + 1])
def test_triton_forward_across_column_blocks(num_columns: int) -> None:
    gate, up, mask = make_inputs(9, num_columns, torch.float32, TRITON_DEVICE)
    sums = NeuronSums.zeros(num_columns, TRITON_DEVICE, every=True)
    out = torch.full((9, num_columns), float("nan"), device=TRITON_DEVICE)
    launch_forward(gate, up, out, "silu", sums.tensors(), mask, "fast")
    assert (
        relative_error(out[mask], expected_output(gate, up, "silu")[mask]) < ERRORS[torch.float32]
    )
    check_sums(sums, out, mask)


@pytest.mark.parametrize(("num_tokens", "width"), [(1, 1), (21, 100), (5, BACKWARD["BLOCK_I"] + 3)])
@pytest.mark.parametrize("dtype", TRITON_DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", None])
def test_triton_backward_equals_autograd(
    num_tokens: int, width: int, dtype: torch.dtype, activation: str | None
) -> None:
    gate, up, _ = make_inputs(num_tokens, width, dtype, TRITON_DEVICE)
    gate, grad = gate.nan_to_num(), torch.randn(num_tokens, width, device=TRITON_DEVICE).to(dtype)
    for mode in ("fast", "match_hf"):
        outs = [
            torch.full((num_tokens, width), float("nan"), dtype=dtype, device=TRITON_DEVICE)
            for _ in range(2)
        ]
        launch_backward(grad, gate, up, *outs, activation, mode)
        for out, expected in zip(outs, expected_gradients(gate, up, activation, grad), strict=True):
            assert relative_error(out, expected) < 4 * ERRORS[dtype]


def expected_gradients(
    gate: Tensor, up: Tensor, activation: str | None, grad: Tensor
) -> tuple[Tensor, ...]:
    leaves = gate.detach().double().requires_grad_(), up.detach().double().requires_grad_()
    return torch.autograd.grad(expected_output(*leaves, activation), leaves, grad.double())


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: the compiled kernels cannot run"
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_cuda_op(dtype: torch.dtype) -> None:
    """The public op on a GPU, at a size that fills it, with gradients."""
    gate, up, mask = make_inputs(4099, 1543, dtype, "cuda")
    gate = gate.nan_to_num()
    gate, up = (tensor.detach().clone().requires_grad_() for tensor in (gate, up))
    sums = NeuronSums.zeros(1543, "cuda", every=True)
    out = gated_activation(gate, up, sums=sums, token_mask=mask)
    assert relative_error(out, expected_output(gate, up, "silu")) < ERRORS[dtype]
    check_sums(sums, out.detach(), mask)
    grad = torch.randn_like(out)
    out.backward(grad)
    for leaf, expected in zip((gate, up), expected_gradients(gate, up, "silu", grad), strict=True):
        assert relative_error(leaf.grad, expected) < 4 * ERRORS[dtype]


@pytest.mark.parametrize(("num_tokens", "width"), [*SHAPES, pytest.param(70, 4099, id="T70-I4099")])
@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", None])
def test_cpu_forward(
    cpu_path: str, num_tokens: int, width: int, dtype: torch.dtype, activation: str | None
) -> None:
    for mode, every, masked in itertools.product(
        ("fast", "match_hf"), (False, True), (False, True)
    ):
        gate, up, mask = make_inputs(num_tokens, width, dtype)
        if not masked:
            gate, mask = gate.nan_to_num(), None
        sums = NeuronSums.zeros(width, "cpu", every)
        out = torch.full((num_tokens, width), float("nan"), dtype=dtype)
        assert (
            gated_activation(gate, up, activation, sums=sums, token_mask=mask, mode=mode, out=out)
            is out
        )
        counted = slice(None) if mask is None else mask
        if mode == "match_hf":
            assert torch.equal(
                out[counted], reference.gated_activation(gate, up, activation, mode)[counted]
            )
        elif dtype == torch.float32 and cpu_path != "twin":
            # Each value, not only the norm: torch's GELU loses digits where its tanh is near -1,
            # ours does not.
            expected = expected_output(gate, up, activation)[counted]
            assert ((out[counted] - expected).abs() <= 1e-6 * expected.abs() + 1e-7).all()
        if num_tokens > 1:
            assert (
                relative_error(out[counted], expected_output(gate, up, activation)[counted])
                < ERRORS[dtype]
            )
        check_sums(sums, out, mask)


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", None])
@pytest.mark.parametrize("mode", ["fast", "match_hf"])
def test_cpu_gradients_equal_autograd(
    cpu_path: str, dtype: torch.dtype, activation: str | None, mode: str
) -> None:
    both = torch.randn(67, 2 * 101).to(dtype).requires_grad_()
    grad = torch.randn(67, 101).to(dtype)
    gated_activation(*both.chunk(2, dim=-1), activation, mode=mode).backward(grad)
    expected = torch.cat(
        expected_gradients(*both.detach().chunk(2, dim=-1), activation, grad), dim=-1
    )
    assert relative_error(both.grad, expected) < 4 * ERRORS[dtype]


def test_match_hf_gradients_are_bit_equal_to_eager() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        gate, up = (
            torch.randn(2, 33, 50).to(dtype).requires_grad_(),
            torch.randn(2, 33, 50).to(dtype).requires_grad_(),
        )
        eager = (torch.nn.functional.silu(gate) * up).square().sum()
        expected = torch.autograd.grad(eager, (gate, up))
        ours = gated_activation(gate, up, mode="match_hf").square().sum()
        assert all(
            torch.equal(*pair)
            for pair in zip(torch.autograd.grad(ours, (gate, up)), expected, strict=True)
        )


def test_backward_keeps_gate_and_up_only() -> None:
    kept = []
    gate, up = torch.randn(8, 16, requires_grad=True), torch.randn(8, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.data_ptr()) or tensor, lambda tensor: tensor
    ):
        gated_activation(gate, up, sums=NeuronSums.zeros(16, "cpu"))
    assert kept == [gate.data_ptr(), up.data_ptr()]


def test_sums_do_not_depend_on_threads() -> None:
    """Bit-identical with one thread and with two, and from run to run."""
    gate, up, mask = make_inputs(1000, 300, torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            sums = NeuronSums.zeros(300, "cpu", every=True)
            gated_activation(gate, up, sums=sums, token_mask=mask)
            results.append(torch.stack(sums.tensors()))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])


def test_sums_add_up_over_calls_and_out_may_be_gate() -> None:
    gate, up = torch.randn(20, 30), torch.randn(20, 30)
    whole, parts = NeuronSums.zeros(30, "cpu", every=True), NeuronSums.zeros(30, "cpu", every=True)
    expected = gated_activation(gate, up, sums=whole)
    for rows in (slice(0, 7), slice(7, 20)):
        gated_activation(gate[rows], up[rows], sums=parts, out=gate[rows])
    assert torch.equal(gate, expected)
    for one, other in zip(whole.tensors(), parts.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=SUMS_ERROR, atol=1e-5)


def test_nan_of_a_token_that_counts_reaches_every_sum(cpu_path: str) -> None:
    gate, up = torch.randn(200, 40), torch.randn(200, 40)
    gate[5, 3] = float("nan")
    sums = NeuronSums.zeros(40, "cpu", every=True)
    gated_activation(gate, up, sums=sums)
    for total in sums.tensors():
        assert total.isnan().nonzero().flatten().tolist() == [3]


def test_triton_keeps_nan_in_every_sum() -> None:
    gate, up = (
        torch.randn(300, 40, device=TRITON_DEVICE),
        torch.randn(300, 40, device=TRITON_DEVICE),
    )
    gate[5, 3] = float("nan")
    sums, out = NeuronSums.zeros(40, TRITON_DEVICE, every=True), torch.empty_like(gate)
    launch_forward(gate, up, out, "silu", sums.tensors(), None, "fast")
    for total in sums.tensors():
        assert total.isnan().nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("path", ["triton", "cpu"])
def test_offsets_past_two_to_the_31(path: str) -> None:
    """Three rows that lie 1.2e9 elements apart. What is between them is never touched, so the
    operating system never gives it memory.
    """
    stride, width = 1_200_000_000, 40
    device = TRITON_DEVICE if path == "triton" else "cpu"
    storage = torch.empty(
        2 * stride + 3 * width,
        dtype=torch.float16 if path == "triton" else torch.bfloat16,
        device=device,
    )
    gate = storage.as_strided((3, width), (stride, 1))
    up = storage.as_strided((3, width), (stride, 1), width)
    gate.copy_(torch.randn(3, width))
    up.copy_(torch.randn(3, width))
    expected, sums = expected_output(gate, up, "silu"), NeuronSums.zeros(width, device)
    out = storage.as_strided((3, width), (stride, 1), 2 * width)
    if path == "triton":
        launch_forward(gate, up, out, "silu", sums.tensors(), None, "fast")
    else:
        gated_activation(gate, up, sums=sums, out=out)
    assert relative_error(out, expected) < ERRORS[storage.dtype]
    check_sums(sums, out, None)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_extreme_values_saturate_as_torch_does(cpu_path: str, activation: str) -> None:
    """Where the exponential ends, and where a cube overflows."""
    for dtype in (torch.float32, torch.bfloat16):
        gate = (
            torch.tensor([-3e38, -1e30, -1e13, -100.0, -88.0, -87.0, 87.0, 100.0, 1e13, 1e38])
            .to(dtype)
            .requires_grad_()
        )
        out = gated_activation(gate, torch.ones_like(gate), activation)
        out.sum().backward()
        wide = gate.detach().double().requires_grad_()
        expected = reference.activate(wide, activation)
        expected.sum().backward()
        torch.testing.assert_close(out.double(), expected, rtol=ERRORS[dtype], atol=1e-30)
        # torch's own GELU gradient is NaN in float32 where the cube overflows.
        if cpu_path != "twin" or activation == "silu":
            torch.testing.assert_close(
                gate.grad.double(), wide.grad, rtol=ERRORS[dtype], atol=1e-30
            )


def test_no_second_derivative_is_an_error() -> None:
    gate, up = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(gated_activation(gate, up).sum(), gate, create_graph=True)


def test_tensors_without_memory_take_the_twin() -> None:
    gate = torch.empty(64, 512, device="meta")
    assert gated_activation(gate, gate).device.type == "meta"


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (3, 0)])
def test_empty_input(shape: tuple[int, ...]) -> None:
    sums = NeuronSums.zeros(shape[-1], "cpu", every=True)
    assert gated_activation(torch.empty(shape), torch.empty(shape), sums=sums).shape == shape
    assert not any(total.any() for total in sums.tensors())
    gate, up = torch.empty(shape, requires_grad=True), torch.empty(shape, requires_grad=True)
    gated_activation(gate, up).sum().backward()
    assert gate.grad.shape == shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"up": torch.ones(4, 5)}, "must be alike"),
        ({"up": torch.ones(4, 6, dtype=torch.bfloat16)}, "must be alike"),
        (
            {
                "gate": torch.ones(4, 6, dtype=torch.int32),
                "up": torch.ones(4, 6, dtype=torch.int32),
            },
            "type must be float32",
        ),
        ({"gate": torch.ones(6, 4).T}, "rows must be contiguous"),
        ({"activation": "tanh"}, "choose silu, gelu_tanh,"),
        ({"mode": "slow"}, "choose fast or match_hf"),
        ({"sums": NeuronSums.zeros(5, "cpu")}, "sums must be fp64 of shape"),
        ({"sums": NeuronSums(torch.zeros(6))}, "sums must be fp64 of shape"),
        ({"token_mask": torch.ones(5, dtype=torch.bool)}, "one entry a token"),
        ({"token_mask": torch.ones(4)}, "must be bool"),
        ({"out": torch.ones(4, 5)}, "must be like gate"),
        ({"out": torch.ones(6).expand(4, 6)}, "rows overlap"),
        ({"gate": torch.ones(4, 6, requires_grad=True), "out": torch.ones(4, 6)}, "gradients"),
    ],
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    arguments = {"gate": torch.ones(4, 6), "up": torch.ones(4, 6), **change}
    with pytest.raises(ValueError, match=message):
        gated_activation(**arguments)


@pytest.fixture(autouse=True)
def same_inputs() -> None:
    """A single value may lie where 1 + tanh cancels, and its relative error be any."""
    torch.manual_seed(0)


def one_input(
    num_tokens: int, width: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The only projection of an FFN without a gate, a mask, and a gradient."""
    gate, _, mask = make_inputs(num_tokens, width, dtype, device)
    return gate.contiguous(), mask, torch.randn(num_tokens, width, device=device).to(dtype)


ACTIVATIONS = typing.get_args(Activation)


@pytest.mark.parametrize("dtype", TRITON_DTYPES, ids=str)
@pytest.mark.parametrize("activation", [*ACTIVATIONS, None])
def test_triton_without_a_gate(
    dtype: torch.dtype, activation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SPLIT_TOKENS", FEW_TOKENS_A_SPLIT)
    for mode, every in itertools.product(("fast", "match_hf"), (False, True)):
        gate, mask, grad = one_input(FEW_TOKENS, 100, dtype, TRITON_DEVICE)
        sums = NeuronSums.zeros(100, TRITON_DEVICE, every)
        out, grad_gate = (torch.full_like(gate, float("nan")) for _ in range(2))
        launch_forward(gate, None, out, activation, sums.tensors(), mask, mode)
        check_without_gate(gate, out, activation, sums, mask)
        launch_backward(grad, gate, None, grad_gate, None, activation, mode)
        check_gradient(gate, grad, grad_gate, activation, mask)


@pytest.mark.parametrize("dtype", [*CPU_DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("activation", [*ACTIVATIONS, None])
@pytest.mark.parametrize(("num_tokens", "width"), SHAPES)
def test_cpu_without_a_gate(
    dtype: torch.dtype, activation: str | None, num_tokens: int, width: int
) -> None:
    for mode, every in itertools.product(("fast", "match_hf"), (False, True)):
        gate, mask, grad = one_input(num_tokens, width, dtype, "cpu")
        sums = NeuronSums.zeros(width, "cpu", every)
        out = gated_activation(gate, None, activation, sums=sums, token_mask=mask, mode=mode)
        check_without_gate(gate, out, activation, sums, mask)
        leaf = gate.clone().requires_grad_()
        gated_activation(leaf, None, activation, mode=mode).backward(grad)
        assert leaf.grad is not None
        check_gradient(gate, grad, leaf.grad, activation, mask)


def check_without_gate(
    gate: Tensor, out: Tensor, activation: str | None, sums: NeuronSums, mask: Tensor
) -> None:
    expected = reference.activate(gate.double(), activation)
    error = ERRORS.get(gate.dtype, 1e-14)
    assert relative_error(out[mask], expected[mask]) <= error
    assert out[~mask].isnan().all(), "a token that does not count gets its output too"
    check_sums(sums, out, mask)


def check_gradient(
    gate: Tensor, grad: Tensor, found: Tensor, activation: str | None, mask: Tensor
) -> None:
    leaf = gate.double().requires_grad_()
    reference.activate(leaf, activation).backward(grad.double())
    assert leaf.grad is not None
    # eager autograd in half precision (match_hf on a CPU) rounds at each step
    assert relative_error(found[mask], leaf.grad[mask]) <= 2 * ERRORS.get(gate.dtype, 1e-14)


@pytest.mark.parametrize("activation", ["gelu", "relu", "relu2"])
def test_other_activations_have_gates_too(activation: str) -> None:
    gate, up, mask = make_inputs(63, 100, torch.float32)
    out = gated_activation(gate, up, activation)
    assert relative_error(out[mask], expected_output(gate, up, activation)[mask]) <= 1e-6
    gate, up = (each.clone().requires_grad_() for each in (gate, up))
    gated_activation(gate, up, activation)[mask].sum().backward()
    wide = [each.detach().double().requires_grad_() for each in (gate, up)]
    (reference.activate(wide[0], activation) * wide[1])[mask].sum().backward()
    for ours, theirs in zip((gate, up), wide, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert relative_error(ours.grad[mask], theirs.grad[mask]) <= 1e-6
