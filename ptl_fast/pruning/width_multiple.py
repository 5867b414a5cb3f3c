"""Which FFN widths suit a device: --width-multiple auto.

On a GPU the rule is that of tensor cores: whole tiles of 128. On a CPU it depends on the processor
and the library, so products are
timed. What counts is time per neuron: a width's excess is its time per neuron above that of widths
that are multiples of the largest multiple, so that a width pays only for being odd and not for
being wide.
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
MULTIPLES = (8, 16, 32, 64, 128)
ALLOWED_EXCESS = 0.02  # above it, a multiple is not good enough
WIDTHS_EACH = 3
ROUNDS = 9
MOST_FLOP = 1e9  # of one product, so that all of them take seconds
Call = Callable[[], object]


def choose(device: str, hidden_size: int, width: int, dtype: torch.dtype) -> dict[str, Any]:
    """Decide on the multiple for FFNs of up to this width: {multiple, reason, excess by multiple
    (measured on a CPU)}.
    """
    if device != "cpu":
        return {
            "multiple": TENSOR_CORE_MULTIPLE,
            "reason": "tensor cores work in tiles of 128",
            "excess": {},
        }
    multiples = [multiple for multiple in MULTIPLES if 4 * multiple <= width] or [MULTIPLES[0]]
    widths = candidates(width, multiples)
    num_tokens = max(16, min(512, int(MOST_FLOP / (2 * hidden_size * width))))
    times = measure(hidden_size, widths, num_tokens, dtype)
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
    """Widths up to ``width`` to time: a few of each multiple that are multiples of no larger one."""
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
    """Seconds of an FFN's input and output projection by width: the shortest of several rounds, as
    others may use the machine.
    """
    calls = products(hidden, widths, num_tokens, dtype, "cpu")
    times: dict[str, dict[int, float]] = {"up": {}, "down": {}}
    order, shuffle = list(calls), random.Random(0)
    with torch.inference_mode():
        for number in range(ROUNDS + 1):
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
    """The input (up) and output (down) projection of each width, all in the same memory: all of
    them together might not fit.
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
    inputs, outputs = (hidden, width) if name == "up" else (width, hidden)
    sizes = ((num_tokens, inputs), (outputs, inputs))
    tokens, weight = (
        operand[: size[0] * size[1]].view(size)
        for operand, size in zip(operands, sizes, strict=True)
    )
    return lambda: linear(tokens, weight)


def excess(times: dict[int, float], base: int) -> dict[int, float]:
    """Each width's time per neuron above the median of the widths that are multiples of ``base``,
    as a fraction.
    """
    best = statistics.median(time / width for width, time in times.items() if width % base == 0)
    return {width: time / width / best - 1 for width, time in times.items()}


def largest_multiple(width: int, multiples: Sequence[int]) -> int:
    """The largest of the multiples that divides the width; 0 if none does."""
    return max((multiple for multiple in multiples if width % multiple == 0), default=0)


def rule(excesses: list[tuple[int, float]], multiples: Sequence[int]) -> int:
    """The smallest multiple from which on every excess, of (multiple, excess), is allowed; those of
    the largest always are.
    """
    bad = {
        multiple
        for multiple, value in excesses
        if value > ALLOWED_EXCESS and multiple != multiples[-1]
    }
    return min(multiple for multiple in multiples if not any(other >= multiple for other in bad))


def _median_excess(above: dict[int, float], multiple: int, multiples: Sequence[int]) -> float:
    return statistics.median(
        value for width, value in above.items() if largest_multiple(width, multiples) == multiple
    )
