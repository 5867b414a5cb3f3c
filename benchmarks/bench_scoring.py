"""How fast is scoring a whole model? Ratios of tokens per second, each against the same tokens in the same run.

    python -m benchmarks.bench_scoring --model DIR --json FILE

- vs_plain_forward: the model's forward pass with logits and without any statistics
- vs_plain_decoder: the same without the language-model head, which scoring does not need either
- vs_eager_hooks: the decoder with hooks in plain PyTorch that take the same statistics
- vs_reference_rule: the detection rule that the authors of arXiv 2602.04919 published: batch 1, whole logits, the last position of
  three views of each layer, and sets of the least active neurons intersected on the host

Above 1, ours is faster. Samples of all of them take turns; the median ratio counts. Wrong statistics are not timed.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ptl_kernels import reference
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.bench_kernels import environment, write_text
from ptl_fast import calibrate, data, models, sources
from ptl_fast.config import Config
from ptl_fast.families import Family, decoder_layers, feed_forwards, find_family

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}
REFERENCE_SHARE = 12000 / 14336  # the authors' top_n of the width, first round


class EagerHooks:
    """The same statistics as ours, by forward hooks and plain PyTorch operations."""

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        self.model, self.family = model, family
        ffns, layers = feed_forwards(model, family), decoder_layers(model, family)
        self.square = torch.zeros(len(ffns), ffns["0"].width, dtype=torch.float64, device=model.device)
        self.change = torch.zeros(len(layers), 3, dtype=torch.float64, device=model.device)

    @contextmanager
    def attached(self, mask: Tensor) -> Iterator[None]:
        def add_neurons(index: int) -> Callable[[nn.Module, tuple], None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                reference.add_neuron_sums_((self.square[index],), args[0].flatten(0, -2), mask)

            return hook

        def add_change(index: int) -> Callable[[nn.Module, tuple, Tensor], None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                self.change[index] += reference.residual_change(args[0].flatten(0, -2), output.flatten(0, -2), mask)

            return hook

        ffns = feed_forwards(self.model, self.family).values()
        handles = [ffn.down.register_forward_pre_hook(add_neurons(index)) for index, ffn in enumerate(ffns)]
        layers = decoder_layers(self.model, self.family)
        handles += [layer.register_forward_hook(add_change(index)) for index, layer in enumerate(layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def reference_rule(model: PreTrainedModel, family: Family, documents: list[list[int]]) -> list[list[set[int]]]:
    """The published rule, without its English corpus: neurons among the least active of every document, per layer and view."""
    views: list[list[Tensor]] = []

    def record(layer: int, tensor: Tensor) -> None:
        views[layer].append(tensor[0, -1])

    handles = []
    for index, ffn in enumerate(feed_forwards(model, family).values()):
        for linear in ffn.inputs:
            handles.append(linear.register_forward_hook(lambda module, args, output, layer=index: record(layer, output)))
        handles.append(ffn.down.register_forward_pre_hook(lambda module, args, layer=index: record(layer, args[0])))
    detected: list[list[set[int]]] = []
    for document in documents:
        views[:] = [[] for _ in decoder_layers(model, family)]
        model(torch.tensor([[*document, document[-1]]], device=model.device), use_cache=False)
        found = [
            [set(view.topk(round(REFERENCE_SHARE * view.numel()), largest=False).indices.tolist()) for view in layer]
            for layer in views
        ]
        detected = (
            [[a & b for a, b in zip(*pair, strict=True)] for pair in zip(detected, found, strict=True)] if detected else found
        )
    for handle in handles:
        handle.remove()
    return detected


@torch.inference_mode()
def measure(
    model: PreTrainedModel, tokens: data.PackedTokens, documents: list[list[int]], batch: int, samples: int
) -> dict[str, Any]:
    """Time every way in turns over the same tokens; return medians and ratios."""
    family = find_family(model)
    eager = EagerHooks(model, family)
    num_tokens = tokens.num_tokens

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for first in range(0, len(tokens), batch):
            rows = slice(first, first + batch)
            yield tuple(each[rows].to(model.device) for each in (tokens.input_ids, tokens.position_ids, tokens.mask))  # type: ignore[misc]

    def plain_forward() -> None:
        for input_ids, position_ids, _ in batches():
            model(input_ids=input_ids, position_ids=position_ids, use_cache=False)

    def plain_decoder() -> None:
        for input_ids, position_ids, _ in batches():
            model.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False)

    def eager_hooks() -> None:
        for input_ids, position_ids, mask in batches():
            with eager.attached(mask.flatten()):
                model.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False)

    def ours() -> None:
        calibrate.collect(model, family, tokens, batch, "ours")

    eager_hooks()
    check(calibrate.collect(model, family, tokens, batch), eager, model.dtype)
    ways: dict[str, Callable[[], Any]] = {
        "ours": ours,
        "plain_forward": plain_forward,
        "plain_decoder": plain_decoder,
        "eager_hooks": eager_hooks,
        "reference_rule": lambda: reference_rule(model, family, documents),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for sample in range(samples + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            if sample:  # the first round warms up
                rates[name].append(num_tokens / (time.perf_counter() - start))
    result: dict[str, Any] = {"tokens_per_second": round(statistics.median(rates["ours"]), 1)}
    for name in list(ways)[1:]:
        ratios = sorted(mine / other for mine, other in zip(rates["ours"], rates[name], strict=True))
        result[f"vs_{name}"] = round(statistics.median(ratios), 3)
        result[f"vs_{name}_range"] = [round(ratios[0], 3), round(ratios[-1], 3)]
    return result


def check(ours: calibrate.Statistics, eager: EagerHooks, dtype: torch.dtype) -> None:
    """Stop where our statistics are not those of the hooks: half precision differs by its roundings, which the layers add up."""
    for mine, other in ((ours.square_LI, eager.square), (ours.change_L3, eager.change)):
        error = float((mine - other.cpu()).norm() / other.norm().cpu())
        if not error < TOLERANCE[dtype]:
            raise SystemExit(f"wrong statistics: relative error {error:.2e}, above {TOLERANCE[dtype]:.0e}; nothing was timed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=models.DEMO, help="model folder or hub name (default: the bundled model)")
    parser.add_argument("--data", default=models.DEMO, help="text to score on (default: the bundled model's data)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--num-tokens", type=int, default=4096)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()
    device = models.resolve_device(arguments.device)
    model = models.load_model(arguments.model, Config(model=arguments.model, dtype=arguments.dtype), device)
    tokenizer = models.load_tokenizer(arguments.model)
    documents = list(data.tokenize(sources.load_documents(arguments.data), tokenizer, arguments.num_tokens))
    tokens = data.pack(documents, arguments.sequence_length, data.padding_token(tokenizer), arguments.data)
    result = {
        "environment": environment(device.partition(":")[0]),
        "model": Path(arguments.model).name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "num_tokens": tokens.num_tokens,
        "num_documents": len(documents),
        **measure(model, tokens, documents, arguments.batch, arguments.samples),
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        write_text(arguments.json, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
