"""Runs that prune the same model on the same tokens calibrate once: the sizes of one method differ
in how many neurons go, not in what is measured, nor in the order of elimination, and methods read
different statistics of the same activations.

What a run computes is what it computes alone, bit for bit; statistics, Gram matrices and the prices
of neurons are kept in memory from the run before, where that had the same weights, tokens and
arguments. A pass without Gram matrices or gradients takes every other statistic, whatever was asked
for, so that the next method needs none.
"""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock
from weakref import WeakKeyDictionary

import torch
import xxhash

from ptl_fast.scoring import reconstruction, statistics
from ptl_fast.scoring.gram import GramMatrices
from ptl_fast.scoring.statistics import BACKWARD, NOTHING, Extra, Statistics

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# what a GramMatrices object has once all layers' matrices are finished
FINISHED = ("taken", "choices", "means", "num_rows", "at_once")
MOST_STATISTICS = 16  # small beside the Gram matrices, of which there is one set
# what a forward pass can take besides, and the fields that it fills
FORWARD: dict[Extra, tuple[str, ...]] = {
    "sums": ("sum_LI", "absolute_LI", "maximum_LI"),
    "angles": ("angle_L",),
    "documents": ("document_LI", "num_documents"),
}


@dataclass
class Solved:
    """A pass with Gram matrices, and the elimination behind it."""

    key: str
    statistics: Statistics
    grams: dict[str, Any]
    """The values of FINISHED."""
    prices: torch.Tensor


@contextmanager
def one_calibration() -> Iterator[None]:
    """Inside, a run takes over what an earlier one has measured in the same way.

    Gram matrices stay in memory, width² x 8 bytes a layer, until others replace them.
    """
    collect, with_grams = statistics.collect, statistics.collect_with_grams
    prices = reconstruction.prices
    measured: dict[str, Statistics] = {}
    solved: list[Solved] = []
    begun: WeakKeyDictionary[GramMatrices, tuple[str, Statistics]] = WeakKeyDictionary()

    def collect_once(
        model: "PreTrainedModel",
        family: Any,
        tokens: Any,
        batch_size: int,
        description: str = "calibrate",
        extra: frozenset[Extra] = NOTHING,
        grams: GramMatrices | None = None,
    ) -> Statistics:
        if grams is not None:
            return collect(model, family, tokens, batch_size, description, extra, grams)
        taken = extra if BACKWARD & extra else frozenset(FORWARD)
        key = _key(model, (tokens, batch_size, taken))
        if key not in measured:
            measured[key] = collect(model, family, tokens, batch_size, description, taken)
            for oldest in list(measured)[:-MOST_STATISTICS]:
                del measured[oldest]
        found = copy.deepcopy(measured[key])
        for unasked in taken - extra:
            for name in FORWARD[unasked]:
                setattr(found, name, None)
        return found

    def with_grams_once(
        model: "PreTrainedModel", family: Any, tokens: Any, batch_size: int, *given: Any
    ) -> tuple[Statistics, GramMatrices]:
        key = _key(model, (tokens, batch_size, *given))
        for each in solved:
            if each.key == key:
                # protected text and ridge are the last three arguments
                found = GramMatrices(model, family, tokens, batch_size, *given[2:])
                vars(found).update(each.grams)
                begun[found] = key, each.statistics
                return copy.deepcopy(each.statistics), found
        taken, found = with_grams(model, family, tokens, batch_size, *given)
        begun[found] = key, copy.deepcopy(taken)
        return taken, found

    def prices_once(grams: GramMatrices) -> torch.Tensor:
        key, taken = begun.get(grams, ("", None))
        for each in solved:
            if each.key == key:
                return each.prices.clone()
        found = prices(grams)
        # where they do not fit, a pass has a group of them only
        if taken is not None and len(grams.taken) == len(grams.downs):
            kept = {name: getattr(grams, name) for name in FINISHED}
            solved[:] = [Solved(key, taken, kept, found.clone())]
        return found

    with (
        mock.patch.object(statistics, "collect", collect_once),
        mock.patch.object(statistics, "collect_with_grams", with_grams_once),
        mock.patch.object(reconstruction, "prices", prices_once),
    ):
        yield


def _key(model: "PreTrainedModel", given: tuple[Any, ...]) -> str:
    """A digest of the weights and of the arguments of a pass."""
    digest = xxhash.xxh3_128()
    for name, weight in model.state_dict().items():
        digest.update(name.encode())
        _add(digest, weight)
    for each in given:
        _add(digest, each)
    return digest.hexdigest()


def _add(digest: "xxhash.xxh3_128", value: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for name in (each.name for each in dataclasses.fields(value)):
            _add(digest, getattr(value, name))
    elif isinstance(value, frozenset):
        digest.update(repr(sorted(value)).encode())
    else:
        digest.update(repr(value).encode())
