"""Corpora -> packed token sequences; one non-overlapping subset a round.

A document is a question with its answer, or plain text (no question). Documents are packed back to back, positions restart at each,
and transformers keeps attention inside a document where positions restart.
"""

import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
QUESTION_COLUMNS = ("question", "query", "problem", "prompt", "instruction")
ANSWER_COLUMNS = ("answer", "response", "solution", "completion", "output")
TEXT_COLUMNS = ("text", "content")
DEMO = "ptl-demo"
DEMO_NUM_PROBLEMS, DEMO_SEED = 60_000, 1000
OPEN_SEQUENCES = 32


class Document(NamedTuple):
    """One example; ``question`` is empty for plain text."""

    question: str
    answer: str

    @property
    def prompt(self) -> str:
        return f"Question: {self.question}\nAnswer: " if self.question else ""

    @property
    def text(self) -> str:
        return self.prompt + self.answer


@dataclass(frozen=True)
class PackedTokens:
    """Sequences of documents, padded at the end. All three are (num_sequences, length).

    ``position_ids`` (int64) restart at each document; each padding token is a document of its own, so nothing attends to it.
    ``mask`` (bool) is False on padding.
    """

    input_ids: "Tensor"
    position_ids: "Tensor"
    mask: "Tensor"

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, "Tensor"]:
        """One training example and its mask. No document's first token is predicted from the document before it."""
        input_ids, position_ids = self.input_ids[index], self.position_ids[index]
        labels = input_ids.where(self.mask[index] & (position_ids > 0), IGNORED)
        return {"input_ids": input_ids, "position_ids": position_ids, "labels": labels, "mask": self.mask[index]}

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return int(self.mask.sum())

    def first(self, num_tokens: int) -> "PackedTokens":
        """The first sequences that hold ``num_tokens`` tokens together, or all."""
        before = self.mask.sum(1).cumsum(0) - self.mask.sum(1)
        return self.rows(before < num_tokens)

    def rows(self, chosen: "Tensor") -> "PackedTokens":
        """Some of the sequences, by index or by mask."""
        return PackedTokens(self.input_ids[chosen], self.position_ids[chosen], self.mask[chosen])

    def followed_by(self, other: "PackedTokens") -> "PackedTokens":
        """These sequences and then the other's."""
        import torch

        names = ("input_ids", "position_ids", "mask")
        return PackedTokens(*(torch.cat([getattr(self, name), getattr(other, name)]) for name in names))


@dataclass(frozen=True)
class Corpus:
    """What a run trains on and what it keeps aside."""

    held_out: list[Document]
    subsets: list[list[list[int]]]
    """Token ids of each round's documents, which no other round sees."""


def load_documents(source: str) -> list[Document]:
    """Read a local file, the demo's generator (``ptl-demo``) or a hub data set (NAME or NAME:SPLIT).

    Raises:
        ValueError: nothing there, empty, malformed (with the line) or without known columns.
    """
    if source == DEMO:
        from ptl_fast.demo.problems import generate

        problems = generate(DEMO_NUM_PROBLEMS, DEMO_SEED, "training")
        return [Document(problem["question"], problem["answer"]) for problem in problems]
    path = Path(source)
    if path.is_dir():
        raise ValueError(f"{source} is a folder; give one .jsonl, .json, .parquet or .txt file")
    if path.suffix == ".txt" and path.is_file():
        try:
            content = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error
        paragraphs = (text.strip() for text in re.split(r"\n\s*\n", content))
        documents = [Document("", text) for text in paragraphs if text]
    else:
        documents = _from_rows(source, _rows(source, path))
    if not documents:
        raise ValueError(f"{source} holds no documents; give a file with at least one non-empty example")
    return documents


def split_corpus(
    documents: list[Document],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    shares: Sequence[float],
    num_tokens: int | None,
    num_held_out: int,
    seed: int,
    source: str,
) -> Corpus:
    """Shuffle by seed, keep some documents aside, and cut the rest into one subset a round.

    The same seed gives the same subsets whatever the number of ranks. ``shares`` (summing to 1) are the subsets' parts of
    ``num_tokens``, or of all there is when that is None or more than there is.
    """
    unique = list(dict.fromkeys(documents))
    random.Random(seed).shuffle(unique)
    num_held_out = min(num_held_out, len(unique) // 20)
    held_out, training = unique[:num_held_out], unique[num_held_out:]
    tokenized = list(tokenize(training, tokenizer, num_tokens))
    total = sum(map(len, tokenized))
    ends = list(itertools.accumulate(shares))
    subsets: list[list[list[int]]] = [[] for _ in shares]
    seen, subset = 0, 0
    for ids in tokenized:
        while subset < len(shares) - 1 and seen >= ends[subset] * total:
            subset += 1
        subsets[subset].append(ids)
        seen += len(ids)
    if not all(subsets):
        raise ValueError(f"{source} has {len(tokenized)} training documents, too few for {len(shares)} rounds; give more data")
    return Corpus(held_out, subsets)


def pack(documents: Iterable[list[int]], length: int, pad: int, source: str = "the data") -> PackedTokens:
    """Pack tokenized documents into sequences of ``length`` tokens: each goes into the fullest open sequence where it fits.

    Documents longer than ``length`` are cut into pieces. Sequences keep the order of their first documents.

    Raises:
        ValueError: there are fewer tokens than one sequence holds.
    """
    import torch

    sequences: list[list[list[int]]] = []
    room: dict[int, int] = {}
    num_tokens = 0
    for document in documents:
        num_tokens += len(document)
        for first in range(0, len(document), length):
            piece = document[first : first + length]
            fitting = [index for index, free in room.items() if free >= len(piece)]
            index = min(fitting, key=room.__getitem__, default=len(sequences))
            if index == len(sequences):
                sequences.append([])
                if len(room) == OPEN_SEQUENCES:
                    del room[min(room, key=room.__getitem__)]
                room[index] = length
            sequences[index].append(piece)
            room[index] -= len(piece)
    if num_tokens < length:
        raise ValueError(
            f"{source} has {num_tokens} tokens, less than one sequence of {length}; give more data or lower --sequence-length"
        )
    input_ids = torch.full((len(sequences), length), pad)
    position_ids = torch.zeros_like(input_ids)
    mask = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, pieces in enumerate(sequences):
        flat = torch.tensor(list(itertools.chain.from_iterable(pieces)))
        input_ids[row, : len(flat)], mask[row, : len(flat)] = flat, True
        position_ids[row, : len(flat)] = torch.cat([torch.arange(len(piece)) for piece in pieces])
    return PackedTokens(input_ids, position_ids, mask)


def fingerprint(documents: Iterable[Document]) -> str:
    """SHA-256 of the documents, so that a run does not continue on other data."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps(document).encode())
    return digest.hexdigest()


def tokenize(
    documents: Sequence[Document], tokenizer: "PreTrainedTokenizerBase", num_tokens: int | None = None
) -> Iterator[list[int]]:
    """Yield each document's token ids, with the end-of-sequence token at the end, until ``num_tokens`` are reached."""
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    total = 0
    for first in range(0, len(documents), 1000):
        texts = [document.text for document in documents[first : first + 1000]]
        for ids in tokenizer(texts, verbose=False)["input_ids"]:
            if num_tokens is not None and total >= num_tokens:
                return
            total += len(ids) + len(end)
            yield ids if ids[-1:] == end else ids + end


def padding_token(tokenizer: "PreTrainedTokenizerBase") -> int:
    """A token id for padding; what it is does not matter, for nothing attends to it."""
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    return tokenizer.eos_token_id or 0


def _rows(source: str, path: Path) -> Iterator[tuple[int, dict]]:
    """Yield (line or row number, row)."""
    if path.is_file() and path.suffix == ".jsonl":
        yield from _jsonl_rows(path)
        return
    import datasets

    datasets.disable_progress_bars()
    try:
        if path.is_file() and path.suffix in (".json", ".parquet"):
            rows = datasets.load_dataset(path.suffix[1:], data_files=str(path), split="train")
        elif path.exists():
            raise ValueError(f"{source}: unknown file type; give .jsonl, .json, .parquet or .txt")
        else:
            name, _, split = source.partition(":")
            rows = datasets.load_dataset(name, split=split or "train")
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        if path.exists():
            raise ValueError(f"{source} cannot be read: {error}") from error
        raise ValueError(f"no file {source}, and no such data set on the hub or in its cache ({_reason(error)})") from error
    yield from enumerate(rows, start=1)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict]]:
    with path.open(encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f'{path} line {number} is not a JSON object, such as {{"question": ..., "answer": ...}}')
                yield number, row
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} line {number} is not valid JSON ({_reason(error)}); correct or remove that line") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error


def _from_rows(source: str, rows: Iterable[tuple[int, dict]]) -> list[Document]:
    documents = []
    for number, row in rows:
        question = next((row[name] for name in QUESTION_COLUMNS if name in row), "")
        has_question = any(name in row for name in QUESTION_COLUMNS)
        answer_names = ANSWER_COLUMNS if has_question else TEXT_COLUMNS
        answer = next((row[name] for name in answer_names if name in row), None)
        if has_question and answer is not None and not question:
            raise ValueError(f"{source} line {number} has an empty question; remove that line, or give {{text}} alone")
        if answer is None:
            raise ValueError(
                f"{source} line {number} has the columns {', '.join(map(str, row)) or '(none)'}; expected a question"
                f" ({', '.join(QUESTION_COLUMNS)}) with an answer ({', '.join(ANSWER_COLUMNS)}), or {' or '.join(TEXT_COLUMNS)}"
            )
        for value in (question, answer):
            if not isinstance(value, str):
                raise ValueError(f"{source} line {number}: question and answer must be text, not {type(value).__name__}")
            if any("\ud800" <= letter <= "\udfff" for letter in value):
                raise ValueError(f"{source} line {number} holds half a surrogate pair, which is no text; correct that line")
        if question and isinstance(row.get("input"), str):
            question = f"{question}\n{row['input']}"  # Alpaca's form: instruction, input, output
        if answer.strip():
            documents.append(Document(question.strip(), answer.strip()))
    return documents
