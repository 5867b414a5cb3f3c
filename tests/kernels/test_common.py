"""What the operations share: the second reduction in Triton, containers of sums, and checks."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ptl_kernels import NeuronSums
from ptl_kernels._common import SUM, add_splits, as_rows, describe, is_recomputation
from support.triton import TRITON_DEVICE

# Splits and columns below, at and above a block's: the kernel loops over the first, and programs
# share the second.
SIZES = [(1, 1), (SUM["BLOCK_S"], SUM["BLOCK_I"]), (2 * SUM["BLOCK_S"] + 3, SUM["BLOCK_I"] + 5)]


def random_totals(count: int, width: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.rand(width, dtype=torch.float64, device=TRITON_DEVICE) for _ in range(count))


@pytest.mark.parametrize(("num_splits", "width"), SIZES)
@pytest.mark.parametrize("num_statistics", [1, 3, 4])
def test_splits_are_added_in_fp64_and_the_fourth_takes_the_maximum(
    num_splits: int, width: int, num_statistics: int
) -> None:
    partials = torch.randn(num_statistics, num_splits, width, device=TRITON_DEVICE)
    partials[3:].abs_()
    partials[:, 0] *= 1e6  # fp32 sums would lose the small splits beside this one
    totals = random_totals(num_statistics, width)
    before = [total.clone() for total in totals]
    add_splits(partials, totals)
    wide = partials.double()
    for which, (total, old) in enumerate(zip(totals, before, strict=True)):
        expected = torch.maximum(old, wide[3].amax(0)) if which == 3 else old + wide[which].sum(0)
        torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-9)


def test_a_maximum_that_was_there_stays_where_it_is_the_largest() -> None:
    totals = random_totals(4, 7)
    totals[3].fill_(10.0)
    add_splits(torch.rand(4, 3, 7, device=TRITON_DEVICE), totals)
    assert (totals[3] == 10.0).all()


@pytest.mark.parametrize("split", [0, 1, SUM["BLOCK_S"]])
def test_nan_of_any_split_or_of_a_total_reaches_every_total(split: int) -> None:
    """Comparisons with NaN are false, so that a maximum would drop it."""
    partials = torch.rand(4, SUM["BLOCK_S"] + 1, 6, device=TRITON_DEVICE)
    partials[:, split, 2] = torch.nan
    totals = random_totals(4, 6)
    for total in totals:
        total[4] = torch.nan
    add_splits(partials, totals)
    for total in totals:
        assert total.isnan().nonzero().flatten().tolist() == [2, 4]


def test_no_totals_add_nothing() -> None:
    add_splits(torch.empty(0, 3, 7), ())


def test_sums_of_no_tokens_are_zero_and_come_alone_or_all_four() -> None:
    assert [len(NeuronSums.zeros(5, "cpu", every).tensors()) for every in (False, True)] == [1, 4]
    sums = NeuronSums.zeros(5, "cpu", every=True)
    assert sums.tensors() == (sums.square, sums.sum, sums.absolute, sums.maximum)
    assert all(total.dtype == torch.float64 and not total.any() for total in sums.tensors())
    assert len({total.data_ptr() for total in sums.tensors()}) == 4


def test_rows_are_views() -> None:
    """Also of halves of a fused projection, whose rows are further apart than they are long."""
    whole = torch.randn(2, 3, 10)
    half = whole[..., 5:]
    rows = as_rows(half, "gate")
    assert rows.data_ptr() == half.data_ptr()
    assert rows.stride() == (10, 1)
    assert torch.equal(rows, half.reshape(6, 5))
    assert as_rows(torch.empty(2, 0, 5), "gate").shape == (0, 5)
    assert as_rows(torch.empty(3, 0), "gate").shape == (0, 0)


@pytest.mark.parametrize(
    "tensor",
    [torch.randn(4, 6).T, torch.randn(3, 4, 6).transpose(0, 1), torch.randn(4, 6)[:, ::2]],
    ids=["transposed", "uneven-rows", "every-second-column"],
)
def test_rows_that_are_no_view_are_refused_by_name(tensor: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"gate is float32 .*rows must be contiguous and even"):
        as_rows(tensor, "gate")


def test_tensors_are_described_by_type_shape_and_device() -> None:
    assert describe(torch.empty(4, 6, dtype=torch.bfloat16)) == "bfloat16 (4, 6) on cpu"


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_forward_pass_that_checkpointing_repeats_is_recognized(use_reentrant: bool) -> None:
    seen = []

    def layer(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(is_recomputation())
        return hidden.sin() * hidden

    hidden = torch.randn(3, requires_grad=True)
    checkpoint(layer, hidden, use_reentrant=use_reentrant).sum().backward()
    assert seen == [False, True]
    assert not is_recomputation()
