"""One reader of local files for data and tasks: tables, compressed files and byte order marks, with
errors that name the line.
"""

import csv
import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from ptl_fast.data import file_formats, readers
from ptl_fast.data.documents import Document
from ptl_fast.data.file_formats import file_rows
from support.files import write_rows

ROWS = [{"question": "1 + 1?", "answer": "It is 2,\nof course."}, {"question": "é?", "answer": "3"}]
DOCUMENTS = [Document(row["question"], row["answer"]) for row in ROWS]


def write(path: Path) -> Path:
    """ROWS in a file of the type and compression that its name says."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    if ".json" in path.suffixes:
        text = json.dumps(ROWS).encode()
    if ".csv" in path.suffixes or ".tsv" in path.suffixes:
        plain = path.with_name("plain")
        with plain.open("w", newline="") as file:
            separator = "\t" if ".tsv" in path.suffixes else ","
            writer = csv.DictWriter(file, ["question", "answer"], delimiter=separator)
            writer.writeheader()
            writer.writerows(ROWS)
        text = plain.read_bytes()
    if path.suffix == ".gz":
        text = gzip.compress(text)
    if path.suffix == ".zst":
        text = pyarrow.compress(text, codec="zstd", asbytes=True)
    path.write_bytes(text)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "a.jsonl",
        "a.JSONL",
        "a.json",
        "a.csv",
        "a.tsv",
        "a.jsonl.gz",
        "a.json.gz",
        "a.csv.gz",
        "a.jsonl.zst",
        "a.csv.zst",
    ],
)
def test_every_type_and_compression_gives_the_same_documents(name: str, tmp_path: Path) -> None:
    assert readers.load_documents(str(write(tmp_path / name))) == DOCUMENTS


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(name: str, tmp_path: Path) -> None:
    file = write(tmp_path / name)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert readers.load_documents(str(file)) == DOCUMENTS


def test_a_compressed_text_file_has_paragraphs(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.txt.gz", "wt") as file:
        file.write("One.\n\nTwo\nlines.\n")
    found = readers.load_documents(str(tmp_path / "a.txt.gz"))
    assert found == [Document("", "One."), Document("", "Two\nlines.")]


def test_a_date_that_python_cannot_hold_does_no_harm_to_the_other_columns(tmp_path: Path) -> None:
    far = pyarrow.array([2**40, 0], pyarrow.timestamp("s"))
    with pytest.raises((ValueError, OverflowError)):
        far.to_pylist()
    columns: dict[str, Any] = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    parquet.write_table(pyarrow.table({**columns, "date": far}), tmp_path / "a.parquet")
    assert readers.load_documents(str(tmp_path / "a.parquet")) == DOCUMENTS


def test_dates_and_other_values_of_a_parquet_file_come_as_they_are(tmp_path: Path) -> None:
    day = datetime.date(2026, 1, 2)
    parquet.write_table(pyarrow.table({"day": [day], "x": [[1, 2]]}), tmp_path / "a.parquet")
    assert list(file_rows(tmp_path / "a.parquet")) == [(1, {"day": day, "x": [1, 2]})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"question,answer\na,b\nc,d,e\n", "line 3 has more cells than the 2 columns"),
        ("a.csv", b'question,answer\n"a,b\n', r"line 1 is not valid CSV \(unexpected end"),
        ("a.csv", b"question,answer\n\xff,b\n", "is not UTF-8 text"),
        ("a.csv", b"answer,question,answer\na,b,c\n", "has several columns answer; give each"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.jsonl.zst", b"no zstd", "cannot be read"),
        ("a.xlsx", b"", "unknown file type; give .jsonl, .json, .parquet, .csv, .tsv, .txt"),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        readers.load_documents(str(tmp_path / name))
    assert name in str(raised.value)


def test_a_data_set_saved_to_disk_is_read_with_its_splits(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": saved.select([0]), "test": saved}).save_to_disk(tmp_path / "two")
    assert readers.load_documents(str(tmp_path / "one")) == DOCUMENTS
    assert readers.load_documents(str(tmp_path / "two")) == DOCUMENTS[:1]
    assert readers.load_documents(f"{tmp_path / 'two'}:test") == DOCUMENTS
    with pytest.raises(ValueError, match="has the splits train, test; name one"):
        readers.load_documents(f"{tmp_path / 'two'}:validation")
    parts = readers.open_parts(str(tmp_path / "one"), readers.Form(), streaming_seed=3)
    assert sorted(parts[0].documents) == sorted(DOCUMENTS)


def test_null_and_empty_answers_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [ROWS[0], {**ROWS[1], "answer": None}, {**ROWS[1], "answer": " "}]
    assert readers.load_documents(write_rows(tmp_path / "a.jsonl", *rows)) == DOCUMENTS[:1]
    assert "2 rows with an empty answer or text were left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "text"), [(4, "4"), (-1.5, "-1.5"), (4.0, "4"), (10**20, str(10**20))]
)
def test_numbers_are_answers(value: float, text: str, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", {"question": "?", "answer": value})
    assert readers.load_documents(file) == [Document("?", text)]


@pytest.mark.parametrize("value", [True, [1], {"a": 1}])
def test_other_values_are_no_answers(value: Any, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", {"question": "?", "answer": value})
    with pytest.raises(ValueError, match=r"line 1(: |.*must be)"):
        readers.load_documents(file)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_an_empty_answer(value: str, tmp_path: Path) -> None:
    lines = ('{"question": "1?", "answer": 1}\n', f'{{"question": "?", "answer": {value}}}\n')
    assert readers.load_documents(write_rows(tmp_path / "a.jsonl", *lines)) == [Document("1?", "1")]


@pytest.mark.parametrize(("suffix", "where"), [("jsonl", "a.jsonl line 1"), ("json", "a.json")])
def test_a_number_too_long_to_read_is_named(suffix: str, where: str, tmp_path: Path) -> None:
    file = write_rows(tmp_path / f"a.{suffix}", f'{{"question": "?", "answer": {"9" * 5000}}}')
    with pytest.raises(ValueError, match=where):
        readers.load_documents(file)


def test_an_empty_json_file_holds_no_documents(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no documents"):
        readers.load_documents(write_rows(tmp_path / "a.json", " \n"))


def test_a_folder_of_tables_of_two_types_is_refused(tmp_path: Path) -> None:
    """The datasets library would read one of them, and say nothing of the other."""
    write_rows(tmp_path / "a.jsonl", {"text": "one"})
    (tmp_path / "b.csv").write_text("text\ntwo\n")
    with pytest.raises(ValueError, match=r"holds \.csv, \.jsonl files; name the files"):
        readers.load_documents(str(tmp_path))


def test_what_lies_beside_a_table_is_no_second_table(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", {"text": "one"})
    for name in ("dataset_infos.json", ".cache/b.csv", "LICENSE.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    source = readers.Source(str(tmp_path), str(tmp_path))
    readers.check_folder(source)


def test_columns_of_one_name_are_refused_and_empty_cells_are_not(tmp_path: Path) -> None:
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    parquet.write_table(
        pyarrow.Table.from_arrays(columns, ["text", "text"]), tmp_path / "a.parquet"
    )
    with pytest.raises(ValueError, match="has several columns text; give each"):
        list(file_rows(tmp_path / "a.parquet"))
    (tmp_path / "a.csv").write_text("text,,\na,,\n")
    assert [row["text"] for _, row in file_rows(tmp_path / "a.csv")] == ["a"]


def test_a_parquet_file_with_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    """One such cell made a thousand rows count as empty."""
    cells = pyarrow.array([b"good", b"\xff"], pyarrow.binary()).buffers()
    column = pyarrow.Array.from_buffers(pyarrow.string(), 2, cells)
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet holds text that is not UTF-8 in rows 1 to 2"):
        list(file_rows(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("name", "limit", "told"),
    [
        ("rows.jsonl.gz", "LONGEST_LINE", "a line of more than 8 characters; divide it"),
        ("rows.csv", "LONGEST_LINE", "a line of more than 8 characters; divide it"),
        ("blank.jsonl.gz", "MOST_BLANK_LINES", "more than 8 blank lines in a row; remove them"),
        ("rows.json.gz", "LARGEST_JSON", "more than 8 characters, which are read at once"),
    ],
)
def test_what_no_memory_should_hold_is_not_read(
    name: str, limit: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / name)
    if name.startswith("blank"):
        file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()) + b"\n" * 9))
    assert len(list(file_rows(file))) == len(ROWS)
    monkeypatch.setattr(file_formats, limit, 8)
    with pytest.raises(ValueError, match=rf"{name} has {told}"):
        list(file_rows(file))
