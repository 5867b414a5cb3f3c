"""The twins in plain PyTorch, with which all kernels are compared, equal their definitions."""

import math

import pytest
import torch

from ptl_kernels import reference


def test_activations_are_their_formulas() -> None:
    values = torch.linspace(-8, 8, 101, dtype=torch.float64)
    silu = [x / (1 + math.exp(-x)) for x in values.tolist()]
    gelu = [
        0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        for x in values.tolist()
    ]
    close = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(reference.activate(values, "silu"), values.new_tensor(silu), **close)
    torch.testing.assert_close(
        reference.activate(values, "gelu_tanh"), values.new_tensor(gelu), **close
    )
    assert reference.activate(values, None) is values


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_fast_rounds_once_and_match_hf_as_eager_modules_do(dtype: torch.dtype) -> None:
    gate, up = (3 * torch.randn(63, 100)).to(dtype), torch.randn(63, 100).to(dtype)
    exact = torch.nn.functional.silu(gate.double()) * up.double()
    fast = reference.gated_activation(gate, up)
    # fp32 in between: next to a tie, one value in some thousands falls to the other side.
    assert (fast == exact.to(dtype)).float().mean() > 0.995
    eager = torch.nn.functional.silu(gate) * up
    assert torch.equal(reference.gated_activation(gate, up, mode="match_hf"), eager)
    assert not torch.equal(fast, eager)


def test_neuron_sums_are_their_definitions() -> None:
    activation = torch.tensor([[1.0, -2.0], [-3.0, 0.5], [math.nan, 7.0]])
    mask = torch.tensor([True, True, False])
    square, total, absolute, maximum = reference.neuron_sums(activation, mask)
    assert square.tolist() == [10.0, 4.25]
    assert total.tolist() == [-2.0, -1.5]
    assert absolute.tolist() == [4.0, 2.5]
    assert maximum.tolist() == [3.0, 2.0]
    assert all(each.dtype == torch.float64 for each in (square, total, absolute, maximum))
    assert [each.tolist() for each in reference.neuron_sums(activation[:0])] == [[0.0, 0.0]] * 4


@pytest.mark.parametrize("count", [0, 1, 4])
def test_neuron_sums_add_up_in_place(count: int) -> None:
    activation, mask = torch.randn(40, 6), torch.rand(40) < 0.5
    totals = tuple(torch.zeros(6, dtype=torch.float64) for _ in range(count))
    for rows in (slice(0, 13), slice(13, 40)):
        reference.add_neuron_sums_(totals, activation[rows], mask[rows])
    for total, expected in zip(totals, reference.neuron_sums(activation, mask), strict=False):
        torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)


def test_residual_change_is_its_definition() -> None:
    before = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    after = torch.tensor([[0.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    # Changes of length 5, 2 and 1; the first two have a zero vector, the third is at 45 degrees.
    expected = torch.tensor([8.0, 30.0, math.sqrt(0.5)], dtype=torch.float64)
    torch.testing.assert_close(
        reference.residual_change(before, after), expected, rtol=1e-6, atol=0
    )
    mask = torch.tensor([False, False, True])
    expected = torch.tensor([1.0, 1.0, math.sqrt(0.5)], dtype=torch.float64)
    torch.testing.assert_close(
        reference.residual_change(before, after, mask), expected, rtol=1e-6, atol=0
    )


def test_dual_gemm_is_two_linear_layers_and_the_product() -> None:
    hidden, gate_bias, up_bias = torch.randn(7, 5), torch.randn(3), torch.randn(3)
    gate_weight, up_weight = torch.randn(3, 5), torch.randn(3, 5)
    gate, up = hidden @ gate_weight.T + gate_bias, hidden @ up_weight.T + up_bias
    out = reference.dual_gemm(hidden, gate_weight, up_weight, gate_bias, up_bias)
    torch.testing.assert_close(out, gate * torch.sigmoid(gate) * up)


def test_hole_filling_by_hand() -> None:
    """Of 6 neurons 4 stay. In layer 0 the tail's 4 and 5 move into the holes 0 and 2; in layer 1
    the head stays as it is.
    """
    kept = torch.tensor([[5, 1, 3, 4], [0, 1, 2, 3]])
    order, sources, destinations, num_moves = reference.hole_filling(kept, 6)
    assert order.tolist() == [[4, 1, 5, 3], [0, 1, 2, 3]]
    assert sources.tolist() == [[4, 5], [-1, -1]]
    assert destinations.tolist() == [[0, 2], [-1, -1]]
    assert num_moves.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("kept", "message"),
    [([[0, 6]], r"from 0 to 6; they must lie in 0\.\.5"), ([[2, 2]], "same index twice")],
)
def test_bad_indices_are_named(kept: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reference.hole_filling(torch.tensor(kept), 6)


def test_compaction_picks_rows_or_columns_in_order() -> None:
    weight, order = torch.arange(12.0).view(4, 3), torch.tensor([2, 0])
    assert reference.compact_rows(weight, order).tolist() == [[6.0, 7.0, 8.0], [0.0, 1.0, 2.0]]
    columns = reference.compact_columns(weight, order)
    assert columns.tolist() == [[2.0, 0.0], [5.0, 3.0], [8.0, 6.0], [11.0, 9.0]]
    assert columns.is_contiguous()
