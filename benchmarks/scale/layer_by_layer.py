"""Is a model pruned that does not fit in memory, and how long does each part take?

    python -m benchmarks.scale.layer_by_layer --folder DIR --json FILE [--memory-gib 6]

A Llama-shaped 8B model of random bf16 weights is written to DIR in shards (16 GB; it is kept there,
for the next call). A child process whose memory is limited then prunes it from there with
``run.streamed.prune_layers``, by the default scorer, with compensation, into DIR/pruned.

After every layer what it took is written to DIR/pruned/measured.json; with --go-on a call that was
killed goes on with the layer that it was at. --layers stops before the last one. When all are done,
the folder is a whole checkpoint: the shape of every tensor is compared with its config's model, and
where the memory that is free allows it, the model is loaded and run on a few tokens.

Every part has its seconds by the clock and those of the processor, which other processes do not
lengthen. The hours for more tokens are computed from the processor's, and the result keeps the two
apart.

The limit is RLIMIT_DATA: all memory of the process that is private and writable, also where it was
never touched (heap, stacks, torch's tensors). Not in it are libraries' code, and files that are
mapped for reading or shared, whose pages the kernel may take back. Each child first asks for as
much as the limit allows and must not get it. The peak of the resident memory is in the result too.
"""

import argparse
import copy
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time
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
MEASURED = "measured.json"
# parts of a layer's time that grow with the tokens; the others do not
BY_TOKEN = ("statistics", "gram")
# parts that are no layer's
OUTSIDE = ("embed", "finish")
FULL_TOKENS = 131_072
CLOCKS: dict[str, Callable[[], float]] = {"wall": perf_counter, "processor": process_time}
Seconds = dict[str, dict[str, float]]
"""By part, and then by clock."""


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
    """Keeps the seconds of every layer by itself, and writes them when its shard is written."""

    file: Path
    last: int
    """Stop before this layer."""
    record: dict[str, Any]
    """What the file holds."""
    number: int = -1
    parts: Seconds = field(default_factory=dict)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        if part == "load":
            self._begin_layer()
        own = self.record["outside"] if part in OUTSIDE else self.parts
        starts = {name: clock() for name, clock in CLOCKS.items()}
        yield
        taken = own.setdefault(part, dict.fromkeys(CLOCKS, 0.0))
        for name, clock in CLOCKS.items():
            taken[name] += clock() - starts[name]
        if part == "save":
            self.record["layers"][str(self.number)] = self.parts
        if part in ("save", "finish"):
            peak = max(self.record["peak_resident_gib"], peak_gib())
            write_json(self.file, self.record | {"peak_resident_gib": peak})

    def _begin_layer(self) -> None:
        self.number += 1
        if self.number == self.last:
            raise Enough
        self.parts = {}


def prune(source: Path, output: Path, num_tokens: int, last: int) -> None:
    """Prune a checkpoint up to layer ``last``, and write what the layers took to ``output``."""
    import torch
    from transformers import AutoConfig

    from benchmarks.harness.environment import environment
    from ptl_fast.baselines import SCORERS
    from ptl_fast.model.layers_on_disk import LayersOnDisk
    from ptl_fast.run import streamed
    from ptl_fast.scoring import gram

    config: LlamaConfig = AutoConfig.from_pretrained(source, trust_remote_code=False)
    file = output / MEASURED
    record = json.loads(file.read_text()) if file.exists() else {"layers": {}, "processes": 0}
    record.setdefault("peak_resident_gib", 0.0)
    record |= {"environment": environment("cpu"), "outside": {}}
    record["processes"] += 1
    work = MeasuredWork(
        scorer=SCORERS["reconstruction"],
        tokens=_tokens(config, num_tokens),
        batch_size=1,
        width=_kept(config),
        file=file,
        last=last,
        record=record,
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


def check(output: Path, config: Any, num_done: int) -> dict[str, Any]:
    """What the pruned folder holds.

    Raises AssertionError unless each tensor of the finished layers, and of the whole model if all
    are, has the shape that its config's model gives it, and the whole model's logits are finite.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ptl_fast.model.families import resize_config

    whole, pruned = num_done == config.num_hidden_layers, copy.deepcopy(config)
    resize_config(pruned, _kept(config), list(range(config.num_hidden_layers)))
    if whole:
        pruned = AutoConfig.from_pretrained(output, trust_remote_code=False)
        assert pruned.intermediate_size == _kept(config)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(pruned, trust_remote_code=False)
    stored = _stored_shapes(output)
    shapes = {name: list(each.shape) for name, each in empty.named_parameters()}
    done = [f"model.layers.{number}." for number in range(num_done)]
    wanted = {
        name: shape for name, shape in shapes.items() if whole or name.startswith(tuple(done))
    }
    # a process that was killed may have written one more layer than it has recorded
    assert {name: each for name, each in stored.items() if whole or name in wanted} == wanted
    num_parameters = sum(math.prod(shape) for shape in wanted.values())
    return {
        "width": pruned.intermediate_size,
        "parameters": num_parameters,
        "bytes": 2 * num_parameters,
        "logits": _logits(output, 2 * num_parameters) if whole else "not tried: layers are missing",
    }


def _stored_shapes(folder: Path) -> dict[str, list[int]]:
    """Of every tensor in the shards that are there."""
    from safetensors import safe_open

    shapes: dict[str, list[int]] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            names = tensors.keys()
            shapes |= {name: tensors.get_slice(name).get_shape() for name in names}
    return shapes


def _logits(output: Path, num_bytes: int) -> str:
    """Whether the model runs, where there is memory for it."""
    import torch
    from transformers import AutoModelForCausalLM

    from ptl_fast.base import memory

    left = memory.free("cpu")
    if left < num_bytes + memory.GIB:
        return f"not tried: {memory.in_words(left)} were free"
    model: Any = AutoModelForCausalLM.from_pretrained(output, dtype="auto", trust_remote_code=False)
    with torch.inference_mode():
        logits = model(input_ids=torch.arange(2, 10)[None]).logits
    assert logits.isfinite().all()
    return "finite, of 8 tokens"


def by_part(layer: Seconds) -> Seconds:
    """A layer's seconds; the Gram matrix is collected inside the forward pass, and taken out."""
    parts = {part: each for part, each in layer.items() if part != "forward"}
    forward, gram = layer["forward"], layer["gram"]
    return {**parts, "statistics": {name: forward[name] - gram[name] for name in CLOCKS}}


def means(layers: list[Seconds], clock: str) -> dict[str, float]:
    """The mean layer's seconds by part."""
    return {part: sum(each[part][clock] for each in layers) / len(layers) for part in layers[0]}


def extrapolated(record: Any, num_layers: int, num_tokens: int, tokens: int) -> dict[str, float]:
    """Processor seconds of all layers with so many tokens, by part.

    Statistics, Gram matrices and the embedding grow with the tokens; the rest is that of the mean
    layer, times the number of layers, and what is outside the layers as it was.
    """
    growth = tokens / num_tokens
    mean = means(list(map(by_part, record["layers"].values())), "processor")
    parts = {
        part: seconds * num_layers * (growth if part in BY_TOKEN else 1)
        for part, seconds in mean.items()
    }
    parts["embed"] = record["outside"]["embed"]["processor"] * growth
    if "finish" in record["outside"]:
        parts["finish"] = record["outside"]["finish"]["processor"]
    return {**parts, "total": sum(parts.values())}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement, its children included; what the result file holds."""
    from transformers import AutoConfig

    source, output = options.folder / "dense", options.folder / "pruned"
    if not (source / "model.safetensors.index.json").exists():
        make_checkpoint(SHAPES[options.shape], source)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if not options.go_on:
        shutil.rmtree(output, ignore_errors=True)
    num_layers = config.num_hidden_layers
    options.layers = min(options.layers or num_layers, num_layers)
    if len(_record(output)["layers"]) < options.layers:
        _child(options)
    record = _record(output)
    layers = list(map(by_part, record["layers"].values()))
    return {
        "environment": record["environment"],
        "shape": SHAPES[options.shape],
        "limit_gib": options.memory_gib,
        "limit": "RLIMIT_DATA",
        "tokens": options.tokens,
        "measured": {
            "layers_done": len(layers),
            "processes": record["processes"],
            "peak_resident_gib": record["peak_resident_gib"],
            "result": check(output, config, len(layers)),
            "outside": record["outside"],
            "mean_layer": {name: means(layers, name) for name in CLOCKS},
            "tokens_per_second_and_layer": {
                name: {part: options.tokens / means(layers, name)[part] for part in BY_TOKEN}
                for name in CLOCKS
            },
            "layers": layers,
        },
        "computed": {
            f"{tokens} tokens": extrapolated(record, num_layers, options.tokens, tokens)
            for tokens in (options.tokens, FULL_TOKENS)
        },
    }


def _record(output: Path) -> Any:
    file = output / MEASURED
    return json.loads(file.read_text()) if file.exists() else {"layers": {}}


def _child(options: argparse.Namespace) -> None:
    command = [sys.executable, "-m", __spec__.name, "--folder", options.folder, "--child"]
    command += ["--tokens", options.tokens, "--memory-gib", options.memory_gib]
    command += ["--layers", options.layers]
    subprocess.run(list(map(str, command)), check=True)


def child(options: argparse.Namespace) -> None:
    """Prune within the limit."""
    if options.memory_gib:
        limit_memory(int(options.memory_gib * 2**30))
    folder = options.folder
    prune(folder / "dense", folder / "pruned", options.tokens, options.layers)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="for 30 GB of checkpoints")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--memory-gib", type=float, default=6.0, help="0: no limit")
    parser.add_argument("--layers", type=int, default=0, help="stop behind so many; 0: all")
    parser.add_argument("--go-on", action="store_true", help="with what an earlier call has left")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
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
