"""Score, compensate and compact a model's FFNs layer by layer, with one layer in memory at a time.

The model's weights stay on disk (``model.layers_on_disk``), and every layer is read once. With it
in memory, what the layers before it have made of the calibration tokens (``scoring.one_layer``)
gives its statistics, its Gram matrix and the hidden states behind it; its neurons are chosen, the
others' columns are fitted, and what is left is written as a shard of the pruned checkpoint. All
layers have one width, which the schedule gives, so a layer's choice needs no other layer. The same
functions do this as for a model in memory, in the same order, so the same neurons go.

Memory: first the token embedding, then one layer, its Gram matrix and ``eliminate``'s
copy of it, and the hidden states of all tokens twice, or in files where they exceed STATES_BYTES.

A layer's shard says that it is done: a run that was killed goes through the finished layers again
for the hidden states alone, without Gram matrices, and to the same weights.

Several ranks read each layer from the same folder, and divide the calibration tokens: each keeps
the hidden states of its own. The main rank decides what goes, and writes.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from ptl_fast.base import distributed
from ptl_fast.base.progress import progress
from ptl_fast.base.run_files import StreamedFolder
from ptl_fast.base.stored import TensorFile
from ptl_fast.config.score import RIDGE
from ptl_fast.model.families import down_projections, feed_forwards, resize_config
from ptl_fast.model.layers_on_disk import LayersOnDisk
from ptl_fast.pruning.compact import compact_neurons_
from ptl_fast.pruning.compensate import compensate_
from ptl_fast.pruning.plan import keep_highest
from ptl_fast.run.pruning_memory import STATES_BYTES
from ptl_fast.scoring import ridge, statistics
from ptl_fast.scoring.evidence import Evidence, Scorer
from ptl_fast.scoring.gram import GramMatrices
from ptl_fast.scoring.one_layer import OneLayer, walking

if TYPE_CHECKING:
    from ptl_fast.data.packing import PackedTokens

# files beside a model's weights that belong to the model and name no width
COMPANIONS = ("generation_config.json", "tokenizer.json", "tokenizer_config.json")


class Choice(NamedTuple):
    """What was decided in one layer."""

    kept_K: Tensor
    """Indices of the neurons that stay, ascending, int64."""
    scores_I: Tensor
    """fp64."""
    statistics: statistics.Statistics
    """Of this one layer."""
    ridge: ridge.Choice | None
    """None where it was given."""


def measured(choices: Sequence[Choice]) -> dict[str, Tensor]:
    """The statistics, ridges and scores of all layers, by their names in a round's
    statistics.safetensors.
    """
    layers = [choice.statistics.tensors() for choice in choices]
    # the tokens are those of every layer; they have no dimension
    together = {
        name: torch.cat([layer[name] for layer in layers]) if tensor.ndim else tensor
        for name, tensor in layers[0].items()
    }
    ridges = {number: each.ridge for number, each in enumerate(choices) if each.ridge is not None}
    scores_LI = torch.stack([choice.scores_I for choice in choices])
    return {**together, **ridge.tensors(ridges), "scores": scores_LI}


@dataclass(kw_only=True)
class StreamedWork:
    """What is done to every layer."""

    scorer: Scorer
    tokens: "PackedTokens"
    """The calibration corpus."""
    batch_size: int
    """Packed sequences per batch."""
    width: int
    """Neurons that stay in each layer."""
    compensate: bool = True
    ridge: float | None = RIDGE
    """As for ``GramMatrices``."""
    extra: "frozenset[statistics.Extra]" = statistics.NOTHING
    """Statistics that are kept beside those that the scorer needs."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock time of each part: embed; of all layers load, forward, score, compensate, compact
    and save; finish, which writes what is outside the layers.
    """

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time inside to a part's."""
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


def check_scorer(name: str, scorer: Scorer) -> None:
    """Raise ValueError for a scorer that needs more of the model than one layer."""
    if not scorer.is_by_layer:
        raise ValueError(
            f"scorer {name} needs the whole model, and only one layer is in memory; use"
            " reconstruction, output-change, activation, fluctuation or magnitude"
        )


@torch.no_grad()
def prune_layers(
    source: LayersOnDisk, work: StreamedWork, folder: Path, dtype: torch.dtype
) -> list[Choice]:
    """Write the pruned checkpoint into a folder, which may hold some of its layers already.

    The folder is a ``StreamedFolder``: a checkpoint once it has its index, which is written last. A
    layer that is damaged is made again. ``source`` is of no use afterwards.

    Args:
        dtype: of the saved weights.
    """
    files = StreamedFolder(folder)
    files.index.remove()
    folder.mkdir(parents=True, exist_ok=True)
    choices = []
    with ExitStack() as stack:
        with source.layer(0) as first, work.timed("embed"):
            states = stack.enter_context(_states(source, work.tokens, files))
            model, family, texts = source.model, source.family, [work.tokens]
            walk = walking(model, family, texts, work.batch_size, first, states)
            view = stack.enter_context(walk)
            source.forget_embedding()
        for number in progress(range(source.num_layers), "prune layer by layer"):
            with source.layer(number, work.timed) as layer, view.at(layer):
                choices.append(_layer(source, view, number, work, files, dtype))
    with work.timed("finish"):
        _finish(source, files, work.width, dtype)
    return choices


@contextmanager
def _states(
    source: LayersOnDisk, tokens: "PackedTokens", files: StreamedFolder
) -> Iterator[Path | None]:
    """A folder for this rank's hidden states, for as long as they are needed; None: they are in
    memory.
    """
    width, num_ranks = source.model.config.hidden_size, distributed.world_size()
    num_bytes = 2 * tokens.input_ids.numel() * width * source.dtype.itemsize / num_ranks
    if num_bytes <= STATES_BYTES:
        yield None
        return
    # of a walk that was killed, by whatever ranks: all are computed again
    if distributed.is_main():
        shutil.rmtree(files.states, ignore_errors=True)
    distributed.barrier()
    own = files.states / str(distributed.rank())
    own.mkdir(parents=True)
    try:
        yield own
    finally:
        shutil.rmtree(own)
        # the last rank's; the others' are not empty yet
        with suppress(OSError):
            files.states.rmdir()


def _layer(
    source: LayersOnDisk,
    view: OneLayer,
    number: int,
    work: StreamedWork,
    files: StreamedFolder,
    dtype: torch.dtype,
) -> Choice:
    """Prune one layer and write its shard, unless it is there."""
    shard, file = files.shard(number, _num_shards(source)), files.choice(number)
    done = shard.exists() and file.exists()
    grams = (
        _grams(view, work) if not done and (work.scorer.reads_grams or work.compensate) else None
    )
    with work.timed("forward"):
        taken = _statistics(view, number, work, grams)
    if done:
        decided = distributed.agree(file.read())
        chosen = ridge.Choice(*decided["ridge"].tolist()) if "ridge" in decided else None
        return Choice(decided["kept_K"], decided["scores_I"], taken, chosen)
    with work.timed("score"):
        evidence = Evidence(statistics=taken, model=view, family=view.family, seed=0, grams=grams)  # type: ignore[arg-type]
        # the main rank's: floating-point sums may differ between ranks
        found = distributed.agree(work.scorer.compute(evidence))
    chosen = None if grams is None else grams.choices.get(0)
    choice = Choice(keep_highest(found, work.width)[0], found[0], taken, chosen)
    with work.timed("compensate"):
        if work.compensate:
            assert grams is not None
            downs = down_projections(view, view.family)  # type: ignore[arg-type]
            compensate_(downs, grams, [choice.kept_K.tolist()], grams.means)
    with work.timed("compact"):
        compact_neurons_(feed_forwards(view, view.family), choice.kept_K[None])  # type: ignore[arg-type]
    with work.timed("save"):
        file.write(_decided(choice))
        prefix = f"{source.prefix}{number}"
        _write(shard, dict(view.layers[0].named_parameters(prefix)), dtype)
    return choice


def _decided(choice: Choice) -> dict[str, Tensor]:
    """What a layer's file says; the statistics follow from the pass that every walk makes."""
    decided = {"kept_K": choice.kept_K, "scores_I": choice.scores_I}
    if choice.ridge is not None:
        decided["ridge"] = torch.tensor(choice.ridge, dtype=torch.float64)
    return decided


def _grams(view: OneLayer, work: StreamedWork) -> GramMatrices:
    return GramMatrices(view, view.family, work.tokens, work.batch_size, ridge=work.ridge)  # type: ignore[arg-type]


def _statistics(
    view: OneLayer, number: int, work: StreamedWork, grams: GramMatrices | None
) -> statistics.Statistics:
    """The layer's statistics; its Gram matrix comes from the same pass.

    Raises:
        ValueError: an activation is NaN or infinite; names the layer.
    """
    try:
        return statistics.collect(
            view,  # type: ignore[arg-type]
            view.family,
            work.tokens,
            work.batch_size,
            f"layer {number}",
            work.scorer.needs | work.extra,
            grams,
        )
    except ValueError as error:
        # the view has one layer, its own number 0
        raise ValueError(str(error).replace("layer 0's", f"layer {number}'s")) from error


def _finish(source: LayersOnDisk, files: StreamedFolder, width: int, dtype: torch.dtype) -> None:
    """Write what is outside the layers, one tensor at a time, the config, and then the index."""
    total = _num_shards(source)
    for index, name in enumerate(source.others(), source.num_layers):
        shard = files.shard(index, total)
        if not shard.exists():
            _write(shard, {name: source.stored.read(name)}, dtype)
    config = source.model.config
    resize_config(config, width, list(range(source.num_layers)))
    config.dtype = dtype
    if distributed.is_main():
        config.save_pretrained(files.path)
        for name in COMPANIONS:
            if (source.folder / name).is_file():
                shutil.copyfile(source.folder / name, files.path / name)
    files.index.write(distributed.agree(_index(files, total) if distributed.is_main() else None))


def _index(files: StreamedFolder, total: int) -> dict[str, Any]:
    """Which tensor is in which shard, in the form that transformers reads."""
    weight_map: dict[str, str] = {}
    num_bytes = 0
    for index in range(total):
        path = files.shard(index, total).path
        with safe_open(path, framework="pt") as tensors:
            weight_map |= dict.fromkeys(tensors.keys(), path.name)
        num_bytes += path.stat().st_size
    return {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}


def _num_shards(source: LayersOnDisk) -> int:
    """One for each layer, and one for each tensor outside them."""
    return source.num_layers + len(source.others())


def _write(shard: TensorFile, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Write weights as transformers does, in a type."""
    typed = {name: tensor.detach().to("cpu", dtype) for name, tensor in tensors.items()}
    shard.write(typed, {"format": "pt"})
