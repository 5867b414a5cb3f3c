"""Rows as tables have them are read wherever a file is: null answers, numbers, a byte order mark,
CSV, compressed files, data sets saved to disk.
"""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pytest
from transformers import AutoTokenizer

from ptl_fast import compress
from ptl_fast.config.evaluation import EvaluationSettings
from ptl_fast.data import readers
from ptl_fast.demo.problems import generate
from ptl_fast.evaluation import tasks
from ptl_fast.evaluation.chat import LoadedChat
from support.models import DEMO_MODEL
from support.runs import RUN

ROWS = [
    {"question": row["question"], "answer": row["answer"]} for row in generate(40, 7, "training")
]
NUMBERS = [{**row, "answer": int(row["answer"].rsplit(" ", 1)[1])} for row in ROWS]
NULL = [{**row, "answer": None} if index == 5 else row for index, row in enumerate(ROWS)]
NAN = [{**row, "answer": float("nan")} if index == 5 else row for index, row in enumerate(NUMBERS)]


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, ["question", "answer"])
        writer.writeheader()
        writer.writerows(ROWS)


def write_zst(path: Path) -> None:
    with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(lines(ROWS).encode())


def write_splits(path: Path) -> None:
    split = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(path)


FORMS: dict[str, Callable[[Path], object]] = {
    "null.jsonl": lambda path: path.write_text(lines(NULL)),
    "nan.jsonl": lambda path: path.write_text(lines(NAN)),
    "numbers.jsonl": lambda path: path.write_text(lines(NUMBERS)),
    "mark.jsonl": lambda path: path.write_text(lines(ROWS), encoding="utf-8-sig"),
    "table.csv": write_csv,
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines(ROWS).encode())),
    "rows.jsonl.zst": write_zst,
    "saved": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(path),
    "splits": write_splits,
}


@pytest.mark.parametrize("name", FORMS)
def test_every_reader_of_a_file_takes_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    FORMS[name](file)
    number = len(ROWS) - (name in ("null.jsonl", "nan.jsonl"))
    documents = readers.load_documents(str(file))
    assert len(documents) == number
    first = (NUMBERS if name in ("nan.jsonl", "numbers.jsonl") else ROWS)[0]["answer"]
    assert documents[0].answer == str(first)
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    for task in ("ptl_gsm8k", "demo_arithmetic", "ptl_gsm8k_chat"):
        (entry,) = tasks.parse_tasks([f"{task}={file}"])
        loaded = tasks.load_task(entry, tokenizer, EvaluationSettings())
        if isinstance(loaded, LoadedChat):
            assert len(loaded.problems) == number
        else:
            assert [len(each.eval_docs) for each in loaded["tasks"].values()] == [number]
    assert ("1 rows with an empty" in capsys.readouterr().out) is (number < len(ROWS))


def test_a_run_counts_null_answers_and_goes_on(
    tiny_run: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "null.jsonl"
    rows = [json.loads(line) for line in Path(tiny_run["data"]).read_text().splitlines()]
    rows[3]["answer"] = None
    file.write_text(lines(rows))
    settings = {**tiny_run, **RUN, "rounds": 1, "recovery": "none", "data": file}
    compress(**settings, output=tmp_path / "run")
    assert f"{file}: 1 rows with an empty answer or text were left out" in capsys.readouterr().out


def test_errors_name_file_and_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(lines([*ROWS[:2], {"question": "x", "answer": ["y"]}]))
    with pytest.raises(ValueError, match=r"rows\.jsonl line 3"):
        readers.load_documents(str(file))
    (entry,) = tasks.parse_tasks([f"ptl_gsm8k={file}"])
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    with pytest.raises(ValueError, match=r"rows\.jsonl cannot be used .*row 3"):
        tasks.load_task(entry, tokenizer, EvaluationSettings())
