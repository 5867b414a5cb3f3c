"""Is a model pruned that does not fit in memory, and how long does each part take?

    python -m benchmarks.scale.layer_by_layer --folder DIR --json FILE [--memory-gib 6]

A Llama-shaped 8B model of random bf16 weights is written to DIR in shards (16 GB; it is kept there,
for the next call). A child process whose memory is limited then prunes it from there with
``run.streamed.prune_layers``, by the default scorer, with compensation, into DIR/pruned.

Elimination at a width of 14,336 takes minutes a layer on one CPU thread, and is the same in every
layer. So the first --layers-measured layers are done in one child, and a second one goes on where
that stopped, as after a crash, with a scorer that costs nothing (the norm of the activation,
without compensation). So every layer is read, run, made smaller and written within the limit, and
the folder is a whole checkpoint; the hours of the default scorer for all layers and for more tokens
are computed from the measured ones, and the result keeps the two apart.

The limit is RLIMIT_DATA: all memory of the process that is private and writable, also where it was
never touched (heap, stacks, torch's tensors). Not in it are libraries' code, and files that are
mapped for reading or shared, whose pages the kernel may take back. Each child first asks for as
much as the limit allows and must not get it. The peak of the resident memory is in the result too.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.harness import models
from benchmarks.harness.memory import limit_memory, peak_gib
from benchmarks.harness.results import write_json
from ptl_fast.run.streamed import StreamedWork

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaConfig

# Llama 3.1 8B's; the vocabulary and the head are part of what does not fit
SHAPES: dict[str, dict[str, Any]] = {
    "8b": {**models.SHAPES["llama3-8b"].settings, "rope_theta": 500000.0},
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
    },
}
SHARD_BYTES = 2**31
# parts of a layer's time that grow with the tokens; the others do not
BY_TOKEN = ("statistics", "gram")
# parts that are no layer's
OUTSIDE = ("embed", "finish")
FULL_TOKENS = 131_072


class Enough(Exception):
    """So many layers as asked for are done."""


def make_checkpoint(shape: dict[str, Any], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a model of random weights in bf16, in shards with an index, which comes last."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(**shape, tie_word_embeddings=False, dtype="bfloat16")
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    shards: list[dict[str, Tensor]] = [{}]
    weight_map: dict[str, str] = {}
    generator = torch.Generator().manual_seed(0)

    def write() -> None:
        name = f"model-{len(shards):05d}.safetensors"
        save_file(shards[-1], folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shards[-1], name))
        shards[-1] = {}

    for name, parameter in empty.named_parameters():
        if sum(each.nbytes for each in shards[-1].values()) >= shard_bytes:
            write()
            shards.append({})
        shards[-1][name] = _random(parameter.shape, generator)
    write()
    config.save_pretrained(folder)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _random(shape: Any, generator: Any) -> "Tensor":
    """A norm's weights are 1, and those of matrices small enough for activations of usual size."""
    import torch

    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    matrix = torch.empty(shape, dtype=torch.bfloat16)
    for rows in matrix.split(4096):
        rows.copy_(torch.randn(rows.shape, generator=generator).mul_(0.02))
    return matrix


@dataclass(kw_only=True)
class MeasuredWork(StreamedWork):
    """Keeps the seconds of every layer by itself, and stops before the layer after the last."""

    last: int
    layers: list[dict[str, float]] = field(default_factory=list)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        if part == "load":
            if len(self.layers) == self.last:
                raise Enough
            self.layers.append({})
        own = self.seconds if part in OUTSIDE or not self.layers else self.layers[-1]
        start = perf_counter()
        yield
        own[part] = own.get(part, 0.0) + perf_counter() - start


def prune(source: Path, output: Path, num_tokens: int, last: int, by_activation: bool) -> Any:
    """Prune up to ``last`` layers of a checkpoint; what the finished ones took, as JSON."""
    import torch
    from transformers import AutoConfig

    from ptl_fast.baselines import SCORERS
    from ptl_fast.model.layers_on_disk import LayersOnDisk
    from ptl_fast.run import streamed
    from ptl_fast.scoring import gram

    config: LlamaConfig = AutoConfig.from_pretrained(source, trust_remote_code=False)
    work = MeasuredWork(
        scorer=SCORERS["activation" if by_activation else "reconstruction"],
        tokens=_tokens(config, num_tokens),
        batch_size=1,
        width=_kept(config),
        compensate=not by_activation,
        last=last,
    )
    add_products_ = gram.add_products_

    def timed_products_(*args: Any) -> None:
        with work.timed("gram"):
            add_products_(*args)

    # inside the forward pass, whose time it is not
    gram.add_products_ = timed_products_  # type: ignore[assignment]
    try:
        layers = LayersOnDisk(source, config, torch.bfloat16)
        streamed.prune_layers(layers, work, output, torch.bfloat16)
    except Enough:
        pass
    finally:
        gram.add_products_ = add_products_
    for each in work.layers:
        each["statistics"] = each.pop("forward", 0.0) - each.get("gram", 0.0)
    return {"outside": work.seconds, "layers": work.layers}


def _kept(config: Any) -> int:
    """--keep 0.65, to the multiple of 128 that a run would take."""
    multiple = min(128, config.intermediate_size // 8)
    return round(0.65 * config.intermediate_size / multiple) * multiple


def _tokens(config: "LlamaConfig", num_tokens: int) -> Any:
    """Random documents of half a sequence."""
    import torch

    from ptl_fast.data.packing import pack

    length = min(512, num_tokens)
    generator = torch.Generator().manual_seed(1)
    documents = torch.randint(
        2, config.vocab_size, (2 * num_tokens // length, length // 2), generator=generator
    )
    return pack(documents.tolist(), length, 1)


def check(output: Path, config: Any) -> dict[str, Any]:
    """Raise AssertionError unless the pruned folder holds each tensor of its config's model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ptl_fast.model.layers_on_disk import StoredTensors

    pruned = AutoConfig.from_pretrained(output, trust_remote_code=False)
    assert pruned.intermediate_size == _kept(config)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(pruned, trust_remote_code=False)
    stored = StoredTensors(output).places
    shapes = {name: list(each.shape) for name, each in empty.named_parameters()}
    assert {name: each.shape for name, each in stored.items()} == shapes
    return {
        "width": pruned.intermediate_size,
        "parameters": sum(each.numel() for each in empty.parameters()),
        "bytes": sum(each.num_bytes for each in stored.values()),
    }


def extrapolated(measured: Any, rest: Any, num_tokens: int, full_tokens: int) -> dict[str, float]:
    """Seconds of the whole model by the default scorer with more tokens, by part.

    Statistics and Gram matrices grow with the tokens; the rest is that of a measured layer, times
    the number of layers, and what is outside the layers as it was.
    """
    growth = full_tokens / num_tokens
    # the second child went through the measured layers again
    num_layers, means = len(rest["layers"]), _means(measured["layers"])
    inside = {
        part: seconds * num_layers * (growth if part in BY_TOKEN else 1)
        for part, seconds in means.items()
    }
    outside = {
        "embed": measured["outside"]["embed"] * growth,
        "finish": rest["outside"]["finish"],
    }
    parts = {**inside, **outside}
    return {**parts, "total": sum(parts.values())}


def _means(layers: list[dict[str, float]]) -> dict[str, float]:
    parts = dict.fromkeys(part for each in layers for part in each)
    return {part: sum(each.get(part, 0.0) for each in layers) / len(layers) for part in parts}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement, its children included; what the result file holds."""
    from transformers import AutoConfig

    from benchmarks.harness.environment import environment

    source, output = options.folder / "dense", options.folder / "pruned"
    start = perf_counter()
    if not (source / "model.safetensors.index.json").exists():
        make_checkpoint(SHAPES[options.shape], source)
    made = perf_counter() - start
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if not options.go_on:
        shutil.rmtree(output, ignore_errors=True)
    measured = _child(options, options.layers_measured, "default")
    rest = _child(options, config.num_hidden_layers, "activation")
    return {
        "environment": environment("cpu"),
        "shape": SHAPES[options.shape],
        "limit_gib": options.memory_gib,
        "limit": "RLIMIT_DATA",
        "tokens": options.tokens,
        "measured": {
            "seconds_to_make_the_checkpoint": made,
            "by_default_scorer": measured,
            "other_layers_by_activation": rest,
            "result": check(output, config),
            "tokens_per_second_and_layer": {
                part: options.tokens / seconds
                for part, seconds in _means(measured["layers"]).items()
                if part in BY_TOKEN
            },
        },
        "computed": {
            f"{tokens} tokens": extrapolated(measured, rest, options.tokens, tokens)
            for tokens in (options.tokens, FULL_TOKENS)
        },
    }


def _child(options: argparse.Namespace, last: int, scorer: str) -> Any:
    """Run ``child`` in a process of its own, and return what it wrote; a file that is there already
    is that of a call with --go-on.
    """
    found = options.folder / "pruned" / f"measured-{scorer}.json"
    if not found.exists():
        command = [sys.executable, "-m", __spec__.name, "--folder", options.folder]
        command += ["--tokens", options.tokens, "--memory-gib", options.memory_gib]
        command += ["--child", scorer, "--layers-measured", last]
        subprocess.run(list(map(str, command)), check=True)
    return json.loads(found.read_text())


def child(options: argparse.Namespace) -> None:
    """Prune within the limit, and write what it took."""
    if options.memory_gib:
        limit_memory(int(options.memory_gib * 2**30))
    start = perf_counter()
    source, output = options.folder / "dense", options.folder / "pruned"
    scorer = options.child
    taken = prune(source, output, options.tokens, options.layers_measured, scorer != "default")
    taken |= {"seconds": perf_counter() - start, "peak_resident_gib": peak_gib()}
    write_json(output / f"measured-{scorer}.json", taken)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="for 30 GB of checkpoints")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--memory-gib", type=float, default=6.0, help="0: no limit")
    parser.add_argument("--layers-measured", type=int, default=1)
    parser.add_argument("--go-on", action="store_true", help="with what an earlier call has left")
    parser.add_argument("--child", choices=("default", "activation"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(options)
        return
    result = run(options)
    print(json.dumps({name: result[name] for name in ("measured", "computed")}, indent=1))
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
