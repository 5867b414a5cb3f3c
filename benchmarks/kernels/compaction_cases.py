"""Cases of the ops that remove neurons from weights.

Each op has a function that takes its name and a setting and returns its Case. Shape suffixes:
L layers, I FFN width, H hidden size, K kept neurons.
"""

import torch
from torch import Tensor

from benchmarks.kernels import peers
from benchmarks.kernels.case import EXACT, Case, Setting
from benchmarks.kernels.peers import Contender, Tensors
from ptl_kernels import compact_ffn_, hole_filling, reference
from ptl_kernels.compaction import compact_columns_, move_rows_

REMOVED = 0.1  # fraction of the neurons
# compact_rows moves the rows of a whole model's layers: at least as many bytes as SmolLM2's
ROWS_BYTES = 100_000_000


def compact_ffn_case(op: str, setting: Setting, planned: bool = False) -> Case:
    """A tenth of the neurons leaves one layer's three matrices.

    Which rows move is worked out on the host inside the timed call, or, if ``planned``, before it,
    as the peers' indices are.
    """
    kept_1K, order_K, num_moves = plan_removal(setting.shape.width)
    moves = hole_filling(kept_1K, setting.shape.width)
    row_bytes = setting.shape.hidden_size * setting.dtype.itemsize

    def ours(inputs: Tensors) -> Tensors:
        gate, up, down = (inputs[name] for name in peers.WEIGHTS)
        if planned:
            move_rows_([gate], moves)
            move_rows_([up], moves)
            small = {"gate_weight": gate[: len(order_K)], "up_weight": up[: len(order_K)]}
            compact_columns_([down], moves)
            return {**small, "down_weight": down}
        order_LK = compact_ffn_([([gate, up], down)], kept_1K)
        return {"gate_weight": gate, "up_weight": up, "down_weight": down, "order": order_LK[0]}

    def twin(inputs: Tensors) -> Tensors:
        order = inputs["order"]
        small = {name: reference.compact_rows(inputs[name], order) for name in peers.WEIGHTS[:2]}
        return {
            **small,
            "down_weight": reference.compact_columns(inputs["down_weight"], order),
            "order": order,
        }

    return Case(
        op=op,
        setting=setting,
        make_inputs=lambda: {**setting.weights(), "order": order_K.to(setting.device)},
        twin=twin,
        ours=Contender(ours, peers.fresh_copies),
        peers={
            "three x[idx]": Contender(peers.three_indexings, peers.fresh_copies),
            "three index_select": Contender(peers.three_index_selects, peers.fresh_copies),
        },
        tolerance=EXACT,
        # read and written: rows of gate and up that move, and the columns of down that stay
        num_bytes=2 * 2 * num_moves * row_bytes + 2 * len(order_K) * row_bytes,
    )


def compact_planned_case(op: str, setting: Setting) -> Case:
    """compact_ffn without the planning, which a whole model does once for all layers."""
    return compact_ffn_case(op, setting, planned=True)


def compact_rows_case(op: str, setting: Setting) -> Case:
    """A tenth of the rows leaves one matrix of each of many layers by one call, as when a model is
    pruned, with the moves planned beforehand.
    """
    shape = setting.shape
    row_bytes = shape.hidden_size * setting.dtype.itemsize
    num_layers = -(-ROWS_BYTES // (shape.width * row_bytes))  # rounded up
    plans = [plan_removal(shape.width) for _ in range(num_layers)]
    kept_LK = torch.cat([kept_1K for kept_1K, _, _ in plans])
    moves, num_kept = hole_filling(kept_LK, shape.width), kept_LK.shape[1]

    def make_inputs() -> Tensors:
        weights_LIH = setting.normal(num_layers, shape.width, shape.hidden_size)
        return {
            "gate_weights": weights_LIH,
            "copy_to": weights_LIH[:, :num_kept].clone(),
            "order": moves.order_LK.to(setting.device),
        }

    def ours(inputs: Tensors) -> Tensors:
        move_rows_(inputs["gate_weights"].unbind(), moves)
        return {"gate_weights": inputs["gate_weights"][:, :num_kept]}

    def copy(inputs: Tensors) -> Tensors:
        # into memory that was allocated before: page faults would take most of the time
        for to_KH, from_IH in zip(
            inputs["copy_to"].unbind(), inputs["gate_weights"].unbind(), strict=True
        ):
            to_KH.copy_(from_IH[:num_kept])
        return {"copy": inputs["copy_to"]}

    def twin(inputs: Tensors) -> Tensors:
        layers = zip(inputs["gate_weights"], inputs["order"], strict=True)
        compacted = torch.stack(
            [reference.compact_rows(weight_IH, order_K) for weight_IH, order_K in layers]
        )
        return {"copy": inputs["gate_weights"][:, :num_kept], "gate_weights": compacted}

    return Case(
        op=op,
        setting=setting,
        make_inputs=make_inputs,
        twin=twin,
        ours=Contender(ours, peers.fresh_copies),
        peers={"copy of the kept number of rows": Contender(copy, peers.fresh_copies)},
        tolerance=EXACT,
        num_bytes=2 * sum(moves.num_moves) * row_bytes,
    )


def plan_removal(width: int) -> tuple[Tensor, Tensor, int]:
    """Random neurons to keep, (1, K); the order in which hole filling leaves them, (K,); and the
    number of rows that move.
    """
    num_kept = width - round(REMOVED * width)
    kept_K = torch.randperm(width)[:num_kept].sort().values
    moves = hole_filling(kept_K[None], width)
    order_K = moves.order_LK[0]
    assert torch.equal(order_K.sort().values, kept_K)  # the same neurons, in another order
    return kept_K[None], order_K, moves.num_moves[0]
