"""What would a finer search for the neurons to remove gain over --scorer reconstruction?

    python -m benchmarks.scoring.bench_local_search --model DIR --data FILE --json FILE

Reconstruction removes 1/32 of the neurons that are left at a time. SlimGPT (arXiv 2412.18110) and
OSSCAR (arXiv 2403.12983) solve the same least-squares problem in steps of their own, and OSSCAR can
then swap neurons that stay for neurons that went. The error of a layer is ||Y - Y'||^2 / ||Y||^2,
Y its output on the calibration tokens and Y' the best one that the kept neurons can make, with the
ridge of the Gram matrix; a row a layer:

- chunks: reconstruction
- one by one: the same, one neuron at a time (SlimGPT's and OSSCAR's greedy removal at its finest)
- swapped: chunks, then OSSCAR's local search

Shape suffixes: I FFN width, H hidden size, K kept neurons.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.environment import dtype_name, environment
from benchmarks.harness.markdown import to_markdown
from benchmarks.harness.results import errors_in_one_line, write_json
from benchmarks.harness.stopwatch import timed
from ptl_fast.config.model import ModelSettings
from ptl_fast.config.score import RIDGE
from ptl_fast.data import packing, readers, sampling
from ptl_fast.model import loading
from ptl_fast.model.families import find_family
from ptl_fast.scoring.gram import GramMatrices
from ptl_fast.scoring.reconstruction import eliminate

MOST_SWAPS = 20  # iterations, as in OSSCAR's code
COLUMNS = ["layer", "chunks", "one by one", "swapped", "chunks, s", "one by one, s", "swaps, s"]


def lost(gram_II: Tensor, down_HI: Tensor, kept_K: Tensor) -> float:
    """The share of the layer's output that the kept neurons cannot make."""
    columns_HI = down_HI.double()
    factor = torch.linalg.cholesky(gram_II[kept_K][:, kept_K])
    made = torch.linalg.solve_triangular(factor, (columns_HI @ gram_II[:, kept_K]).T, upper=False)
    return float(1 - made.square().sum() / (columns_HI @ gram_II * columns_HI).sum())


def one_by_one(gram_II: Tensor, down_HI: Tensor, num_kept: int) -> Tensor:
    """Indices of the neurons that backward elimination leaves, one removed at a time."""
    inverse, columns = torch.cholesky_inverse(torch.linalg.cholesky(gram_II)), down_HI.double()
    left = torch.ones(len(gram_II), dtype=torch.bool, device=gram_II.device)
    for _ in range(len(gram_II) - num_kept):
        price_I = columns.square().sum(0) / inverse.diagonal()
        gone = int(price_I.masked_fill(~left, torch.inf).argmin())
        left[gone] = False
        row_I = inverse[gone] / inverse[gone, gone]
        columns = columns - torch.outer(columns[:, gone], row_I)
        inverse.addr_(inverse[:, gone].clone(), row_I, alpha=-1)
        # of those that went, rounding errors are left
        inverse[gone], inverse[:, gone] = 0.0, 0.0
    return left.nonzero()[:, 0]


def swapped(gram_II: Tensor, down_HI: Tensor, kept_K: Tensor, at_a_time: int) -> Tensor:
    """OSSCAR's local search: drop the cheapest ``at_a_time`` neurons, take in those that gain most,
    as long as the error falls.
    """
    best, columns_HI = lost(gram_II, down_HI, kept_K), down_HI.double()
    for _ in range(MOST_SWAPS):
        factor = torch.linalg.cholesky(gram_II[kept_K][:, kept_K])
        target_KH = (columns_HI @ gram_II[:, kept_K]).T
        fitted_KH = torch.cholesky_solve(target_KH, factor)
        price_K = fitted_KH.square().sum(1) / torch.cholesky_inverse(factor).diagonal()
        stays_K = kept_K[price_K.argsort()[at_a_time:]].sort().values
        enters = gains(gram_II, columns_HI, stays_K).argsort(descending=True)[:at_a_time]
        candidate_K = torch.cat([stays_K, enters]).sort().values
        error = lost(gram_II, down_HI, candidate_K)
        if error >= best:
            break
        best, kept_K = error, candidate_K
    return kept_K


def gains(gram_II: Tensor, columns_HI: Tensor, kept_K: Tensor) -> Tensor:
    """How much each neuron's return would lower the squared error, (width,); 0 for kept ones."""
    factor = torch.linalg.cholesky(gram_II[kept_K][:, kept_K])
    shared_KI = torch.cholesky_solve(gram_II[kept_K], factor)
    # what the kept neurons cannot say: of each neuron itself, and of the output with it
    own_I = gram_II.diagonal() - (gram_II[kept_K] * shared_KI).sum(0)
    left_HI = columns_HI @ gram_II - (columns_HI @ gram_II[:, kept_K]) @ shared_KI
    gain_I = left_HI.square().sum(0) / own_I.clamp_min(torch.finfo(own_I.dtype).tiny)
    gain_I[kept_K] = 0.0
    return gain_I


def compare_layer(gram_II: Tensor, down_HI: Tensor, num_kept: int) -> dict[str, float]:
    """The row of a layer, but for its index."""
    chunks, chunks_s = timed(
        lambda: eliminate(gram_II, down_HI).argsort(descending=True)[:num_kept].sort().values
    )
    single, single_s = timed(lambda: one_by_one(gram_II, down_HI, num_kept))
    at_a_time = max(1, len(gram_II) // 100)
    swaps, swaps_s = timed(lambda: swapped(gram_II, down_HI, chunks, at_a_time))
    errors = [lost(gram_II, down_HI, kept_K) for kept_K in (chunks, single, swaps)]
    return dict(zip(COLUMNS[1:], [*errors, chunks_s, single_s, swaps_s], strict=True))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=loading.DEMO, help="default: the bundled model")
    parser.add_argument("--data", default=loading.DEMO, help="default: the bundled model's data")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--keep", type=float, default=0.5, help="fraction of neurons that stays")
    parser.add_argument(
        "--ridge",
        type=float,
        default=RIDGE,
        help="fraction of the Gram matrix's mean diagonal",
    )
    parser.add_argument("--num-tokens", type=int, default=32768)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--layers", nargs="+", type=int, help="indices (default: all)")
    parser.add_argument("--json", type=Path, help="file for the result")
    options = parser.parse_args(arguments)
    with errors_in_one_line():
        result = measure(options)
    cells = [
        [str(row["layer"]), *(f"{row[name]:.4g}" for name in COLUMNS[1:])] for row in result["rows"]
    ]
    print(to_markdown([COLUMNS, *cells]))
    if options.json:
        write_json(options.json, result)


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Load the model and the tokens, and compare the chosen layers."""
    model = loading.load_model(options.model, ModelSettings(dtype=options.dtype), "cpu")
    tokenizer = loading.load_tokenizer(options.model)
    documents = list(
        sampling.tokenize(readers.load_documents(options.data), tokenizer, options.num_tokens)
    )
    tokens = packing.pack(documents, options.sequence_length, packing.padding_token(tokenizer))
    grams = GramMatrices(model, find_family(model), tokens, options.batch, ridge=options.ridge)
    layers = range(len(grams.downs)) if options.layers is None else options.layers
    grams.downs = [grams.downs[layer] for layer in layers]
    rows: list[dict[str, Any]] = []
    for layer, gram_II, down in zip(layers, grams, grams.downs, strict=True):
        num_kept = round(options.keep * grams.width)
        rows.append({"layer": layer, **compare_layer(gram_II, down.weight_HI, num_kept)})
    return {
        "environment": environment("cpu"),
        "model": Path(options.model).name,
        "dtype": dtype_name(model.dtype),
        "num_tokens": tokens.num_tokens,
        "ridge": options.ridge,
        "keep": options.keep,
        "rows": rows,
    }


if __name__ == "__main__":
    main()
