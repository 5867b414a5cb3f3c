"""Which model is compressed, and how it is loaded."""

from dataclasses import dataclass, field
from typing import Literal

from ptl_fast.config.checking import FREE, as_text, former_default
from ptl_fast.config.numbers import as_bytes


@dataclass(kw_only=True)
class ModelSettings:
    """Which model is compressed, and how it is loaded."""

    model: str | None = None
    """Folder or hub name of the causal language model to compress. Without any setting,
    and with --preset demo, it is the bundled one.
    """

    revision: str | None = None
    """Branch, tag or commit of a --model on the hub (default: its main branch)."""

    merge_adapter: bool = False
    """Merge the LoRA adapter that lies in the folder of --model, beside the weights or alone, into
    the weights first. Without it, a model with an adapter is refused.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the computation: auto is the checkpoint's own on a GPU and float32 on a CPU. Recovery
    keeps float32 master weights.
    """

    save_dtype: Literal["auto", "computed", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata=former_default("computed")
    )
    """Type of the weights in the result: auto is the original's own on every device, or --dtype's
    where that is narrower; computed is that of the computation. They are rounded before a round is
    evaluated, so what was measured is what is saved.
    """

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    attn: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """Attention: auto is flash-attention 2 where it is importable and the weights are half
    precision on a GPU, else SDPA.
    """

    stream: bool = field(default=False, metadata=FREE)
    """Prune neurons layer by layer: one decoder layer at a time is read from the disk, scored,
    compensated, made smaller and written, so that a model that does not fit in memory can be
    pruned. The result is the same. A whole model is loaded only for what follows: the smaller one,
    for evaluation and for recovery (but for cpt with --deepspeed zero3); and the original, if there
    are --eval-tasks. Without those it is chosen by itself where the model does not fit."""

    memory: str | None = field(default=None, metadata=FREE)
    """Use at most so much of the device's memory, such as 20GiB (default: what is free, a
    container's limit included). Gram matrices that do not fit together take more passes; the result
    is the same."""

    def __post_init__(self) -> None:
        self.model = as_text(self.model)
        self.memory = None if self.memory is None else str(self.memory)

    @property
    def memory_bytes(self) -> int | None:
        """--memory in bytes."""
        return None if self.memory is None else as_bytes(self.memory)

    def check(self) -> None:
        """Raise ValueError if --memory is no size; whether there is such a model shows when it is
        loaded.
        """
        if self.memory is not None and not self.memory_bytes:
            raise ValueError(f"--memory {self.memory} is no size; give for example 20GiB")
