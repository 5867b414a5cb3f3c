"""Choose the multiple for FFN widths that runs fast on a device: --width-multiple auto.

On a GPU it is the tile size of tensor cores, 128. On a CPU it depends on the processor and the GEMM
library, so matrix products of several widths are timed. They are compared by their excess: a
width's time per neuron relative to that of multiples of 128 (the largest multiple that is tried),
so that a width counts as slow for being awkward, not for being large.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

TENSOR_CORE_MULTIPLE = 128
MULTIPLES = (8, 16, 32, 64, 128)  # tried on a CPU
ALLOWED_EXCESS = 0.02  # a multiple whose widths are slower than this per neuron is rejected
WIDTHS_EACH = 3  # widths timed per multiple
ROUNDS = 9  # timed runs of each product; the fastest counts
MOST_FLOP = 1e9  # per product, so that all measurements together take seconds
Call = Callable[[], object]


def choose(device: str, hidden_size: int, width: int, dtype: torch.dtype) -> dict[str, Any]:
    """Choose the multiple for FFNs of up to this width; times matrix products if on a CPU.

    Returns:
        {"multiple": the choice, "reason": for the report, "excess": {multiple: its worst excess, as
        a fraction}, empty on a GPU}.
    """
    if device != "cpu":
        return {
            "multiple": TENSOR_CORE_MULTIPLE,
            "reason": "tensor cores work in tiles of 128",
            "excess": {},
        }
    # a narrow FFN has too few multiples of the large ones to choose a width from
    multiples = [multiple for multiple in MULTIPLES if 4 * multiple <= width] or [MULTIPLES[0]]
    widths = candidates(width, multiples)
    num_tokens = max(16, min(512, int(MOST_FLOP / (2 * hidden_size * width))))
    times = measure(hidden_size, widths, num_tokens, dtype)
    # (multiple, excess) of the input and of the output projection
    lines = []
    for product in times.values():
        above = excess(product, multiples[-1])
        lines += [(multiple, _median_excess(above, multiple, multiples)) for multiple in multiples]
    worst = {
        multiple: max(value for other, value in lines if other == multiple)
        for multiple in multiples
    }
    reason = (
        f"products of {num_tokens} tokens measured on this CPU with {torch.get_num_threads()}"
        " threads"
    )
    return {"multiple": rule(lines, multiples), "reason": reason, "excess": worst}


def candidates(width: int, multiples: Sequence[int]) -> list[int]:
    """Widths to time, ascending: for each multiple the largest few up to ``width``.

    They are multiples of no larger one, so that each shows its own multiple's speed.
    """
    return sorted(
        {
            each
            for multiple in multiples
            for each in [
                each
                for each in range(width, 0, -1)
                if largest_multiple(each, multiples) == multiple
            ][:WIDTHS_EACH]
        }
    )


def measure(
    hidden: int, widths: list[int], num_tokens: int, dtype: torch.dtype
) -> dict[str, dict[int, float]]:
    """Time an FFN's input ("up") and output ("down") projection for each width on the CPU.

    Returns:
        {"up" or "down": {width: seconds}}, the shortest of ROUNDS runs: other processes on the
        machine can only add time.
    """
    calls = products(hidden, widths, num_tokens, dtype, "cpu")
    times: dict[str, dict[int, float]] = {"up": {}, "down": {}}
    order, shuffle = list(calls), random.Random(0)
    with torch.inference_mode():
        for number in range(ROUNDS + 1):
            # a new order in each round, so that no width always follows the same other one
            shuffle.shuffle(order)
            for name, width in order:
                start = time.perf_counter()
                calls[name, width]()
                seconds = time.perf_counter() - start
                if number:  # the first round warms up
                    times[name][width] = min(seconds, times[name].get(width, seconds))
    return times


def products(
    hidden: int, widths: list[int], num_tokens: int, dtype: torch.dtype, device: str
) -> dict[tuple[str, int], Call]:
    """Return a call that runs the projection, by ("up" or "down", width).

    All calls share the memory of their operands, since those of all widths might not fit at once.
    """
    largest = max(hidden, *widths)
    operands = [
        torch.randn(rows * largest, dtype=dtype, device=device) for rows in (num_tokens, largest)
    ]
    return {
        (name, width): _product(name, hidden, width, num_tokens, operands)
        for name in ("up", "down")
        for width in widths
    }


def _product(name: str, hidden: int, width: int, num_tokens: int, operands: list[Tensor]) -> Call:
    """One projection, its operands contiguous views of the beginning of the shared memory."""
    inputs, outputs = (hidden, width) if name == "up" else (width, hidden)
    sizes = ((num_tokens, inputs), (outputs, inputs))
    tokens, weight = (
        operand[: size[0] * size[1]].view(size)
        for operand, size in zip(operands, sizes, strict=True)
    )
    return lambda: linear(tokens, weight)


def excess(times: dict[int, float], base: int) -> dict[int, float]:
    """Return {width: its time per neuron relative to the reference, minus 1}.

    Args:
        times: {width: seconds}.
        base: the reference is the median time per neuron of the multiples of this.
    """
    best = statistics.median(time / width for width, time in times.items() if width % base == 0)
    return {width: time / width / best - 1 for width, time in times.items()}


def largest_multiple(width: int, multiples: Sequence[int]) -> int:
    """The largest of the multiples that divides ``width``; 0 if none does."""
    return max((multiple for multiple in multiples if width % multiple == 0), default=0)


def rule(excesses: list[tuple[int, float]], multiples: Sequence[int]) -> int:
    """Return the smallest multiple that has, like all larger ones, no excess above ALLOWED_EXCESS.

    The largest multiple is the reference and always allowed.

    Args:
        excesses: (multiple, excess); a multiple may occur several times.
        multiples: ascending.
    """
    bad = {
        multiple
        for multiple, value in excesses
        if value > ALLOWED_EXCESS and multiple != multiples[-1]
    }
    return min(multiple for multiple in multiples if not any(other >= multiple for other in bad))


def _median_excess(above: dict[int, float], multiple: int, multiples: Sequence[int]) -> float:
    """The median excess of the widths whose largest multiple this is."""
    # the median: a single width may be slow for reasons of its own, such as cache conflicts
    return statistics.median(
        value for width, value in above.items() if largest_multiple(width, multiples) == multiple
    )
