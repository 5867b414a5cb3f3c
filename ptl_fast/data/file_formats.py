"""Rows of one local file, whatever its type and compression.

Every reader yields (number, row) one at a time, except that .json is parsed as a whole. Numbers
count from 1: lines of JSON lines and tables, rows otherwise.
"""

import contextlib
import csv
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ptl_fast.base.console import reason

Rows = Iterator[tuple[int, dict]]

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
ROWS_IN_MEMORY = 1000  # rows per batch that is read from a parquet file
# A cell of a CSV file may hold a whole solution; Python's limit of 128 KiB is for untrusted input.
csv.field_size_limit(2**24)
# In characters: a larger row is no document, and a small compressed file can hold one without end.
LONGEST_LINE, LARGEST_JSON = 2**27, 2**30
MOST_BLANK_LINES = 10**6  # in a row, for the same reason


def file_rows(path: Path) -> Rows:
    """Yield (number, row) of a file of one of FILE_TYPES.

    Raises:
        ValueError: the file is of another type, or malformed (names the line).
    """
    reader = FILE_READERS.get(file_type(path))
    if reader is None:
        raise ValueError(f"{path}: unknown file type; give {', '.join(FILE_TYPES)}")
    yield from reader(path)


def paragraphs(path: Path) -> Iterator[str]:
    """Yield a text file's paragraphs, which blank lines separate; line breaks inside stay."""
    with open_text(path) as lines:
        for blank, paragraph in itertools.groupby(lines, key=lambda line: not line.strip()):
            if not blank:
                yield "".join(paragraph).strip()


def file_type(path: Path) -> str:
    """The suffix that says what a file holds: .jsonl of rows.jsonl and of rows.jsonl.gz."""
    compressed = path.suffix.lower() in COMPRESSIONS
    return (Path(path.stem).suffix if compressed else path.suffix).lower()


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a UTF-8 text file, decompressed where its suffix says so, without its byte order mark.

    Raises:
        ValueError: the content is not UTF-8, or not what its suffix says.
    """
    import pyarrow

    compression = COMPRESSIONS.get(path.suffix.lower())
    # newline="": csv wants line ends as they are, and JSON does not mind them
    with contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(path.open("rb"))
        if compression is not None:
            packed = pyarrow.CompressedInputStream(pyarrow.PythonFile(stream), compression)
            stream = io.BufferedReader(stack.enter_context(packed))
        try:
            yield _Text(stream, encoding="utf-8-sig", newline="")
        except _TooLarge as error:
            raise ValueError(f"{path} {error}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error.reason}); convert it") from error
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"{path} cannot be read: {reason(error)}") from error


class _TooLarge(ValueError):
    """What a file holds at once is more than memory should hold."""


class _Text(io.TextIOWrapper):
    """A text file that reads no line, content or blank lines without end."""

    num_blank = 0

    def __next__(self) -> str:  # type: ignore[override]  # a text's stub is missing
        line = self.readline(LONGEST_LINE + 1)
        if not line:
            raise StopIteration
        if len(line) > LONGEST_LINE:
            raise _TooLarge(f"has a line of more than {LONGEST_LINE:,} characters; divide it")
        self.num_blank = self.num_blank + 1 if line.isspace() else 0
        if self.num_blank > MOST_BLANK_LINES:
            raise _TooLarge(f"has more than {MOST_BLANK_LINES:,} blank lines in a row; remove them")
        return line

    def read(self, size: int | None = -1, /) -> str:
        content = super().read(LARGEST_JSON + 1)
        if len(content) > LARGEST_JSON:
            raise _TooLarge(
                f"has more than {LARGEST_JSON:,} characters, which are read at once; write it as"
                " .jsonl, a row a line"
            )
        return content


def _jsonl_rows(path: Path) -> Rows:
    """Yield (line number, object) of a file with one JSON object per line; skip blank lines."""
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            # RecursionError: brackets nested too deep
            # ValueError: also numbers of thousands of digits
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{path} line {number} is not valid JSON ({reason(error)}); correct or"
                    " remove that line"
                ) from error
            if not isinstance(row, dict):
                raise ValueError(
                    f'{path} line {number} is not a JSON object, such as {{"question": ...,'
                    f' "answer": ...}}'
                )
            yield number, row


def _json_rows(path: Path) -> Rows:
    """Yield (number, row) of a JSON list of objects, of one object, or of JSON lines.

    A list or an object is parsed as a whole, so it must fit in memory.
    """
    with open_text(path) as stream:
        content = stream.read()
    if not content.strip():
        return
    try:
        rows = json.loads(content)
    except RecursionError as error:
        raise ValueError(f"{path} cannot be read: it is nested too deep") from error
    except json.JSONDecodeError as error:
        # extra data after a whole value is what a file of JSON lines looks like
        if error.msg != "Extra data":
            raise ValueError(f"{path} cannot be read: {reason(error)}") from error
        yield from _jsonl_rows(path)
        return
    except ValueError as error:  # numbers of thousands of digits
        raise ValueError(f"{path} cannot be read: {reason(error)}") from error
    rows = [rows] if isinstance(rows, dict) else rows
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(
            f'{path} is not a list of JSON objects, such as {{"question": ..., "answer": ...}}'
        )
    yield from enumerate(rows, start=1)


def _table_rows(path: Path, separator: str) -> Rows:
    """Yield (line number, row) of a table whose first line names the columns; cells are text."""
    with open_text(path) as lines:
        reader = csv.DictReader(lines, delimiter=separator, strict=True)
        try:
            _check_columns(path, reader.fieldnames or [])
            for row in reader:
                if None in row:
                    raise ValueError(
                        f"{path} line {reader.line_num} has more cells than the"
                        f" {len(reader.fieldnames or [])} columns of the first line; quote cells"
                        " that hold the separator"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            raise ValueError(
                f"{path} line {reader.line_num} is not valid CSV ({reason(error)})"
            ) from error


def _parquet_rows(path: Path) -> Rows:
    """Yield (row number, row) of a parquet file, ROWS_IN_MEMORY read at a time."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(ROWS_IN_MEMORY):
                try:
                    columns = [_values(column) for column in batch.columns]
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"{path} holds text that is not UTF-8 in rows {number + 1} to"
                        f" {number + batch.num_rows} ({error.reason}); write it anew"
                    ) from error
                for cells in zip(*columns, strict=True):
                    number += 1
                    yield number, dict(zip(batch.schema.names, cells, strict=True))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read: {reason(error)}") from error


def _check_columns(path: Path, names: Sequence[str]) -> None:
    """Raise ValueError for two columns of one name: a row can hold one of them only."""
    # several without a name are empty cells at the end of each line
    twice = [name for name, number in Counter(names).items() if number > 1 and name.strip()]
    if twice:
        raise ValueError(f"{path} has several columns {twice[0]}; give each a name of its own")


def _values(column: Any) -> list[Any]:
    """A column's cells as Python's values; those of a column that Python cannot hold, such as dates
    beyond the year 9999, are null: nothing here reads dates.
    """
    import pyarrow

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError, pyarrow.ArrowException):
        return [None] * len(column)


FILE_READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".parquet": _parquet_rows,
    ".csv": lambda path: _table_rows(path, ","),
    ".tsv": lambda path: _table_rows(path, "\t"),
}
"""{file type: its reader}"""
FILE_TYPES = (*FILE_READERS, ".txt")
