"""The run itself: its folder, its seed, the dry run."""

import re
from dataclasses import dataclass, field
from typing import Literal

from ptl_fast.config.checking import FREE, as_text, check_at_least_one

HUB_NAME = re.compile(
    r"([A-Za-z0-9][\w.-]*/)?(?!.*(--|\.\.|\.git$))[A-Za-z0-9][\w.-]{0,95}", re.ASCII
)
MAX_SEED = 2**20  # seeds of rounds are a thousand times larger, and NumPy takes 32 bits


@dataclass(kw_only=True)
class RunSettings:
    """The run itself: its folder, its seed, the dry run."""

    output: str | None = field(default=None, metadata=FREE)
    """Folder of the run (default: runs/demo, or runs/MODEL). The same command continues a run that
    was interrupted.
    """

    overwrite: bool = field(default=False, metadata=FREE)
    """Delete the run that --output holds and start again."""

    keep_rounds: int = field(default=1, metadata=FREE)
    """How many of the newest rounds keep their weights on disk, for the run to go on from."""

    keep_sizes: bool = field(default=True, metadata=FREE)
    """Copy every round's model into sizes/, so that you choose among them afterwards: ordinary
    checkpoints, with a table of size and evaluation. The last round's is in final/ alone.
    """

    seed: int = 0
    """Seed of data order, subsets and random scores."""

    dry_run: bool = field(default=False, metadata=FREE)
    """Print what each round would do (width, layers, parameters, FLOPs, tokens, memory, hours) from
    the config alone, and stop. Needs no --data; files that are named are looked at.
    """

    dry_run_gpus: str = field(default="this", metadata=FREE)
    """What --dry-run predicts memory and hours for: this machine (its GPUs, if they are of those
    named here, or its CPU, whose speed is tried), or GPUs as COUNTxNAME: A100-40GB, A100-80GB,
    H100-80GB, H200 or RTX-4090.
    """

    push_to_hub: str | None = field(default=None, metadata=FREE)
    """Upload the finished result, with its model card, to this repository of the Hugging Face hub
    (OWNER/NAME, or NAME for your own), which is made private if it does not exist. Log in with
    `hf auth login` first. The same command uploads a result that was finished before.
    """

    quiet: bool = field(default=False, metadata=FREE)
    """Print errors alone: no progress, no messages, no tables."""

    log_level: Literal["error", "warning", "info", "debug"] = field(default="error", metadata=FREE)
    """How much of the libraries' own log messages to show (transformers, datasets and others)."""

    debug: bool = field(default=False, metadata=FREE)
    """Show tracebacks, and libraries' warnings as they come."""

    preset: str | None = None
    """Settings by name (see ptl_fast/config/presets); flags and --config override them."""

    def __post_init__(self) -> None:
        self.output = as_text(self.output)

    def check(self) -> None:
        """Raise ValueError for a setting out of range."""
        check_at_least_one(self, ["keep_rounds"])
        if not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"--seed {self.seed} is outside [0, {MAX_SEED})")
        if self.push_to_hub is not None and not HUB_NAME.fullmatch(self.push_to_hub):
            raise ValueError(
                f"--push-to-hub {self.push_to_hub} is no repository's name: OWNER/NAME, or NAME"
                " for your own, of letters, digits, '-', '_' and '.'"
            )
