"""Solve the goals (--target-params, ...) into --keep and --drop-layers, from the config alone.

The widest FFN that reaches all goals is taken, as a multiple of --width-multiple; only where even
the narrowest does not, layers go as well, as few as possible. The solution depends on nothing but
the settings and the config, so a resumed run finds the same.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ptl_fast.base import console, markdown
from ptl_fast.config.checking import flag
from ptl_fast.model import flops
from ptl_fast.model.serving import Peaks, Serving, Work
from ptl_fast.model.widths import ffn_width
from ptl_fast.pruning.schedule import Round
from ptl_fast.run import layers_left
from ptl_fast.run.gpus import device_peaks
from ptl_fast.run.tables import show_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ptl_fast.config.config import Config
    from ptl_fast.config.goal import GoalSettings

# Goals alone take no more: an eighth of the neurons is the least whose quality was measured here
# (docs/paper.md), and models that lose half of their layers are others.
NARROWEST, FEWEST_LAYERS = 1 / 8, 1 / 2
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Something that goals bound, and that the table shows of every model."""

    name: Callable[["GoalSettings"], str]
    """The table's row."""
    of: "Callable[[Serving, Config], float]"
    """Its value for a model; less is better."""
    limit: Callable[["GoalSettings", float], float]
    """The largest value that reaches the goal, from the settings and the original's value."""
    write: Callable[[float, float], str]
    """A model's value, beside the original's, for readers."""


def _params_limit(goal: "GoalSettings", original: float) -> float:
    share, number = goal.params
    return share * original if share is not None else number or 0


def _seconds(model: Serving, config: "Config") -> float:
    goal = config.goal
    work = Work(
        batch=goal.target_batch, prompt=goal.target_prompt, new_tokens=goal.target_new_tokens
    )
    return model.seconds(work, peaks(goal))


def peaks(goal: "GoalSettings") -> Peaks:
    """What --target-device reaches."""
    tflops, bandwidth = device_peaks("--target-device", goal.target_device)
    return Peaks(flops=tflops * 1e12, bytes=bandwidth * 1e9)


MEASURES = {
    "target_params": Measure(
        name=lambda goal: "parameters",
        of=lambda model, config: model.weights.num_parameters,
        limit=_params_limit,
        write=lambda value, original: f"{value:,.0f} ({value / original:.1%})",
    ),
    "target_flops": Measure(
        name=lambda goal: "FLOPs per token",
        of=lambda model, config: model.flops_per_token(config.data.sequence_length // 2),
        limit=lambda goal, original: (goal.target_flops or 0) * original,
        write=lambda value, original: f"{value:.4g} ({value / original:.1%})",
    ),
    "target_size_on_disk": Measure(
        name=lambda goal: "weights on disk",
        of=lambda model, config: model.file_bytes,
        limit=lambda goal, original: goal.num_bytes("target_size_on_disk"),
        write=lambda value, original: show_bytes(value),
    ),
    "target_memory": Measure(
        name=lambda goal: f"memory, {goal.target_batch} x {goal.target_context} tokens",
        of=lambda model, config: model.memory_bytes(
            config.goal.target_batch, config.goal.target_context
        ),
        limit=lambda goal, original: goal.num_bytes("target_memory"),
        write=lambda value, original: show_bytes(value),
    ),
    "target_speedup": Measure(
        name=lambda goal: (
            f"speed, {goal.target_batch} x {goal.target_prompt} + {goal.target_new_tokens},"
            f" {goal.target_device}"
        ),
        of=_seconds,
        limit=lambda goal, original: original / (goal.target_speedup or 1),
        write=lambda value, original: f"{original / value:.2f} x",
    ),
}
"""{goal: what it bounds}"""


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Sizes that reach the goals."""

    width: int
    num_layers: int


def solved(
    config: "Config", original: "PretrainedConfig", multiple: int
) -> "tuple[Config, str | None]":
    """The settings with --keep and --drop-layers that reach the goals, and the table that says so.

    Without goals, the settings as they are and None.

    Args:
        original: the original model's config.
        multiple: of which widths are multiples; --width-multiple, or what auto is.

    Raises:
        ValueError: the original reaches them already, or no size does; says how they could.
    """
    if not config.goal.given:
        return config, None
    problem = Problem(config, original, multiple)
    solution = problem.solve()
    full = problem.full
    changes: dict[str, Any] = {"keep": solution.width / full.width if full.width else 1.0}
    if not config.prune.num_dropped_layers:
        changes["drop_layers"] = full.num_layers - solution.num_layers
    return config.changed(**changes), problem.table(solution)


class Problem:
    """The goals of a run, and the sizes that a model of its kind can have."""

    def __init__(self, config: "Config", original: "PretrainedConfig", multiple: int) -> None:
        self.config, self.original, self.multiple = config, original, multiple
        self.full = Solution(width=ffn_width(original), num_layers=original.num_hidden_layers)
        self.item_bytes = item_bytes(config, original)
        # counting builds the model on the meta device for types without a formula
        self.serving = functools.cache(self._serving)
        self.limits = {
            name: MEASURES[name].limit(config.goal, self.value(name, self.full))
            for name in config.goal.given
        }

    def _serving(self, size: Solution) -> Serving:
        smaller = self.original
        if size != self.full:
            step = Round(number=1, kind="layers", recovery_share=1.0, **vars(size))
            kept = layers_left.planned(self.config.prune, self.original, step)
            smaller = flops.resized(self.original, size.width, kept)
        return Serving(smaller, self.item_bytes)

    def value(self, name: str, size: Solution) -> float:
        """What a goal bounds, for a model of this size."""
        return MEASURES[name].of(self.serving(size), self.config)

    def reaches(self, size: Solution) -> bool:
        """Whether a model of this size reaches every goal."""
        return all(self.value(name, size) <= limit for name, limit in self.limits.items())

    def solve(self) -> Solution:
        """The sizes that reach all goals."""
        prune = self.config.prune
        fixed = self.full.num_layers - prune.num_dropped_layers
        if fixed < 1:
            return self.full  # the schedule says that so many layers cannot go
        if self.reaches(self.full):
            raise ValueError(f"{self._told()}: the model reaches that as it is; ask for less")
        widths = self._widths()
        fewest = fixed if prune.num_dropped_layers else -(-self.full.num_layers // 2)
        layers = range(fixed, max(1, fewest) - 1, -1)
        narrowest = [Solution(width=widths[-1], num_layers=number) for number in layers]
        enough = _first(narrowest, self.reaches)
        if enough is None:
            raise ValueError(self._unreachable(narrowest[-1]))
        sizes = [Solution(width=width, num_layers=enough.num_layers) for width in widths]
        found = _first(sizes, self.reaches)
        assert found is not None
        return found

    def _widths(self) -> list[int]:
        """The widths that may be left, descending: multiples, and the original's own."""
        full, multiple = self.full.width, self.multiple
        # --keep 1, and models whose config tells no width: layers alone
        if self.config.prune.keep == 1 or not full:
            return [full]
        least = max(1, -(-int(full * NARROWEST) // multiple)) * multiple
        smaller = list(range(least, full, multiple))
        return [full, *reversed(smaller)]

    def _told(self) -> str:
        return " and ".join(
            f"{flag(name)} {getattr(self.config.goal, name)}" for name in self.limits
        )

    def _unreachable(self, smallest: Solution) -> str:
        missed = [name for name in self.limits if self.value(name, smallest) > self.limits[name]]
        reached = ", ".join(
            f"{flag(name)} "
            + MEASURES[name].write(self.value(name, smallest), self.value(name, self.full))
            for name in missed
        )
        full = self.full
        return (
            f"{self._told()} cannot be reached: {smallest.width:,} of {full.width:,} neurons in"
            f" {smallest.num_layers} of {full.num_layers} layers, the least that goals leave, come"
            f" to {reached}. Ask for no less than that, begin with a smaller model, or give --keep"
            " and --drop-layers yourself"
        )

    def table(self, solution: Solution) -> str:
        """What the solution is, and what it comes to, before anything runs."""
        goal, rows = self.config.goal, [["", "original", "goal", "planned"]]
        for name, measure in MEASURES.items():
            before, after = self.value(name, self.full), self.value(name, solution)
            asked = str(getattr(goal, name)) if name in self.limits else ""
            own = "" if name == "target_speedup" else measure.write(before, before).split(" (")[0]
            rows.append([measure.name(goal), own, asked, measure.write(after, before)])
        width, full = solution.width, self.full
        told = f"--keep {width / full.width:.6g}" if full.width else "--keep 1"
        told += f" ({width:,} of {full.width:,} neurons a layer, a multiple of {self.multiple})"
        if gone := full.num_layers - solution.num_layers:
            told += f" and --drop-layers {gone} (of {full.num_layers})"
            if not self.config.prune.num_dropped_layers and width < full.width:
                told += (
                    f": width alone does not reach it, down to {NARROWEST:.3g} of the neurons, the"
                    " least that goals leave"
                )
        table, columns = markdown.table(rows), console.columns()
        shown = table if columns is None else markdown.fitted(table, columns)
        return (
            f"{shown}\n\nSolved from the goals: {told}. Weights of"
            f" {self.item_bytes} bytes each; speed is a prediction from FLOPs and bytes, not"
            " measured."
        )


def item_bytes(config: "Config", original: Any) -> int:
    """Bytes of a saved weight: --save-dtype's, or the narrower of the original's and --dtype's.

    The device does not matter, so that a plan made elsewhere holds.
    """
    settings = config.model
    if settings.save_dtype in ITEM_BYTES:
        return ITEM_BYTES[settings.save_dtype]
    said = getattr(original, "dtype", None) or getattr(original, "torch_dtype", None)
    # configs that presets ship say none, and those models are bfloat16; without a word of it,
    # transformers loads float32
    usual = 2 if type(original).__name__ == "SimpleNamespace" else 4
    own = ITEM_BYTES.get(str(said).removeprefix("torch."), usual)
    return min(own, ITEM_BYTES.get(settings.dtype, own))


def _first(sizes: list[Solution], reaches: Callable[[Solution], bool]) -> Solution | None:
    """The first of sizes that get smaller which reaches the goals; None if none does."""
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(sizes[middle]) else (middle + 1, high)
    return sizes[low] if low < len(sizes) else None
