"""How much goes, in which steps."""

import math
from dataclasses import dataclass, field
from typing import Literal

from ptl_fast.config.checking import check_at_least_one, check_at_most, former_default

MAX_ROUNDS = 1000


@dataclass(kw_only=True)
class PruneSettings:
    """How much goes, in which steps."""

    keep: float = 0.65
    """Fraction of FFN neurons that stay in each layer at the end, in (0, 1]; of a mixture of
    experts, in each expert. With 1 and no dropped layers, the model is only trained."""

    neurons_per_round: int | None = None
    """FFN neurons removed from each layer in a round; the number of rounds follows."""

    threshold: float | None = None
    """Eq. 3: remove only neurons that score at most this, the same number in every layer (as many
    as the layer with the fewest has, down to a multiple of --width-multiple), and never below
    --keep. Scores are per token: for activation and output-change the root mean square over tokens,
    which is Eq. 4's norm divided by the square root of the number of tokens, so that a threshold
    does not depend on the corpus's size, and so for wanda. The other scores are taken as they are;
    random and reference have none. A round that finds nothing to remove does not train."""

    rounds: int | None = None
    """Rounds in which neurons are removed (default: 5, or fewer where --width-multiple allows fewer
    steps).
    """

    steps: Literal["proportional", "equal"] = "proportional"
    """How large the --rounds are: proportional removes the same fraction of what is left in each,
    equal (as --neurons-per-round does) the same number of neurons, so that the last round removes
    the largest fraction."""

    drop_layers: int = 0
    """Whole decoder layers to remove. Nothing of the FFN need be known for it: with --keep 1, any
    decoder's layers can go."""

    layers: str | None = None
    """The decoder layers to remove by their numbers in the original model, such as 3,7,8 (the first
    is 0), instead of --drop-layers and a --layer-scorer. They go in this order, --layers-per-round
    at a time."""

    # runs that began before this could be set dropped layers by their scores alone
    keep_attention_pattern: bool = field(default=True, metadata=former_default(False))
    """When layers go, choose those without which the kinds of attention still follow the model
    type's own pattern (Gemma 2: sliding and full in turn; Gemma 3: every sixth full), since not
    every engine reads a config's layer_types. With few layers a round little is left to choose:
    give --layers-per-round the pattern's period. Does not hold for --layers."""

    layers_per_round: int = 1
    """Decoder layers removed in one round."""

    keep_experts: float = 1.0
    """Of a mixture of experts, the fraction of the experts that the router chooses from which stays
    in each layer, in (0, 1]: whole experts go, with their rows of the router, by --expert-scorer. A
    token still goes to as many as before. Shared experts stay. Expert rounds come before all
    others; with --keep 1, the experts that stay keep all their neurons."""

    experts_per_round: int | None = None
    """Experts removed from each layer in one round (default: all that go, in one round)."""

    slice_hidden: float | None = None
    """The SliceGPT baseline instead of neurons and layers: fraction of the residual stream's
    dimensions that stays, in (0, 1), rounded to a multiple of 8. One round; --keep is then 1, and
    neither --keep below 1 nor --drop-layers goes with it. The result loads after ``import
    ptl_fast.slicegpt``."""

    order: Literal["neurons-then-layers", "layers-then-neurons", "alternate"] = (
        "neurons-then-layers"
    )
    """Which rounds come first."""

    compensate: bool = True
    """When neurons go, change the down projection's columns of those that stay so that the layer's
    output on --calibration-tokens changes least (least squares). The checkpoint stays an ordinary
    one. Costs what --scorer reconstruction costs, and with it no further pass where its matrices
    fit."""

    compensate_inputs: Literal["original", "pruned"] = "original"
    """What --compensate fits each layer on: original, its own output on the inputs that it has in
    the model before the round; or pruned, layer by layer on the inputs that the pruned layers
    before it give, so that the residual stream after it is as near as can be to the original's.
    The latter costs three further passes over --calibration-tokens, whose hidden states are kept in
    memory."""

    # runs that began before this could be set dropped layers and did no more
    compensate_layers: bool = field(default=True, metadata=former_default(False))
    """When layers go, fold what they did into the down projection of the layer before them, so that
    the residual stream on --calibration-tokens is as near as can be to what it was after them
    (least squares). The checkpoint stays an ordinary one. Costs a further pass over these tokens.
    Layers that go from the model's start are not compensated, nor are those of models that
    normalise the FFN's output before adding it, such as Gemma2. Where several blocks of layers go
    in one round, each is fitted to the model before any of them went."""

    width_multiple: int | Literal["auto"] = 128
    """FFN widths are rounded to a multiple of this. auto is 128 on a GPU, whose tensor cores work
    in tiles of 128, and is measured on a CPU (kept in the run's width_multiple.json). For tensor
    parallelism, give 128 times the GPUs that share the FFN."""

    @property
    def fits_in_order(self) -> bool:
        """Whether layers are compensated one after the other."""
        return self.compensate_inputs == "pruned"

    @property
    def named_layers(self) -> list[int]:
        """--layers, as numbers."""
        return [int(number) for number in self.layers.split(",")] if self.layers else []

    @property
    def num_dropped_layers(self) -> int:
        """How many layers go in all."""
        return len(self.named_layers) or self.drop_layers

    def check(self) -> None:
        """Raise ValueError for a setting that no model could satisfy."""
        if not 0 < self.keep <= 1:
            raise ValueError(
                f"--keep {self.keep} is outside (0, 1]; it is the fraction of FFN neurons that"
                " stay, for example 0.65"
            )
        names = (
            "neurons_per_round",
            "rounds",
            "layers_per_round",
            "experts_per_round",
            "width_multiple",
        )
        check_at_least_one(self, names)
        check_at_most(
            self, "rounds", MAX_ROUNDS, "and each has an evaluation and weights of its own"
        )
        if not 0 < self.keep_experts <= 1:
            raise ValueError(
                f"--keep-experts {self.keep_experts} is outside (0, 1]; it is the fraction of"
                " experts that stay in each layer, for example 0.5"
            )
        if self.experts_per_round is not None and self.keep_experts == 1:
            raise ValueError(
                f"--experts-per-round {self.experts_per_round} is about the experts that"
                " --keep-experts removes; give that too"
            )
        if self.drop_layers < 0:
            raise ValueError(f"--drop-layers {self.drop_layers} must be at least 0")
        if self.fits_in_order and not self.compensate:
            raise ValueError(
                "--compensate-inputs pruned says on what --compensate fits, which is off; leave it"
                " out, or add --compensate"
            )
        if self.layers is not None:
            self._check_layers(self.layers)
        if self.slice_hidden is not None:
            self._check_slicing(self.slice_hidden)
        if self.threshold is not None:
            self._check_threshold(self.threshold)

    def _check_layers(self, layers: str) -> None:
        numbers = layers.split(",")
        if not all(number.strip().isdigit() for number in numbers):
            raise ValueError(f"--layers {layers} must be numbers with commas, such as 3,7,8")
        if len(set(self.named_layers)) < len(numbers):
            raise ValueError(f"--layers {layers} names a layer twice")
        if self.drop_layers not in (0, len(numbers)):
            raise ValueError(
                f"--layers {layers} names {len(numbers)} layers, and --drop-layers is"
                f" {self.drop_layers}; leave --drop-layers out"
            )

    def _check_slicing(self, share: float) -> None:
        if not 0 < share < 1:
            raise ValueError(
                f"--slice-hidden {share} is outside (0, 1); it is the fraction of dimensions that"
                " stay, for example 0.75"
            )
        removes_more = self.keep < 1 or self.num_dropped_layers or self.neurons_per_round
        removes_more = removes_more or self.keep_experts < 1
        if removes_more or (self.rounds or 1) > 1:
            raise ValueError(
                "--slice-hidden is one round that removes nothing else: it does not go with --keep"
                " below 1, --keep-experts, --drop-layers, --neurons-per-round or several --rounds;"
                " leave them out"
            )

    def _check_threshold(self, threshold: float) -> None:
        if not 0 <= threshold < math.inf:
            raise ValueError(f"--threshold {threshold} must be a number that is at least 0")
        if self.neurons_per_round is not None:
            raise ValueError(
                "--threshold decides how many neurons go, and so does --neurons-per-round; give"
                " one of the two"
            )
        if self.keep == 1:
            raise ValueError(
                "--threshold removes neurons and --keep 1 forbids it; lower --keep, the least that"
                " may stay"
            )
