"""How long do elimination and compensation of one wide layer take, in fp64 and as they are now?

    python -m benchmarks.scoring.bench_elimination --width 4864 --hidden 896 --json FILE

"fp64" is what a narrow matrix gets: LAPACK in fp64, and an update of the whole inverse for every
chunk of neurons. "now" is what ``positive_definite.working_type`` says of this width and device.
Both get the same Gram matrix and down projection, in one process, in turns; the shortest times
count. Activations are random: a few common directions, noise of each neuron's own, some neurons
with massive activations on single tokens. --activations takes real ones, a file of torch.save with
the pair (activations (T, I), down projection (H, I)).

Nothing is reported where less than 99% of the kept neurons agree, or where the compensated output
is off by over 0.1% more than in fp64.
"""

import argparse
import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import clock
from benchmarks.harness.environment import environment
from benchmarks.harness.results import write_json
from benchmarks.harness.stopwatch import timed
from benchmarks.harness.turns import forth_and_back
from ptl_fast.base import positive_definite
from ptl_fast.pruning.compensate import least_squares
from ptl_fast.scoring.gram import add_products_, damped, mirror_
from ptl_fast.scoring.reconstruction import eliminate
from ptl_fast.scoring.ridge import RIDGE

AGREEMENT, EXCESS = 0.99, 1e-3
TOKENS_AT_ONCE = 1024


def random_layer(num_tokens: int, width: int, hidden: int, device: str) -> tuple[Tensor, Tensor]:
    """Activations (T, I) and a down projection (H, I), both fp32."""
    generator = torch.Generator().manual_seed(0)
    num_common = max(1, width // 16)
    mixing = torch.randn(num_common, width, generator=generator) / num_common**0.5
    a_TI = torch.randn(num_tokens, num_common, generator=generator) @ mixing
    a_TI += 0.3 * torch.randn(num_tokens, width, generator=generator)
    # some neurons are louder than others
    a_TI *= torch.randn(width, generator=generator).exp()
    massive = torch.randperm(width, generator=generator)[: max(1, width // 500)]
    a_TI[::100, massive] *= 300
    down_HI = torch.randn(hidden, width, generator=generator)
    return a_TI.to(device), down_HI.to(device)


@contextmanager
def as_narrow(narrow: bool) -> Iterator[None]:
    """Inside, every width is one for which all is done in fp64, if ``narrow``."""
    before = positive_definite.NARROW
    if narrow:
        positive_definite.NARROW = 2**62
    try:
        yield
    finally:
        positive_definite.NARROW = before


def measure(
    a_TI: Tensor, down_HI: Tensor, keep: float, samples: int, now: Callable[[], float]
) -> dict[str, Any]:
    """Seconds of each part by each way, and how far the results agree."""
    width = a_TI.shape[1]
    gram_II, gram_seconds = timed(lambda: _gram(a_TI), now)
    seconds: dict[str, dict[str, float]] = {"fp64": {}, "now": {}}
    kept: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    for sample in range(samples):
        for way in forth_and_back(list(seconds), sample):
            with as_narrow(way == "fp64"):
                price_I, taken = timed(lambda: eliminate(gram_II, down_HI), now)
                _shortest(seconds[way], "elimination", taken)
                order = price_I.argsort(stable=True)
                kept[way] = order[-round(keep * width) :].sort().values
                # both fit the same neurons
                chosen = kept.get("fp64", kept[way])
                fit = functools.partial(least_squares, gram_II, down_HI, chosen)
                columns[way], taken = timed(fit, now)
                _shortest(seconds[way], "compensation", taken)
    common = torch.isin(kept["now"], kept["fp64"]).sum()
    found = {
        "agreement": int(common) / len(kept["fp64"]),
        "excess": _off(gram_II, down_HI, kept["fp64"], columns["now"])
        / _off(gram_II, down_HI, kept["fp64"], columns["fp64"])
        - 1,
    }
    check(found)
    return {
        "gram_tokens_per_second": len(a_TI) / gram_seconds,
        "seconds": seconds,
        "speedup": {part: seconds["fp64"][part] / seconds["now"][part] for part in seconds["now"]},
        **found,
    }


def check(found: dict[str, float]) -> None:
    """Stop the program where the results of the two ways differ."""
    if not (found["agreement"] >= AGREEMENT and found["excess"] <= EXCESS):
        raise SystemExit(f"wrong results: {found}; times are not reported")


def _shortest(seconds: dict[str, float], part: str, taken: float) -> None:
    seconds[part] = min(taken, seconds.get(part, taken))


def _gram(a_TI: Tensor) -> Tensor:
    """G with its ridge."""
    size = (a_TI.shape[1], a_TI.shape[1])
    gram_II = torch.zeros(size, dtype=torch.float64, device=a_TI.device)
    for rows_TI in a_TI.split(TOKENS_AT_ONCE):
        add_products_(gram_II, rows_TI.double(), 1.0)
    mirror_(gram_II)
    return damped(gram_II, RIDGE)


def _off(gram_II: Tensor, down_HI: Tensor, kept_K: Tensor, columns_HK: Tensor) -> float:
    """The squared error of the layer's output with these columns, ridge included."""
    change_HI = -down_HI.double()
    change_HI[:, kept_K] += columns_HK.double()
    return float((change_HI @ gram_II * change_HI).sum())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=4864)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--num-tokens", type=int, default=2048)
    parser.add_argument("--activations", type=Path, help="file of real ones")
    parser.add_argument("--keep", type=float, default=0.65)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="file for the result")
    clock.add_flag(parser)
    options = parser.parse_args(arguments)
    clock.choose(options.clock)
    if options.activations:
        a_TI, down_HI = torch.load(options.activations, map_location=options.device)
    else:
        a_TI, down_HI = random_layer(
            options.num_tokens, options.width, options.hidden, options.device
        )
    device = torch.device(options.device)
    result = {
        "environment": environment(device.type),
        "width": a_TI.shape[1],
        "hidden": len(down_HI),
        "num_tokens": len(a_TI),
        "activations": "real" if options.activations else "random",
        "working_type": str(positive_definite.working_type(a_TI.shape[1], device)),
        **measure(a_TI, down_HI, options.keep, options.samples, lambda: clock.now(device)),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
