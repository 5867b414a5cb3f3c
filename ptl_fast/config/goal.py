"""What the result must reach, from which the run's sizes are solved."""

import math
from dataclasses import dataclass, field

from ptl_fast.config.checking import FREE, check_at_least_one
from ptl_fast.config.numbers import as_bytes, as_count, as_share

# What is solved from the goals (--keep, --drop-layers) decides the result, and is kept in
# state.json; how it was asked for does not.


@dataclass(kw_only=True)
class GoalSettings:
    """Goals: what the result must reach. They are solved into --keep and, where that alone does not
    suffice, --drop-layers; a table says so before anything runs. Several hold together.
    """

    target_params: str | float | None = field(default=None, metadata=FREE)
    """At most so many parameters: 5B, or a share of the original's: 65%."""

    target_flops: float | None = field(default=None, metadata=FREE)
    """At most this share of the original's FLOPs per token of a text of --sequence-length, such as
    0.55 or 55%."""

    target_size_on_disk: str | int | None = field(default=None, metadata=FREE)
    """At most so many bytes of weights in the type that is saved, such as 600MB or 2GiB. Tokenizer
    files come on top."""

    target_memory: str | int | None = field(default=None, metadata=FREE)
    """At most so many bytes, such as 12GiB, for the weights in the type that is saved and the KV
    cache of --target-batch sequences of --target-context tokens. An engine needs some more."""

    target_context: int = field(default=4096, metadata=FREE)
    """With --target-memory: tokens of a sequence in the KV cache."""

    target_batch: int = field(default=1, metadata=FREE)
    """With --target-memory and --target-speedup: sequences at once."""

    target_speedup: float | None = field(default=None, metadata=FREE)
    """At least so many times as fast, by prediction, at answering --target-batch prompts of
    --target-prompt tokens with --target-new-tokens on --target-device: 1.5. The prediction is a
    roofline: each pass takes its FLOPs at the device's peak or its bytes at the peak of its memory,
    whichever is longer."""

    target_prompt: int = field(default=512, metadata=FREE)
    """With --target-speedup: tokens of a prompt."""

    target_new_tokens: int = field(default=128, metadata=FREE)
    """With --target-speedup: tokens of an answer."""

    target_device: str = field(default="A100-80GB", metadata=FREE)
    """With --target-speedup: a GPU that --dry-run-gpus knows, or any device by its own peaks,
    TFLOPS/GBS: 0.5/40 is a CPU of 0.5 TFLOP/s and 40 GB/s."""

    @property
    def given(self) -> list[str]:
        """The goals that are set, as settings."""
        return [name for name in TARGETS if getattr(self, name) is not None]

    @property
    def params(self) -> tuple[float | None, int | None]:
        """--target-params as (share of the original's, number); one of them is None.

        Raises:
            ValueError: it is neither.
        """
        value = self.target_params
        number = _number(value) if isinstance(value, str) else value
        if number is None or not 0 < number < math.inf:
            raise ValueError(
                f"--target-params {value} is no number of parameters, such as 5B, and no share of"
                " the original's, such as 65%"
            )
        return (float(number), None) if number < 1 else (None, int(number))

    def num_bytes(self, name: str) -> int:
        """--target-size-on-disk or --target-memory in bytes; ValueError if it is no size."""
        value = getattr(self, name)
        number = as_bytes(value) if isinstance(value, str) else value
        if number is None or number <= 0:
            raise ValueError(
                f"--{name.replace('_', '-')} {value} is no size; write 600MB (10^6 bytes) or 12GiB"
                " (2^30)"
            )
        return number

    def check(self) -> None:
        """Raise ValueError for a goal that no model could have."""
        sizes = "target_context target_batch target_prompt target_new_tokens"
        check_at_least_one(self, sizes.split())
        if self.target_params is not None:
            assert self.params  # raises for what it cannot parse
        for name in ("target_size_on_disk", "target_memory"):
            if getattr(self, name) is not None:
                self.num_bytes(name)
        if self.target_flops is not None and not 0 < self.target_flops < 1:
            raise ValueError(
                f"--target-flops {self.target_flops} is outside (0, 1); it is the share of the"
                " original's FLOPs per token, such as 0.55 or 55%"
            )
        if self.target_speedup is not None and not 1 < self.target_speedup < 1000:
            raise ValueError(
                f"--target-speedup {self.target_speedup} is outside (1, 1000); 1.5 is half as fast"
                " again"
            )


def _number(text: str) -> float | None:
    """5B, 65% or 0.65; None for other texts."""
    for read in (as_count, as_share):
        if (number := read(text)) is not None:
            return number
    try:
        return float(text)
    except ValueError:
        return None


TARGETS = (
    "target_params",
    "target_flops",
    "target_size_on_disk",
    "target_memory",
    "target_speedup",
)
"""The settings that are goals; the others say what goals are meant for."""
