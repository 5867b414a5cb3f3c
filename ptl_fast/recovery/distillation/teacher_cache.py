"""On-disk cache of a teacher's top-K next-token distributions for packed sequences.

The teacher runs once over each sequence that a round trains on, and is unloaded before training
begins, so it takes no GPU memory from training. The cache is split into files ("parts") of about
PART_BYTES, at least one sequence each. A part is written atomically, so an interrupted run computes
only the missing ones when it resumes. Ranks divide the parts among themselves and later read any of
them: all ranks need the same file system.

Shape suffixes: T tokens, K most likely tokens of a position, V vocabulary.
"""

import functools
import shutil
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ptl_fast.base import distributed
from ptl_fast.base.atomic_files import write_atomically
from ptl_fast.base.progress import Steps
from ptl_fast.base.run_files import RecoveryFolder
from ptl_fast.data.batching import sequence_batches
from ptl_fast.model.predictions import Prediction, most_likely, tokens_per_chunk

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.data.packing import PackedTokens

PART_BYTES = 2**26
# Files kept open: training reads sequences in random order, so nearly every read is in another one.
OPEN_PARTS = 64
CHECKSUMS = "checksums"


class TeacherCache:
    """Reads and writes the predictions for chosen packed sequences, in one folder.

    On disk ``log_top`` is float16, ``tokens`` uint16 or int32, ``log_rest`` float32.

    Args:
        folder: the recovery's; the predictions are its ``teacher_part`` files.
        rows: indices of the sequences, ascending and without duplicates.
        length: tokens of a sequence.
        top_k: tokens kept per position; the whole vocabulary if that is smaller.
        vocab_size: the student's vocabulary size.
    """

    def __init__(
        self, folder: RecoveryFolder, rows: Tensor, length: int, top_k: int, vocab_size: int
    ) -> None:
        self.folder, self.rows = folder, rows.tolist()
        self.row_bytes = row_bytes(length, top_k, vocab_size)
        self.rows_per_part = max(1, PART_BYTES // self.row_bytes)
        # row -> (part, index in the part)
        self._open = functools.lru_cache(OPEN_PARTS)(self._open_part)
        # row -> (part, index in the part)
        self.places = {
            row: divmod(index, self.rows_per_part) for index, row in enumerate(self.rows)
        }

    @property
    def num_parts(self) -> int:
        return -(-len(self.rows) // self.rows_per_part)

    def part_rows(self, part: int) -> list[int]:
        """Indices of a part's sequences, in the order of the file."""
        return self.rows[part * self.rows_per_part : (part + 1) * self.rows_per_part]

    def missing(self) -> list[int]:
        """Numbers of the parts that are not on disk, or are truncated."""
        return [
            part
            for part in range(self.num_parts)
            if not self.folder.teacher_part(part).holds(CHECKSUMS, [len(self.part_rows(part))])
        ]

    def write(self, part: int, prediction: Prediction) -> None:
        """Write a part atomically: predictions, (rows, length, ...), and a checksum per row."""
        tensors = {name: tensor.contiguous() for name, tensor in vars(prediction).items()}
        checksums = [
            _checksum({name: tensor[row] for name, tensor in tensors.items()})
            for row in range(len(prediction.log_rest))
        ]
        # not TensorFile.write: each rank writes its own parts
        file = self.folder.teacher_part(part).path
        write_atomically(file, save({**tensors, CHECKSUMS: torch.tensor(checksums)}))

    def read(self, row: int) -> dict[str, Tensor]:
        """Return one sequence's predictions, {field of ``Prediction``: (length, ...)}.

        Reads that sequence's bytes only, not the whole part.

        Raises:
            ValueError: the row's checksum is wrong.
        """
        part, index = self.places[row]
        file = self._open(part)
        tensors = {name: file.get_slice(name)[index] for name in Prediction.__dataclass_fields__}
        if _checksum(tensors) != int(file.get_slice(CHECKSUMS)[index]):
            raise ValueError(
                f"{self.folder.teacher_part(part).path} is damaged; delete it, and the same command"
                " computes it again"
            )
        return tensors

    def check_disk(self) -> None:
        """Raise ValueError when the missing parts do not fit on the disk."""
        needed = self.row_bytes * sum(len(self.part_rows(part)) for part in self.missing())
        # the folder itself may not exist yet: ask its nearest parent that does
        free = shutil.disk_usage(
            next(parent for parent in self.folder.teacher.absolute().parents if parent.exists())
        ).free
        if needed > free:
            raise ValueError(
                f"the teacher's predictions for {len(self.rows)} sequences need"
                f" {needed / 2**30:.1f} GiB in {self.folder.teacher}, and"
                f" {free / 2**30:.1f} GiB are free there; lower --distill-top-k or"
                " --recovery-tokens, or give another --output"
            )

    def close(self) -> None:
        """Close the files: deleting an open file frees no disk space."""
        self._open.cache_clear()

    def _open_part(self, part: int) -> Any:
        return safe_open(self.folder.teacher_part(part).path, framework="pt")


def row_bytes(length: int, top_k: int, vocab_size: int) -> int:
    """Bytes on disk for one sequence, without file headers.

    Per position: K float16 log-probabilities, K token ids of 2 or 4 bytes, and a float32 for the
    rest. Per sequence: an 8-byte checksum.
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
    """Compute the missing parts with the teacher: one forward pass per sequence.

    Collective: all ranks must call it. Each computes every world_size-th part.

    Args:
        tokens: the packed sequences that the cache's rows index.
        load: loads the teacher; not called on a rank without missing parts.
        vocab_size: the student's. A teacher may have more logits, as padding of its embedding
            matrix; they belong to no token and are dropped.
        batch_size: sequences in a forward pass.
        description: label of the progress bar.

    Raises:
        ValueError: the disk is too full, or the teacher's logits are NaN or infinite.
    """
    cache.check_disk()
    # no rank may write while another still looks for what is missing
    distributed.barrier()
    mine = [
        part for part in cache.missing() if part % distributed.world_size() == distributed.rank()
    ]
    if mine:
        teacher = load()
        rows = {part: torch.tensor(cache.part_rows(part)) for part in mine}
        with Steps(description, sum(map(len, rows.values()))) as steps:
            for part, numbers in rows.items():
                batches = []
                with torch.inference_mode():
                    for batch in _predict(
                        teacher, tokens.rows(numbers), top_k, temperature, vocab_size, batch_size
                    ):
                        batches.append(batch)
                        steps.update(len(batch.log_rest))
                joined = {
                    name: torch.cat([getattr(batch, name) for batch in batches])
                    for name in vars(batches[0])
                }
                cache.write(part, Prediction(**joined))
    # training reads parts that other ranks wrote
    distributed.barrier()


def _predict(
    teacher: "PreTrainedModel",
    tokens: "PackedTokens",
    top_k: int,
    temperature: float,
    vocab_size: int,
    batch_size: int,
) -> Iterator[Prediction]:
    """Yield predictions, ``batch_size`` sequences at a time, on the CPU in the on-disk dtypes."""
    for batch in sequence_batches(teacher, tokens, batch_size):
        shape = batch.mask.shape
        logits_TV = teacher(**batch.inputs, use_cache=False).logits[..., :vocab_size].flatten(0, -2)
        # by chunks, as float32 logits of a whole batch may not fit next to the teacher
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


def _index_type(vocab_size: int) -> torch.dtype:
    """The smallest dtype that holds every token id, as ids are half of the cache or more."""
    return torch.uint16 if vocab_size <= 2**16 else torch.int32
