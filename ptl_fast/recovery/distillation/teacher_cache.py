"""What a teacher predicts, kept on disk: its most likely next tokens and the probability of all
others, for packed sequences.

The teacher runs once over each sequence that a round trains on, and is gone before training begins.
Files hold PART_BYTES or one sequence; each appears whole or not at all, so a pass that was killed
goes on. Several ranks share the parts, and each reads what it
trains on: the folder must be the same for all of them.

Shape suffixes: T tokens, K the most likely tokens of a position, V vocabulary.
"""

import functools
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from ptl_fast.base import distributed
from ptl_fast.base.atomic_files import write_atomically
from ptl_fast.data.batching import sequence_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.data.packing import PackedTokens

PART_BYTES = 2**26
CHUNK_BYTES = 2**26  # of float32 logits that exist at a time
OPEN_PARTS = 64  # training visits them at random
CHECKSUMS = "checksums"
LOG_ZERO = (
    -65504.0
)  # float16's lowest: exp() of it is 0, and 0 times it is 0, where minus infinity would give NaN


@dataclass(frozen=True)
class Prediction:
    """A teacher's distribution of the token that follows, for any number of positions: ``...``
    below.

    Log-probabilities at the run's temperature. With those of the K tokens, ``log_rest`` makes a
    distribution of K + 1 outcomes."""

    log_top: Tensor
    """(..., K): of the K most likely tokens, the likeliest first."""
    tokens: Tensor
    """(..., K): which tokens they are."""
    log_rest: Tensor
    """(...): of all other tokens together."""


class TeacherCache:
    """Predictions for some rows of packed sequences, in one folder.

    Args:
        rows: which sequences, ascending and each once.
        length: tokens of a sequence.
        top_k, vocab_size: a position keeps ``top_k`` of ``vocab_size`` tokens, or all.
    """

    def __init__(
        self, folder: Path, rows: Tensor, length: int, top_k: int, vocab_size: int
    ) -> None:
        self.folder, self.rows = folder, rows.tolist()
        self.row_bytes = row_bytes(length, top_k, vocab_size)
        self.rows_per_part = max(1, PART_BYTES // self.row_bytes)
        self._open = functools.lru_cache(OPEN_PARTS)(self._open_part)
        self.places = {
            row: divmod(index, self.rows_per_part) for index, row in enumerate(self.rows)
        }

    @property
    def num_parts(self) -> int:
        return -(-len(self.rows) // self.rows_per_part)

    def part_rows(self, part: int) -> list[int]:
        return self.rows[part * self.rows_per_part : (part + 1) * self.rows_per_part]

    def missing(self) -> list[int]:
        """The parts that are not on disk yet, or no longer whole."""
        return [part for part in range(self.num_parts) if not self._is_whole(part)]

    def write(self, part: int, prediction: Prediction) -> None:
        """Keep a part: its predictions, (rows, length, ...), and a checksum of each row."""
        tensors = {name: tensor.contiguous() for name, tensor in vars(prediction).items()}
        checksums = [
            _checksum({name: tensor[row] for name, tensor in tensors.items()})
            for row in range(len(prediction.log_rest))
        ]
        write_atomically(self._file(part), save({**tensors, CHECKSUMS: torch.tensor(checksums)}))

    def read(self, row: int) -> dict[str, Tensor]:
        """The predictions of one sequence, by the names of ``Prediction``'s fields. Reads nothing
        but these.

        Raises:
            ValueError: the file is damaged.
        """
        part, index = self.places[row]
        file = self._open(part)
        tensors = {name: file.get_slice(name)[index] for name in Prediction.__dataclass_fields__}
        if _checksum(tensors) != int(file.get_slice(CHECKSUMS)[index]):
            raise ValueError(
                f"{self._file(part)} is damaged; delete it, and the same command computes it again"
            )
        return tensors

    def check_disk(self) -> None:
        """Raise ValueError when the missing parts do not fit on the disk."""
        needed = self.row_bytes * sum(len(self.part_rows(part)) for part in self.missing())
        free = shutil.disk_usage(
            next(parent for parent in self.folder.absolute().parents if parent.exists())
        ).free
        if needed > free:
            raise ValueError(
                f"the teacher's predictions for {len(self.rows)} sequences need"
                f" {needed / 2**30:.1f} GiB in {self.folder}, and"
                f" {free / 2**30:.1f} GiB are free there; lower --distill-top-k or"
                " --recovery-tokens, or give another --output"
            )

    def close(self) -> None:
        """Let go of the files: as long as one is open, deleting it frees no space."""
        self._open.cache_clear()

    def _is_whole(self, part: int) -> bool:
        try:
            return self._open_part(part).get_slice(CHECKSUMS).get_shape() == [
                len(self.part_rows(part))
            ]
        except (OSError, SafetensorError):  # not there, or cut off
            return False

    def _open_part(self, part: int) -> Any:
        return safe_open(self._file(part), framework="pt")

    def _file(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.safetensors"


def row_bytes(length: int, top_k: int, vocab_size: int) -> int:
    """Bytes on disk for a sequence: float16 log-probabilities, 2 or 4 bytes a token id, a float32
    for the rest; a checksum.
    """
    return length * (min(top_k, vocab_size) * (2 + _index_type(vocab_size).itemsize) + 4) + 8


def _checksum(tensors: dict[str, Tensor]) -> int:
    """CRC-32 of one row's predictions."""
    checksum = 0
    for name in Prediction.__dataclass_fields__:
        checksum = zlib.crc32(tensors[name].contiguous().numpy().tobytes(), checksum)
    return checksum


def fill(
    cache: TeacherCache,
    tokens: "PackedTokens",
    load: Callable[[], "PreTrainedModel"],
    top_k: int,
    temperature: float,
    vocab_size: int,
    batch_size: int,
    description: str,
) -> None:
    """Let the teacher predict what is missing. All ranks call this; each takes every world_size-th
    part.

    Args:
        load: gives the teacher; not called where nothing is missing.
        vocab_size: the student's. A teacher's logits beyond it belong to no token, and are left
            out.

    Raises:
        ValueError: the disk is too full, or the teacher computes NaN.
    """
    cache.check_disk()
    distributed.barrier()
    mine = [
        part for part in cache.missing() if part % distributed.world_size() == distributed.rank()
    ]
    if mine:
        teacher = load()
        for part in tqdm(mine, desc=description, leave=False, disable=not distributed.is_main()):
            sequences = tokens.rows(torch.tensor(cache.part_rows(part)))
            with torch.inference_mode():
                batches = list(
                    _predict(teacher, sequences, top_k, temperature, vocab_size, batch_size)
                )
            joined = {
                name: torch.cat([getattr(batch, name) for batch in batches])
                for name in vars(batches[0])
            }
            cache.write(part, Prediction(**joined))
    distributed.barrier()


def _predict(
    teacher: "PreTrainedModel",
    tokens: "PackedTokens",
    top_k: int,
    temperature: float,
    vocab_size: int,
    batch_size: int,
) -> Iterator[Prediction]:
    """Predictions of ``batch_size`` sequences at a time, (batch, length, ...), on the CPU in the
    types that the disk has.
    """
    for inputs, _, mask in sequence_batches(teacher, tokens, batch_size):
        shape = mask.shape
        logits_TV = teacher(**inputs, use_cache=False).logits[..., :vocab_size].flatten(0, -2)
        chunks = [
            most_likely(chunk, top_k, temperature)
            for chunk in logits_TV.split(tokens_per_chunk(logits_TV.shape[-1]))
        ]
        log_top, ids, log_rest = (
            torch.cat([getattr(chunk, name) for chunk in chunks]) for name in vars(chunks[0])
        )
        if not log_top.isfinite().all():
            raise ValueError(
                "the teacher computes NaN or infinite logits; check --teacher (or --model) and"
                " --dtype"
            )
        yield Prediction(
            log_top=log_top.half().cpu().view(*shape, -1),
            tokens=ids.to(_index_type(vocab_size)).cpu().view(*shape, -1),
            log_rest=log_rest.cpu().view(shape),
        )


def most_likely(logits_TV: Tensor, top_k: int, temperature: float) -> Prediction:
    """The ``top_k`` likeliest tokens of softmax(logits / temperature), in float32, and the rest's
    log-probability.
    """
    scaled_TV = logits_TV.float() / temperature
    total_T = scaled_TV.logsumexp(-1)
    top_TK, tokens_TK = scaled_TV.topk(min(top_k, scaled_TV.shape[-1]), dim=-1)
    log_rest_T = (
        rest(scaled_TV, tokens_TK) - total_T
    )  # not log(1 - sum), which loses all digits of a small rest
    return Prediction(
        (top_TK - total_T[:, None]).clamp(min=LOG_ZERO), tokens_TK, log_rest_T.clamp(min=LOG_ZERO)
    )


def rest(scaled_TV: Tensor, tokens_TK: Tensor) -> Tensor:
    """The logsumexp, (T,), of all columns but the named ones; minus infinity where there are no
    others.
    """
    return scaled_TV.scatter(-1, tokens_TK, -torch.inf).logsumexp(-1)


def tokens_per_chunk(vocab_size: int) -> int:
    """Positions whose float32 logits take CHUNK_BYTES, at least one."""
    return max(1, CHUNK_BYTES // (4 * vocab_size))


def _index_type(vocab_size: int) -> torch.dtype:
    return torch.uint16 if vocab_size <= 2**16 else torch.int32
