"""Compacted tensors are the kept neurons, in the order that is reported, whatever is kept."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ptl_kernels import compact_ffn_, cpu, hole_filling, reference
from ptl_kernels.compaction import launch_gather, launch_moves
from support.triton import TRITON_DEVICE

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.int64,
]
SIZES = st.one_of(st.integers(1, 40), st.integers(41, 3000))


@st.composite
def keep_sets(draw: Callable, sizes: st.SearchStrategy = SIZES) -> tuple[int, Tensor]:
    """(width, kept_LK): one to three layers, any subset of one size, in any order."""
    width = draw(sizes)
    num_kept = draw(st.integers(1, width))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.sampled_from(["any", "head", "tail"]))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        chosen = torch.randperm(width, generator=generator)[:num_kept]
        if shape == "head":
            chosen = torch.arange(num_kept)
        elif shape == "tail":
            chosen = torch.arange(width - num_kept, width)
        rows.append(chosen)
    return width, torch.stack(rows)


def random_tensor(*shape: int, dtype: torch.dtype) -> Tensor:
    if dtype == torch.int64:
        return torch.randint(-(2**62), 2**62, shape)
    return torch.randn(shape).to(dtype)


def pick(tensor: Tensor, order: Tensor, dim: int) -> Tensor:
    """Rows or columns in this order, by way of bytes: not every type can be indexed."""
    whole = tensor.contiguous().view(torch.uint8).view(*tensor.shape, tensor.element_size())
    return whole.index_select(dim, order)


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8).view(*tensor.shape, tensor.element_size())


@given(keep_sets())
@settings(max_examples=60, deadline=None)
def test_hole_filling_keeps_each_neuron_once_and_moves_few(case: tuple[int, Tensor]) -> None:
    width, kept_LK = case
    moves = hole_filling(kept_LK, width)
    planned = moves.order_LK, moves.sources_LM, moves.destinations_LM, torch.tensor(moves.num_moves)
    assert all(map(torch.equal, planned, reference.hole_filling(kept_LK, width)))
    num_kept = kept_LK.shape[1]
    assert torch.equal(moves.order_LK.sort(1).values, kept_LK.sort(1).values)
    for layer in range(len(kept_LK)):
        sources, destinations = moves.of_layer(layer)
        assert (sources >= num_kept).all()
        assert (destinations < num_kept).all()
        tail = int((kept_LK[layer] >= num_kept).sum())
        assert len(sources) == tail <= min(width - num_kept, num_kept)
        stays = torch.ones(num_kept, dtype=torch.bool).scatter(0, destinations, False)
        assert torch.equal(moves.order_LK[layer][stays], torch.arange(num_kept)[stays])


@pytest.mark.parametrize("path", ["csrc", "twin"])
@given(
    case=keep_sets(),
    dtype=st.sampled_from(DTYPES),
    hidden=st.sampled_from([1, 3, 8, 33]),
    fused=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_compacted_tensors_are_the_kept_ones(
    path: str, case: tuple[int, Tensor], dtype: torch.dtype, hidden: int, fused: bool
) -> None:
    width, kept_LK = case
    if path == "csrc" and not cpu.available():
        pytest.skip("csrc was not built")
    if path == "twin" and dtype == torch.float8_e4m3fn:
        return  # torch cannot index this type; csrc moves bytes
    rows = 2 * width if fused else width
    layers, before = [], []
    for _ in range(len(kept_LK)):
        inputs = [random_tensor(rows, hidden, dtype=dtype), random_tensor(rows, dtype=dtype)]
        if not fused:
            inputs.append(random_tensor(width, hidden, dtype=dtype))
        down = random_tensor(hidden, width, dtype=dtype)
        layers.append((inputs, down))
        before.append(([tensor.clone() for tensor in inputs], down.clone()))
    if fused and dtype == torch.float8_e4m3fn:
        return
    with pytest.MonkeyPatch.context() as patch:
        if path == "twin":
            patch.setattr(cpu, "available", lambda: False)
        order_LK = compact_ffn_(layers, kept_LK)
    for (inputs, down), (old_inputs, old_down), order in zip(layers, before, order_LK, strict=True):
        all_rows = torch.cat([order, order + width]) if fused else order
        for tensor, old in zip(inputs, old_inputs, strict=True):
            assert torch.equal(as_bytes(tensor), pick(old, all_rows, 0))
        assert down.is_contiguous()
        assert torch.equal(as_bytes(down), pick(old_down, order, 1))


@given(
    case=keep_sets(st.integers(1, 70)),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
@settings(max_examples=12, deadline=None)
def test_triton_kernels(case: tuple[int, Tensor], dtype: torch.dtype) -> None:
    width, kept_LK = case
    moves = hole_filling(kept_LK, width)
    tensors = [random_tensor(width, 13, dtype=dtype).to(TRITON_DEVICE) for _ in kept_LK]
    before = [tensor.cpu().clone() for tensor in tensors]
    launch_moves(tensors, moves.sources_LM, moves.destinations_LM)
    for tensor, old, order in zip(tensors, before, moves.order_LK, strict=True):
        assert torch.equal(as_bytes(tensor[: len(order)].cpu()), pick(old, order, 0))
    down = random_tensor(5, width, dtype=dtype)
    order = moves.order_LK[0]
    assert torch.equal(
        as_bytes(launch_gather(down.to(TRITON_DEVICE), order.to(TRITON_DEVICE)).cpu()),
        pick(down, order, 1),
    )


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: the compiled kernels cannot run"
)
def test_cuda_op() -> None:
    kept_LK = torch.stack([torch.randperm(1536)[:1408] for _ in range(3)])
    layers = [
        (
            [torch.randn(1536, 576, device="cuda") for _ in range(2)],
            torch.randn(576, 1536, device="cuda"),
        )
        for _ in kept_LK
    ]
    before = [([tensor.clone() for tensor in inputs], down.clone()) for inputs, down in layers]
    order_LK = compact_ffn_(layers, kept_LK).cuda()
    for (inputs, down), (old_inputs, old_down), order in zip(layers, before, order_LK, strict=True):
        assert all(
            torch.equal(tensor, old[order]) for tensor, old in zip(inputs, old_inputs, strict=True)
        )
        assert torch.equal(down, old_down[:, order])


def test_neurons_move_in_place_and_holders_see_the_small_tensor() -> None:
    """Also in tensors that are part of a larger one, whose rest stays as it is."""
    whole = torch.randn(100)
    before = whole.clone()
    gate, down = (
        torch.nn.Parameter(torch.randn(10, 4)),
        torch.nn.Parameter(whole[10:50].view(4, 10)),
    )
    gate.grad = torch.randn(10, 4)
    addresses = gate.data_ptr(), down.data_ptr()
    order = compact_ffn_([([gate], down)], torch.tensor([[1, 2, 9]]))[0]
    assert gate.data_ptr() == addresses[0]
    assert (down.data_ptr() == addresses[1]) == cpu.available()
    assert gate.shape == (3, 4)
    assert gate.grad is None
    assert torch.equal(down, before[10:50].view(4, 10)[:, order])
    assert torch.equal(whole[:10], before[:10])
    assert torch.equal(whole[50:], before[50:])


def test_layers_on_several_devices_follow_their_own_moves() -> None:
    kept_LK = torch.stack([torch.randperm(32)[:20] for _ in range(4)])
    devices = ["cpu", "meta", "cpu", "meta"]
    layers = [
        ([torch.randn(32, 3, device=each) for _ in range(2)], torch.randn(5, 32, device=each))
        for each in devices
    ]
    before = [([tensor.clone() for tensor in inputs], down.clone()) for inputs, down in layers]
    order_LK = compact_ffn_(layers, kept_LK)
    for layer, ((inputs, down), (old_inputs, old_down)) in enumerate(
        zip(layers, before, strict=True)
    ):
        assert down.shape == (5, 20)
        for tensor, old in zip(inputs, old_inputs, strict=True):
            assert tensor.shape == (20, 3)
            assert devices[layer] == "meta" or torch.equal(tensor, old[order_LK[layer]])
        assert devices[layer] == "meta" or torch.equal(down, old_down[:, order_LK[layer]])


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("instruction_set", ["", "avx2", "baseline"])
@pytest.mark.parametrize(
    ("width", "hidden"),
    [(1536, 64), (4096, 1027), (30_000, 13)],
    ids=["lines", "unaligned", "below-a-line"],
)
def test_rows_move_whatever_vectors_and_threads_move_them(
    width: int, hidden: int, instruction_set: str, num_threads: int
) -> None:
    if not cpu.use_instruction_set(instruction_set):
        pytest.skip(f"this processor lacks {instruction_set}, or csrc was not built")
    kept_LK = torch.stack([torch.randperm(width)[: width * 9 // 10] for _ in range(3)])
    layers = [([torch.randn(width, hidden)], torch.randn(hidden, width)) for _ in kept_LK]
    before = [(inputs[0].clone(), down.clone()) for inputs, down in layers]
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        order_LK = compact_ffn_(layers, kept_LK)
    finally:
        torch.set_num_threads(threads)
        cpu.use_instruction_set("")
    for (inputs, down), (old_gate, old_down), order in zip(layers, before, order_LK, strict=True):
        assert torch.equal(inputs[0], old_gate[order])
        assert torch.equal(down, old_down[:, order])


def test_adam_goes_on_with_compacted_moments() -> None:
    """An optimizer that keeps its parameters and compacted moments takes the steps of the small
    model alone.
    """
    torch.manual_seed(0)
    whole, down = torch.nn.Parameter(torch.randn(8, 3)), torch.nn.Parameter(torch.randn(3, 8))
    optimizer = torch.optim.AdamW([whole, down], lr=0.1)
    grads = [torch.randn(8, 3) for _ in range(2)]
    down.grad = torch.randn(3, 8)
    whole.grad = grads[0]
    optimizer.step()
    expected = torch.optim.AdamW([torch.nn.Parameter(whole.detach().clone())], lr=0.1)
    state = copy.deepcopy(optimizer.state_dict()["state"][0])
    expected.load_state_dict(
        {"state": {0: state}, "param_groups": expected.state_dict()["param_groups"]}
    )
    moments = [
        ([optimizer.state[whole][key]], optimizer.state[down][key])
        for key in ("exp_avg", "exp_avg_sq")
    ]
    kept = torch.tensor([[0, 2, 3, 7]])
    order = compact_ffn_([([whole], down)], kept)[0]
    for moment in moments:
        compact_ffn_([moment], kept)
    whole.grad, down.grad = grads[1][order].clone(), torch.zeros(3, 4)
    optimizer.step()
    reference = expected.param_groups[0]["params"][0]
    reference.grad = grads[1]
    expected.step()
    assert torch.equal(whole, reference[order])


@pytest.mark.parametrize("path", ["csrc", "twin"])
@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([[0, 0]], "same index twice"),
        ([[0, 8]], r"must lie in 0\.\.7"),
        ([[-1, 2]], r"must lie in 0\.\.7"),
        ([[2**62, 0]], r"must lie in 0\.\.7"),
        ([[]], "num_kept >= 1"),
        ([[0], [1]], "kept names 2 layers, and there are 1"),
    ],
)
def test_bad_keep_sets_are_named(
    path: str, kept: list[list[int]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path == "twin":
        monkeypatch.setattr(cpu, "available", lambda: False)
    layers = [([torch.ones(8, 2)], torch.ones(2, 8))]
    with pytest.raises(ValueError, match=message):
        compact_ffn_(layers, torch.tensor(kept, dtype=torch.int64))
    assert layers[0][1].shape == (2, 8)


def test_tensors_without_neurons_are_refused() -> None:
    for width in (0, -3):
        with pytest.raises(ValueError, match="must be at least 1"):
            hole_filling(torch.tensor([[0]]), width)
    for down in (torch.ones(8), torch.ones(2, 0)):
        with pytest.raises(ValueError, match="an FFN of width 0"):
            compact_ffn_([([], down)], torch.tensor([[1]]))


def test_layers_that_differ_or_share_memory_are_refused_before_anything_moves() -> None:
    gate, down, bias = torch.randn(8, 2), torch.randn(2, 8), torch.randn(8)
    other, whole = (torch.randn(8, 2), torch.randn(2, 8)), torch.randn(32)
    before = gate.clone()
    for second, message in (
        (([other[0]], other[1]), "must be alike"),
        (([other[0], torch.randn(16)], other[1]), "must be alike"),
        (([other[0], bias.double()], other[1]), "must be alike"),
        (([gate, bias.clone()], other[1]), "share their memory"),
        (([whole[8:24].view(8, 2), bias.clone()], whole[16:32].view(2, 8)), "share their memory"),
    ):
        with pytest.raises(ValueError, match=message):
            compact_ffn_([([gate, bias], down), second], torch.tensor([[0, 7], [0, 7]]))
    assert torch.equal(gate, before)
    assert down.shape == (2, 8)


def test_bad_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="FFN of width 8 has tensors"):
        compact_ffn_([([torch.ones(7, 2)], torch.ones(2, 8))], torch.tensor([[0]]))
    with pytest.raises(ValueError, match="contiguous"):
        compact_ffn_([([torch.ones(2, 8).T], torch.ones(2, 8))], torch.tensor([[0]]))
    with pytest.raises(ValueError, match="neither sparse nor quantized"):
        compact_ffn_([([torch.ones(8, 2)], torch.ones(2, 8).to_sparse())], torch.tensor([[0]]))
