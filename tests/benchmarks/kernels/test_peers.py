"""What our ops are compared with computes what it says."""

import torch

from benchmarks.kernels import peers


def test_hooks_add_to_totals_in_fp32() -> None:
    active_TI = torch.tensor([[1.0, -2.0], [3.0, 0.5]], dtype=torch.bfloat16)
    names = ("square", "absolute", "maximum")
    totals = {name: torch.ones(2) for name in names}
    naive = peers.naive_hook(active_TI, totals)
    assert [naive[name].tolist() for name in names] == [[11, 5.25], [5, 3.5], [3, 2]]
    totals = {name: torch.ones(2) for name in names}
    assert peers.square_hook(active_TI, totals)["square"].tolist() == [11, 5.25]
    assert peers.modelopt_hook(active_TI, totals)["absolute_mean"].tolist() == [3, 2.25]


def test_copy_ceiling_copies() -> None:
    inputs = {"copy_from": torch.randn(7), "copy_to": torch.full((7,), torch.nan)}
    assert torch.equal(peers.copy(inputs)["copy"], inputs["copy_from"])


def test_liger_is_named_where_it_cannot_run() -> None:
    assert peers.liger_missing("cpu") == "Liger has no CPU kernels"
