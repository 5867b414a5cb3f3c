"""How fast is scoring a whole model? Ratios of tokens per second, each against the same tokens in
the same run.

    python -m benchmarks.scoring.bench_scoring --model DIR --json FILE

- vs_plain_forward: the model's forward pass on the same batches, with logits and without any
  statistics
- vs_packed_forward: the same on packed sequences, several documents each with no attention across
  them, as in training
- vs_plain_decoder: vs_plain_forward without the language-model head, which scoring does not need
  either
- vs_eager_hooks: the decoder with hooks in plain PyTorch that take the same statistics
- vs_reference_rule: the detection rule that the authors of arXiv 2602.04919 published
  (ptl_fast/baselines/authors_rule.py), without its samples of English text: batch 1, the logits of
  every position, the last position of three views of each layer, and sets of the least active
  neurons intersected on the host

Above 1, ours is faster. All of them take turns, in an order that rotates; the median ratio counts.
Wrong statistics end the program before anything is timed.
"""

import argparse
import functools
import json
import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.harness import clock
from benchmarks.harness.environment import dtype_name, environment
from benchmarks.harness.models import SHAPES, random_model, shape_config
from benchmarks.harness.results import write_json
from benchmarks.harness.stopwatch import timed
from benchmarks.harness.turns import rotated
from ptl_fast.baselines import authors_rule
from ptl_fast.config.model import ModelSettings
from ptl_fast.data import batching, packing, readers, sampling
from ptl_fast.model import loading
from ptl_fast.model.families import Family, decoder_layers, feed_forwards, find_family
from ptl_fast.scoring import statistics as statistics_module
from ptl_kernels import reference

# largest relative error of our statistics against the hooks'
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}


class EagerHooks:
    """The same statistics as ours, by forward hooks and plain PyTorch operations."""

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        self.model, self.family = model, family
        ffns, layers = feed_forwards(model, family), decoder_layers(model, family)
        # fp64 across batches, as ours: a sum in fp32 would lose small addends
        self.square = torch.zeros(
            len(ffns), ffns["0"].width, dtype=torch.float64, device=model.device
        )
        self.change = torch.zeros(len(layers), 3, dtype=torch.float64, device=model.device)

    @contextmanager
    def attached(self, mask: Tensor) -> Iterator[None]:
        """Add up the statistics of the forward passes inside, of the tokens of the mask."""

        def add_neurons(index: int) -> Callable[[nn.Module, tuple], None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                reference.add_neuron_sums_((self.square[index],), args[0].flatten(0, -2), mask)

            return hook

        def add_change(index: int) -> Callable[[nn.Module, tuple, Tensor], None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                self.change[index] += reference.residual_change(
                    args[0].flatten(0, -2), output.flatten(0, -2), mask
                )

            return hook

        ffns = feed_forwards(self.model, self.family).values()
        handles = [
            ffn.down.register_forward_pre_hook(add_neurons(index)) for index, ffn in enumerate(ffns)
        ]
        layers = decoder_layers(self.model, self.family)
        handles += [
            layer.register_forward_hook(add_change(index)) for index, layer in enumerate(layers)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


Passes = dict[str, Callable[[], Any]]
"""By name, a whole pass over the same tokens; "ours" first."""


def make_passes(
    model: PreTrainedModel, tokens: packing.PackedTokens, documents: list[list[int]], batch: int
) -> Passes:
    """Our scoring pass and its peers, over the same tokens, after our statistics were checked.

    ``batch`` is the number of sequences, or of documents, in a forward pass.
    """
    family = find_family(model)
    eager = EagerHooks(model, family)

    def batches() -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for each in batching.document_batches(model, tokens, batch, "peer"):
            yield each.inputs, each.mask

    # positions restart in each document, from which transformers makes the mask between them
    def packed_forward() -> None:
        for first in range(0, len(tokens), batch):
            rows = tokens.rows(slice(first, first + batch))
            model(
                input_ids=rows.input_ids.to(model.device),
                position_ids=rows.position_ids.to(model.device),
                use_cache=False,
            )

    def plain_forward() -> None:
        for inputs, _ in batches():
            model(**inputs, use_cache=False)

    # without the language-model head: statistics need no logits
    def plain_decoder() -> None:
        for inputs, _ in batches():
            model.base_model(**inputs, use_cache=False)

    def eager_hooks() -> None:
        for inputs, mask in batches():
            with eager.attached(mask.flatten()):
                model.base_model(**inputs, use_cache=False)

    def ours() -> None:
        statistics_module.collect(model, family, tokens, batch, "ours")

    # one pass each, compared before anything is timed
    eager_hooks()
    check(statistics_module.collect(model, family, tokens, batch), eager, model.dtype)
    return {
        "ours": ours,
        "plain_forward": plain_forward,
        "packed_forward": packed_forward,
        "plain_decoder": plain_decoder,
        "eager_hooks": eager_hooks,
        "reference_rule": lambda: authors_rule.common_extremes(
            model, family, documents, largest=False
        ),
    }


@torch.inference_mode()
def measure(
    model: PreTrainedModel,
    tokens: packing.PackedTokens,
    documents: list[list[int]],
    batch: int,
    samples: int,
) -> dict[str, Any]:
    """Time every pass in turns; return our tokens per second and its ratio to each other's."""
    passes = make_passes(model, tokens, documents, batch)
    rates: dict[str, list[float]] = {name: [] for name in passes}
    now = functools.partial(clock.now, model.device)
    for sample in range(samples + 1):
        for name in rotated(list(passes), sample):
            _, seconds = timed(passes[name], now)
            if sample:  # the first turn warms up
                rates[name].append(tokens.num_tokens / seconds)
    result: dict[str, Any] = {"tokens_per_second": round(statistics.median(rates["ours"]), 1)}
    for name in list(passes)[1:]:
        # of the rates in the same turn
        ratios = sorted(
            mine / other for mine, other in zip(rates["ours"], rates[name], strict=True)
        )
        result[f"vs_{name}"] = round(statistics.median(ratios), 3)
        result[f"vs_{name}_range"] = [round(ratios[0], 3), round(ratios[-1], 3)]
    return result


def check(ours: statistics_module.Statistics, eager: EagerHooks, dtype: torch.dtype) -> None:
    """Stop the program where our statistics are not those of the hooks."""
    # half precision has a wide tolerance: the two round differently, and errors grow over layers
    for mine, other in ((ours.square_LI, eager.square), (ours.change_L3, eager.change)):
        error = float((mine - other.cpu()).norm() / other.norm().cpu())
        if not error < TOLERANCE[dtype]:
            raise SystemExit(
                f"wrong statistics: relative error {error:.2e}, above {TOLERANCE[dtype]:.0e};"
                " nothing was timed"
            )


Inputs = tuple[PreTrainedModel, list[list[int]], int]
"""Model, documents as token ids, padding token."""


def loaded_inputs(arguments: argparse.Namespace, device: str) -> Inputs:
    """A model from a folder or the hub, and documents of the text that --data names."""
    model = loading.load_model(arguments.model, ModelSettings(dtype=arguments.dtype), device)
    tokenizer = loading.load_tokenizer(arguments.model)
    documents = list(
        sampling.tokenize(readers.load_documents(arguments.data), tokenizer, arguments.num_tokens)
    )
    return model, documents, packing.padding_token(tokenizer)


def random_inputs(arguments: argparse.Namespace, device: str) -> Inputs:
    """A known shape with random weights, and random documents of an eighth to half a sequence's
    length, so that nothing is downloaded.
    """
    default = "float32" if device == "cpu" else "bfloat16"
    config = shape_config(arguments.shape)
    model = random_model(
        config, device, getattr(torch, default if arguments.dtype == "auto" else arguments.dtype)
    )
    generator = random.Random(0)  # the same documents in every run
    documents: list[list[int]] = []
    while sum(map(len, documents)) < arguments.num_tokens:
        length = generator.randint(arguments.sequence_length // 8, arguments.sequence_length // 2)
        documents.append([generator.randrange(2, config.vocab_size) for _ in range(length)])
    return model, documents, 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        default=loading.DEMO,
        help="model folder or hub name (default: the bundled model)",
    )
    parser.add_argument(
        "--shape",
        choices=list(SHAPES),
        help="instead of --model: a known model with random weights, on random tokens",
    )
    parser.add_argument(
        "--data", default=loading.DEMO, help="text to score on (default: the bundled model's data)"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"]
    )
    parser.add_argument("--num-tokens", type=int, default=4096)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the result")
    clock.add_flag(parser)
    arguments = parser.parse_args()
    for name, smallest in (("num_tokens", 1), ("sequence_length", 8), ("batch", 1), ("samples", 1)):
        if getattr(arguments, name) < smallest:
            parser.error(f"--{name.replace('_', '-')} must be at least {smallest}")
    clock.choose(arguments.clock)
    device = loading.resolve_device(arguments.device)
    model, documents, pad = (
        random_inputs(arguments, device) if arguments.shape else loaded_inputs(arguments, device)
    )
    tokens = packing.pack(
        documents, arguments.sequence_length, pad, arguments.shape or arguments.data
    )
    result = {
        "environment": environment(device.partition(":")[0]),
        "model": arguments.shape or Path(arguments.model).name,
        "dtype": dtype_name(model.dtype),
        "num_tokens": tokens.num_tokens,
        "num_documents": len(documents),
        **measure(model, tokens, documents, arguments.batch, arguments.samples),
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        write_json(arguments.json, result)


if __name__ == "__main__":
    main()
