"""What is no data is told before work begins, whatever it is; what is data passes."""

import gzip
import json
import os
from pathlib import Path

import pytest

from ptl_fast.data import first_rows, readers
from ptl_fast.data.documents import Form

ROW = json.dumps({"question": "x", "answer": "y"}) + "\n"


def test_files_and_folders_of_data_pass(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text(ROW)
    (folder / "test.jsonl").write_text('{"other": 1}\n')
    (tmp_path / "a.jsonl").write_text(ROW)
    (tmp_path / "b.csv").write_text("question,answer\nx,y\n")
    (tmp_path / "c.txt").write_text("text " * 10**5)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(ROW.encode()))
    names = [str(tmp_path / name) for name in ("a.jsonl", "b.csv", "c.txt", "d.jsonl.gz")]
    first_rows.check(",".join([*names, str(folder), "owner/name", readers.DEMO]))
    first_rows.check(f"{folder}:test", Form(text_column="other"))


def spoil(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n\n", "holds no rows"),
        ("a.jsonl", b"{", "line 1 is not valid JSON"),
        ("a.jsonl", b"\x00" * 100, "line 1 is not valid JSON"),
        ("a.jsonl", b'{"x": 1}', "has the columns x"),
        ("a.txt", b"\xff\xfe\x00", "is not UTF-8"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.parquet", b"PAR1", "cannot be read"),
        ("a.csv", b"question,question\n", "several columns question"),
        ("a.bin", b"x", "unknown file type"),
        ("a", b"x", "unknown file type"),
    ],
)
def test_a_file_that_is_no_data_is_named(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        first_rows.check(spoil(tmp_path / name, content))


def test_places_that_are_no_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MOST_FILES", 50)
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    (tmp_path / "empty").mkdir()
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "run.py").write_text("x")
    for name, message in (
        ("/", "holds more than 50 files"),
        ("/dev/zero", "is a device or a pipe"),
        (str(tmp_path / "pipe.jsonl"), "is a device or a pipe"),
        (str(tmp_path / "loop.jsonl"), "no file"),
        (str(tmp_path / "empty"), "holds no data"),
        (str(tmp_path / "code"), "holds no data"),
    ):
        with pytest.raises(ValueError, match=message):
            first_rows.check(name)
    with pytest.raises(ValueError, match="is a device or a pipe"):
        first_rows.check_local("/dev/zero", lambda *_: None)
    first_rows.check_local("owner/name", lambda *_: None)
