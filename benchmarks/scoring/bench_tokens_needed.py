"""How many calibration tokens does the least squares of a width need?

    python -m benchmarks.scoring.bench_tokens_needed --model DIR --data FILE --json FILE

A layer's neurons are chosen and the others' columns refitted on the first N calibration tokens, and
the layer's output is compared with the original's: ||Y - Y'||^2 / ||Y||^2, on these tokens and on
documents that were held out. What the first gains over the second was learned by heart; where the
second falls no more, further tokens are of no use. One pass over the corpus, for all N.

Shape suffixes: I FFN width, H hidden size, K kept neurons.
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.harness.environment import dtype_name, environment
from benchmarks.harness.markdown import to_markdown
from benchmarks.harness.results import errors_in_one_line, write_json
from ptl_fast.config.model import ModelSettings
from ptl_fast.config.score import RIDGE
from ptl_fast.data import packing, readers, sampling
from ptl_fast.data.batching import document_batches
from ptl_fast.data.documents import CHAT_TEMPLATES, Form
from ptl_fast.model import loading
from ptl_fast.model.families import DownProjection, decoder_layers, down_projections, find_family
from ptl_fast.pruning.compensate import least_squares
from ptl_fast.scoring.gram import add_products_, damped, mirror_
from ptl_fast.scoring.reconstruction import eliminate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.data.packing import PackedTokens

COLUMNS = ["layer", "tokens", "ridge", "calibration", "held out"]


class Grams:
    """A^T A of some FFNs' activations A, over the tokens so far."""

    def __init__(self, downs: list[DownProjection]) -> None:
        self.downs, self.mask = downs, torch.empty(0, dtype=torch.bool)
        width = downs[0].weight_HI.shape[1]
        self.sums = [torch.zeros(width, width, dtype=torch.float64) for _ in downs]
        self.num_tokens = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Forward passes inside add their tokens."""
        with ExitStack() as stack:
            for gram_II, down in zip(self.sums, self.downs, strict=True):
                hook = down.module.register_forward_pre_hook(partial(self._add, gram_II))
                stack.callback(hook.remove)
            yield

    def _add(self, gram_II: Tensor, module: nn.Module, args: tuple) -> None:
        add_products_(gram_II, args[0].flatten(0, -2)[self.mask.flatten()].double(), 1.0)

    def read(self, model: "PreTrainedModel", tokens: "PackedTokens", batch: int) -> None:
        """Add a corpus."""
        with self.watching():
            for each in document_batches(model, tokens, batch, "read"):
                self.mask = each.mask
                model.base_model(**each.inputs, use_cache=False)
                self.num_tokens += int(each.mask.sum())

    def whole(self, index: int) -> Tensor:
        """A copy of a matrix, with the half that is not summed."""
        gram_II = self.sums[index].clone()
        mirror_(gram_II)
        return gram_II


def lost(gram_II: Tensor, down_HI: Tensor, kept_K: Tensor, columns_HK: Tensor) -> float:
    """The share of the output's energy that is off with these columns, on the tokens of G."""
    off_HI = down_HI.double().clone()
    total = (off_HI @ gram_II * off_HI).sum()
    off_HI[:, kept_K] -= columns_HK.double()
    return float((off_HI @ gram_II * off_HI).sum() / total)


def errors(own_II: Tensor, held_II: Tensor, down_HI: Tensor, keep: float, ridge: float) -> list:
    """[error on the calibration tokens, on those held out]; matrices without a ridge."""
    damped_II = damped(own_II.clone(), ridge)
    order = eliminate(damped_II, down_HI).argsort(descending=True)
    kept_K = order[: round(keep * len(order))].sort().values
    columns_HK = least_squares(damped_II, down_HI, kept_K)
    return [lost(each, down_HI, kept_K, columns_HK) for each in (own_II, held_II)]


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Load the model and the text, and fit the chosen layers on more and more of it."""
    model = loading.load_model(options.model, ModelSettings(dtype=options.dtype), "cpu")
    tokenizer, family = loading.load_tokenizer(options.model), find_family(model)
    downs = down_projections(model, family)
    layers = options.layers or list(range(len(downs)))
    # nothing behind the last of them is looked at
    del decoder_layers(model, family)[max(layers) + 1 :]
    downs = [downs[layer] for layer in layers]
    form = Form(chats=CHAT_TEMPLATES["auto"] if tokenizer.chat_template else None)
    documents = sampling.tokenize(readers.load_documents(options.data, form), tokenizer)
    pack = partial(
        packing.pack, length=options.sequence_length, pad=packing.padding_token(tokenizer)
    )
    held, own = Grams(downs), Grams(downs)
    held.read(model, pack(_until(documents, options.held_out)), options.batch)
    rows = []
    for num_tokens in sorted(options.tokens):
        own.read(model, pack(_until(documents, num_tokens - own.num_tokens)), options.batch)
        for index, (layer, down) in enumerate(zip(layers, downs, strict=True)):
            matrices = own.whole(index), held.whole(index)
            for ridge in options.ridges:
                both = errors(*matrices, down.weight_HI, options.keep, ridge)
                values = [layer, own.num_tokens, ridge, *both]
                rows.append(dict(zip(COLUMNS, values, strict=True)))
                print(to_markdown([_cells(rows[-1])]).splitlines()[0], flush=True)
    return {
        "environment": environment("cpu"),
        "model": Path(options.model).name,
        "dtype": dtype_name(model.dtype),
        "width": downs[0].weight_HI.shape[1],
        "keep": options.keep,
        "held_out_tokens": held.num_tokens,
        "rows": rows,
    }


def _until(documents: Iterator[list[int]], num_tokens: int) -> list[list[int]]:
    """The next documents, until they have so many tokens.

    Raises:
        ValueError: the data ends before.
    """
    taken: list[list[int]] = []
    total = 0
    for ids in documents:
        taken.append(ids)
        total += len(ids)
        if total >= num_tokens:
            return taken
    raise ValueError(f"the data has only {total:,} more tokens, and {num_tokens:,} are asked for")


def _cells(row: dict[str, Any]) -> list[str]:
    return [f"{each:.4g}" if isinstance(each, float) else f"{each:,}" for each in row.values()]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=loading.DEMO, help="default: the bundled model")
    add("--data", default=loading.DEMO, help="default: the bundled model's data")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    add("--keep", type=float, default=0.65, help="fraction of neurons that stays")
    add("--tokens", nargs="+", type=int, default=[8192, 16384, 32768, 65536, 131072])
    add("--held-out", type=int, default=8192, help="tokens of the first documents")
    add("--ridges", nargs="+", type=float, default=[RIDGE], help="fractions of G's mean diagonal")
    add("--layers", nargs="+", type=int, help="indices (default: all)")
    add("--sequence-length", type=int, default=1024)
    add("--batch", type=int, default=2)
    add("--json", type=Path, help="file for the result")
    options = parser.parse_args(arguments)
    with errors_in_one_line():
        result = measure(options)
    print(to_markdown([COLUMNS, *map(_cells, result["rows"])]))
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
