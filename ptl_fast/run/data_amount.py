"""How many tokens the data may have, by the size of its files: a guess for the dry run, which reads
no data.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ptl_fast.data.readers import parse
from ptl_fast.recovery import registry
from ptl_fast.run.tables import short

if TYPE_CHECKING:
    from ptl_fast.config.config import Config

# SmolLM2's tokenizer, JSON included: 2.9 of GSM8K, 3.4 of Python sources and of Shakespeare
BYTES_PER_TOKEN = 3
PLAIN = (".jsonl", ".json", ".csv", ".tsv", ".txt")
"""Types of files whose bytes are text. Others are compressed."""


def guess(config: "Config") -> int | None:
    """Tokens of one reading of --data; None where they need no guess, or files tell nothing of
    them: with --recovery-tokens or --traces, from the hub, and in folders and compressed files.
    """
    recoveries = registry.find(config.recovery.all_recoveries)
    on_text = any(each.on_text for each in recoveries)
    if config.recovery.recovery_tokens is not None or config.traces.traces or not on_text:
        return None
    size = num_bytes(config)
    return None if size is None else max(1, size // BYTES_PER_TOKEN)


def num_bytes(config: "Config") -> int | None:
    """Bytes of the text files of --data; None where it is not in such files."""
    sources = [] if config.data.data is None else parse(config.data.data)[0]
    if not sources or not all(_is_plain(source.name) for source in sources):
        return None
    return sum(os.path.getsize(source.name) for source in sources)


def line(num_tokens: int) -> str:
    """The dry run's sentence about such a guess."""
    return (
        f"Recovery tokens are a guess: all of --data once, about {short(num_tokens)} by its size"
        f" ({BYTES_PER_TOKEN} bytes a token). --recovery-tokens says how many, and bounds the time."
    )


def _is_plain(name: str) -> bool:
    return os.path.isfile(name) and Path(name).suffix.lower() in PLAIN
