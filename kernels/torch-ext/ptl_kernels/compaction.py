"""Removing FFN neurons from weights by hole filling: rows of gate and up in place, columns of down
with the same permutation.

The order of neurons inside an FFN is free. So of the kept neurons, those whose index is below the
new width stay where they are, and those of the tail move into the holes that removed ones leave.

Shape suffixes: L layers, I FFN width, K kept neurons, M moves, H hidden size.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import cpu, reference

# Not tuned on a GPU yet.
ROW_MOVES = {"BLOCK": 1024, "num_warps": 4, "num_stages": 1}
COLUMN_GATHER = {"BLOCK_H": 4, "BLOCK_K": 1024, "num_warps": 8, "num_stages": 1}
# Moving needs no arithmetic: elements move as integers of their size, whatever their type.
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class HoleFilling:
    """Which neuron of each layer moves where; all tensors are int64 on the CPU."""

    order_LK: Tensor
    """order[l, j]: the neuron that lies at place j afterwards."""
    sources_LM: Tensor
    """Neurons that move, ascending; -1 where a layer has fewer moves than another."""
    destinations_LM: Tensor
    """Where they move, ascending; padded likewise."""
    num_moves: list[int]
    """Each layer's number of moves."""

    def of_layers(self, layers: list[int]) -> "HoleFilling":
        """The moves of some layers."""
        num_moves = [self.num_moves[layer] for layer in layers]
        return HoleFilling(
            self.order_LK[layers], self.sources_LM[layers], self.destinations_LM[layers], num_moves
        )

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """(sources, destinations) of one layer, without padding."""
        count = self.num_moves[layer]
        return self.sources_LM[layer, :count], self.destinations_LM[layer, :count]


def hole_filling(kept_LK: Tensor, width: int) -> HoleFilling:
    """Plan the moves that bring the kept neurons into places 0..num_kept - 1: one for each kept
    neuron whose index is num_kept or more, which are never more than the removed ones.

    Args:
        kept_LK: indices of the neurons that stay, (num_layers, num_kept) int64, in any order.
        width: number of neurons before.

    Raises:
        ValueError: an index is out of range or comes twice, nothing is kept, or the width is below
            1.
    """
    kept_LK = kept_LK.cpu()
    if kept_LK.dim() != 2 or kept_LK.dtype != torch.int64 or not kept_LK.shape[1]:
        raise ValueError(
            f"kept must be int64 (num_layers, num_kept >= 1); got {kept_LK.dtype}"
            f" {tuple(kept_LK.shape)}"
        )
    if width < 1:
        raise ValueError(f"width={width} must be at least 1")
    planned = (
        cpu.hole_filling(kept_LK, width) if cpu.holds_memory(kept_LK) and cpu.available() else None
    )
    if planned is None:
        planned = reference.hole_filling(kept_LK, width)
    order_LK, sources_LM, destinations_LM, num_moves_L = planned
    return HoleFilling(order_LK, sources_LM, destinations_LM, num_moves_L.tolist())


@triton.jit
def _move_rows_kernel(address_ptr, sources_ptr, destinations_ptr, num_layers, max_moves, row_length,
                      ELEMENT: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """A program copies BLOCK elements of one row of one tensor. No row is both a source and a
    destination, so programs may run in any order.
    """
    tensor, move = tl.program_id(2), tl.program_id(0)
    layer = tensor % num_layers
    source = tl.load(sources_ptr + layer * max_moves + move)
    destination = tl.load(destinations_ptr + layer * max_moves + move)
    if source >= 0:  # padding is -1
        base = tl.load(address_ptr + tensor).to(tl.pointer_type(ELEMENT))
        columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        values = tl.load(base + source * row_length + columns, mask=columns < row_length)
        tl.store(base + destination * row_length + columns, values, mask=columns < row_length)


@triton.jit
def _gather_columns_kernel(in_ptr, out_ptr, order_ptr, num_rows, num_kept, in_stride,
                           BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """out[h, k] = in[h, order[k]], for a block of rows and kept columns."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_H + tl.arange(0, BLOCK_H)
    columns = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (rows < num_rows)[:, None] & (columns < num_kept)[None, :]
    from_columns = tl.load(order_ptr + columns, mask=columns < num_kept, other=0)
    values = tl.load(in_ptr + rows[:, None] * in_stride + from_columns[None, :], mask=inside)
    tl.store(out_ptr + rows[:, None] * num_kept + columns[None, :], values, mask=inside)


@torch.no_grad()
def compact_ffn_(layers: Sequence[tuple[Sequence[Tensor], Tensor]], kept_LK: Tensor) -> Tensor:
    """Remove all neurons but the kept ones from each layer's FFN tensors, in place, and return the
    order in which they lie now.

    The tensor objects stay and change shape, so whoever holds them (a module, an optimizer) sees
    the small ones. Rows of the inputs move within their memory, and so do columns on a CPU; that
    memory keeps its size until the tensor is copied (and torch.save writes all of it). On a GPU the
    down projection gets new memory of the small size, and so do fused inputs everywhere.

    Peak extra memory: one matrix. On a GPU one launch moves the rows of all inputs of a shape, and
    one more compacts each down projection; the host never waits for the device.

    Args:
        layers: for each layer (inputs, down). An input holds one neuron a row, (width, ...): the
            weights of gate_proj and up_proj, their biases, an optimizer's moments of them; with 2 *
            width rows it is a fused gate and up, compacted half by half. down is (hidden_size,
            width). Contiguous, of any type and device.
        kept_LK: indices of the neurons that stay, (num_layers, num_kept) int64.

    Returns:
        order_LK, int64 on the CPU: new row j of layer l is old row order[l, j].

    Raises:
        ValueError: layers differ in shape or type, do not fit the kept indices or share a tensor,
            or a tensor is not contiguous. Nothing has moved then.

    Moves as many rows of each input as ``hole_filling`` plans: with a tenth removed at random,
    about a tenth of the rows that a copy of the kept ones would move.
    """
    width = _check_layers(layers, kept_LK)
    moves = hole_filling(kept_LK, width)
    num_kept = kept_LK.shape[1]
    # Tensors of one shape and type move in one launch: gate_proj and up_proj, of all layers.
    together: dict[tuple, list[Tensor]] = defaultdict(list)
    for kind in zip(*(inputs for inputs, _ in layers), strict=True):
        if kind[0].shape[0] == width:
            together[kind[0].shape, kind[0].dtype].extend(kind)
        else:
            # Fused: the rows of up must follow those of gate directly, so nearly all of them move,
            # and filling holes in place gains nothing.
            for tensor, order_K in zip(kind, moves.order_LK, strict=True):
                both_K = torch.cat([order_K, order_K + width]).to(tensor.device, non_blocking=True)
                _become(tensor, reference.compact_rows(tensor, both_K))
    for tensors in together.values():
        move_rows_(tensors, moves)
        for tensor in tensors:
            _become(tensor, tensor[:num_kept])
    compact_columns_([down for _, down in layers], moves)
    return moves.order_LK


def _check_layers(layers: Sequence[tuple[Sequence[Tensor], Tensor]], kept_LK: Tensor) -> int:
    """Raise ValueError unless every layer can be compacted like the first; return the width."""
    if not layers or len(layers) != len(kept_LK):
        raise ValueError(f"kept names {len(kept_LK)} layers, and there are {len(layers)}")
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "compact_ffn_ under torch.inference_mode would leave weights that cannot be trained;"
            " use torch.no_grad"
        )
    described = [[(each.shape, each.dtype) for each in (*inputs, down)] for inputs, down in layers]
    for layer, description in enumerate(described):
        if description != described[0]:
            wrong, right = _shapes_text(description), _shapes_text(described[0])
            raise ValueError(
                f"layer {layer}'s FFN tensors are {wrong}, layer 0's {right}; they must be alike"
            )
    first_inputs, first_down = layers[0]
    width = first_down.shape[1] if first_down.dim() == 2 else 0
    if not width or any(
        not each.dim() or each.shape[0] not in (width, 2 * width) for each in first_inputs
    ):
        raise ValueError(
            f"an FFN of width {width} has tensors {_shapes_text(described[0])}; inputs need a row"
            " a neuron, down a column"
        )
    tensors = [each for inputs, down in layers for each in (*inputs, down)]
    if not all(
        each.layout == torch.strided and not each.is_quantized and each.is_contiguous()
        for each in tensors
    ):
        raise ValueError("FFN tensors must be contiguous, and neither sparse nor quantized")
    # Two tensors of one memory would both be compacted in it: look for neighbours that overlap.
    spans = sorted((each.device.index or 0, each.data_ptr(), each.nbytes) for each in tensors)
    if any(
        one == other and start and start + size > following
        for (one, start, size), (other, following, _) in itertools.pairwise(spans)
    ):
        raise ValueError(
            "two FFN tensors share their memory (tied layers?); each must have its own"
        )
    return width


def _shapes_text(description: list[tuple[torch.Size, torch.dtype]]) -> str:
    return ", ".join(
        f"{tuple(shape)} {str(dtype).removeprefix('torch.')}" for shape, dtype in description
    )


def move_rows_(tensors: Sequence[Tensor], moves: HoleFilling) -> None:
    """Move rows within tensors of one shape and type: every layer's gate_proj, say, and then every
    layer's up_proj. One launch for each device.
    """
    for device, here, planned in _by_device(tensors, moves):
        if device.type == "cuda":
            launch_moves(here, planned.sources_LM, planned.destinations_LM)
        elif all(map(cpu.holds_memory, here)) and cpu.available():
            cpu.move_rows(here, planned.sources_LM, planned.destinations_LM)
        else:
            for index, tensor in enumerate(here):
                sources_M, destinations_M = planned.of_layer(index % len(planned.num_moves))
                tensor[destinations_M] = tensor[sources_M]


def compact_columns_(tensors: Sequence[Tensor], moves: HoleFilling) -> None:
    """Make (hidden_size, num_kept) of every layer's down projection (hidden_size, width): its kept
    columns, in the order of the moves.
    """
    num_kept = moves.order_LK.shape[1]
    for device, here, planned in _by_device(tensors, moves):
        if device.type == "cuda":
            for tensor, order_K in zip(here, planned.order_LK, strict=True):
                _become(tensor, launch_gather(tensor, order_K.to(device, non_blocking=True)))
        elif all(map(cpu.holds_memory, here)) and cpu.available():
            cpu.compact_columns(here, num_kept, planned.sources_LM, planned.destinations_LM)
            for tensor in here:
                _become(tensor, tensor.as_strided((len(tensor), num_kept), (num_kept, 1)))
        else:
            for tensor, order_K in zip(here, planned.order_LK, strict=True):
                _become(tensor, reference.compact_columns(tensor, order_K.to(device)))


def _by_device(
    tensors: Sequence[Tensor], moves: HoleFilling
) -> Iterator[tuple[torch.device, Sequence[Tensor], HoleFilling]]:
    """The tensors of each device, and the moves of their layers. Tensors may be several times as
    many as layers: tensor i belongs to layer i % num_layers.
    """
    devices = [tensor.device for tensor in tensors]
    if len(set(devices)) == 1:
        yield devices[0], tensors, moves
        return
    for device in dict.fromkeys(devices):
        indices = [index for index, other in enumerate(devices) if other == device]
        yield (
            device,
            [tensors[index] for index in indices],
            moves.of_layers([index % len(moves.num_moves) for index in indices]),
        )


def launch_moves(tensors: Sequence[Tensor], sources_LM: Tensor, destinations_LM: Tensor) -> None:
    """Run the Triton kernel on all tensors at once: it reads their addresses from a table. Tensors
    are in the order of ``move_rows_``.
    """
    device, row_bytes = tensors[0].device, tensors[0][0].numel() * tensors[0].element_size()
    addresses = [tensor.data_ptr() for tensor in tensors]
    # The widest integer by which every row's address and length can be divided.
    item = next(
        size
        for size in (8, 4, 2, 1)
        if row_bytes % size == 0 and all(address % size == 0 for address in addresses)
    )
    element = {8: tl.int64, 4: tl.int32, 2: tl.int16, 1: tl.int8}[item]
    table_L = torch.tensor(addresses).to(device, non_blocking=True)
    length, (num_layers, max_moves) = row_bytes // item, sources_LM.shape
    with torch.cuda.device_of(tensors[0]):
        _move_rows_kernel[(max_moves, triton.cdiv(length, ROW_MOVES["BLOCK"]), len(tensors))](
            table_L, sources_LM.to(device, non_blocking=True),
            destinations_LM.to(device, non_blocking=True),
            num_layers, max_moves, length,
            ELEMENT=element, enable_fp_fusion=True, **ROW_MOVES,
        )  # fmt: skip


def launch_gather(weight_HI: Tensor, order_K: Tensor) -> Tensor:
    """Run the Triton kernel; everything is on the device already."""
    num_rows, num_kept = weight_HI.shape[0], len(order_K)
    out_HK = torch.empty(num_rows, num_kept, dtype=weight_HI.dtype, device=weight_HI.device)
    integer = INTEGERS[weight_HI.element_size()]
    grid = (
        triton.cdiv(num_rows, COLUMN_GATHER["BLOCK_H"]),
        triton.cdiv(num_kept, COLUMN_GATHER["BLOCK_K"]),
    )
    with torch.cuda.device_of(weight_HI):
        _gather_columns_kernel[grid](
            weight_HI.view(integer), out_HK.view(integer), order_K,
            num_rows, num_kept, weight_HI.stride(0),
            enable_fp_fusion=True, **COLUMN_GATHER,
        )  # fmt: skip
    return out_HK


def _become(tensor: Tensor, small: Tensor) -> None:
    """Give a tensor other content and another shape without a new object; a gradient of the old
    shape goes.
    """
    tensor.grad = None
    tensor.data = small
