"""Files, folders and hub names become documents; errors name the file and its line."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from ptl_fast.data import readers, sampling
from ptl_fast.data.documents import Document, Form
from ptl_fast.data.readers import Source
from support.files import write_data, write_rows


def test_text_formats_agree(tmp_path: Path) -> None:
    import datasets

    expected = [Document("", "one"), Document("", "two")]
    rows = [{"text": "one"}, {"text": "two"}]
    assert readers.load_documents(write_rows(tmp_path / "a.jsonl", *rows)) == expected
    assert readers.load_documents(write_rows(tmp_path / "a.json", json.dumps(rows))) == expected
    assert readers.load_documents(write_rows(tmp_path / "a.txt", "one\n\n  \ntwo\n")) == expected
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    assert readers.load_documents(str(tmp_path / "a.parquet")) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param('{"text": "a"}\n{"text": \n', r"line 2 is not valid JSON", id="malformed"),
        pytest.param('{"text": "a"}\n[1]\n', r"line 2 is not a JSON object", id="not-an-object"),
        pytest.param(
            '{"text": "a"}\n{"txt": "a"}\n',
            r"line 2 has the columns txt; expected",
            id="wrong-column",
        ),
        pytest.param(
            '{"question": "a", "answer": {"x": 3}}\n',
            r"line 1: question and answer must be text, not dict",
            id="object",
        ),
        pytest.param(
            '{"question": "", "answer": "x"}\n',
            r"line 1 has an empty question",
            id="empty-question",
        ),
        pytest.param(
            '{"question": true, "answer": "x"}\n',
            r"line 1: question and answer must be text, not bool",
            id="bool-question",
        ),
        pytest.param(
            '{"text": "\\ud800"}\n', r"line 1 holds half a surrogate pair", id="surrogate"
        ),
        pytest.param("[" * 100000, r"line 1 is not valid JSON", id="deep"),
        pytest.param("", r"holds no documents", id="empty"),
        pytest.param('{"text": "  "}\n', r"holds no documents", id="blank"),
    ],
)
def test_bad_jsonl_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        readers.load_documents(write_rows(tmp_path / "bad.jsonl", content))


@pytest.mark.parametrize("limit", [None, 2])
def test_rows_without_an_answer_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: int | None
) -> None:
    rows = [{"question": "1+1?", "answer": answer} for answer in ("2", " ", "3", "", "4")]
    file = write_rows(tmp_path / "some.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert [document.answer for document in readers.load_documents(file, limit=limit)] == [
        "2",
        "3",
        "4",
    ][:limit]
    num_seen = 2 if limit is None else 1
    assert (
        capsys.readouterr().out
        == f"{file}: {num_seen} rows with an empty answer or text were left out\n"
    )


def test_binary_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        readers.load_documents(str(tmp_path / "bad.jsonl"))


def test_json_errors_name_the_file(tmp_path: Path) -> None:
    for content in ("[{", "3", '[{"text": "a"}, 3]', "[" * 100_000):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(
            ValueError, match=r"a\.json (cannot be read|is not a list of JSON objects)"
        ):
            readers.load_documents(str(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert [document.text for document in readers.load_documents(str(tmp_path / "a.json"))] == [
        "a",
        "b",
    ]
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read"):
        readers.load_documents(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("AI-MO/NuminaMath-CoT", ("AI-MO/NuminaMath-CoT", None, None, "train")),
        ("gsm8k:test", ("gsm8k", None, None, "test")),
        ("openai/gsm8k:main:", ("openai/gsm8k", None, "main", "train")),
        (
            "OpenCoder-LLM/opc-sft-stage2:educational_instruct:train",
            ("OpenCoder-LLM/opc-sft-stage2", None, "educational_instruct", "train"),
        ),
        ("bigcode/starcoderdata/python", ("bigcode/starcoderdata", "python", None, "train")),
        ("a/b/c/d:train[:1000]", ("a/b", "c/d", None, "train[:1000]")),
        ("a/b:c:train[10%:20%]", ("a/b", None, "c", "train[10%:20%]")),
    ],
)
def test_hub_names_are_parsed(entry: str, expected: tuple) -> None:
    parsed, weights = readers.parse(entry)
    assert (parsed, weights) == ([Source(entry, *expected)], [])


def test_weights_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.txt", "c,d@2.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}\n' if name.endswith("jsonl") else "y")
    parts = readers.open_parts("a.jsonl@3, owner/name:config:test@1,b.txt@0.5", Form())
    assert [part.name for part in parts] == ["a.jsonl", "owner/name:config:test", "b.txt"]
    assert [part.weight for part in parts] == pytest.approx([3 / 4.5, 1 / 4.5, 0.5 / 4.5])
    (joined,) = readers.open_parts("a.jsonl,b.txt", Form())
    assert (joined.weight, [document.text for document in joined.documents]) == (1.0, ["x", "y"])
    assert len(readers.load_documents("c,d@2.jsonl")) == 1, (
        "a file that exists under the whole name is that file"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jsonl@2,b.txt", r"give every source a weight .* or none"),
        ("a.jsonl@0", r"'0' after the @ is no positive weight"),
        ("a.jsonl@nan,b.txt@1", r"'nan' after the @ is no positive weight"),
        ("a.jsonl@1e308,b.txt@1e308", r"'1e308' after the @ is no positive weight"),
        ("/dev/zero", r"/dev/zero is a device or a pipe"),
        (
            "me@host.jsonl",
            r"'host.jsonl' after the @ is no positive weight, and there is no such file",
        ),
        ("x,y.jsonl", r"no file y.jsonl \(x,y.jsonl is read as a list: commas separate sources\)"),
        ("a.jsonl,", r"'' in 'a.jsonl,' is no source"),
        ("a.jsonl:train", r"a file has no configurations or splits; give a.jsonl alone"),
        ("n:a:b:c", r"'n:a:b:c' .* is no source"),
        ("./nowhere", r"no file ./nowhere"),
        ("a.xls", r"a.xls: unknown file type; give .jsonl, .json, .parquet, .csv, .tsv, .txt"),
        ("a.jsonl,empty.txt", r"empty.txt holds no documents"),
    ],
)
def test_bad_lists_of_sources_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "a.xls", "b.txt", "empty.txt"):
        (tmp_path / name).write_text("" if name == "empty.txt" else '{"text": "x"}\n')
    with pytest.raises(ValueError, match=message):
        readers.load_documents(text)


def folder_data_set(folder: Path) -> Path:
    """Two configurations, of two shards each, as opc-sft-stage2 has them."""
    header = "configs:\n"
    for config in ("educational", "evol"):
        (folder / config).mkdir(parents=True)
        for shard in range(2):
            rows = ({"instruction": f"{config} {shard} {row}", "output": "x"} for row in range(300))
            write_rows(folder / config / f"train-{shard}.jsonl", *rows)
        write_rows(folder / config / "test.jsonl", {"instruction": f"{config} test", "output": "x"})
        files = (
            f"[{{split: train, path: '{config}/train-*.jsonl'}}, {{split: test, path:"
            f" {config}/test.jsonl}}]"
        )
        header += f"  - {{config_name: {config}, data_files: {files}}}\n"
    (folder / "README.md").write_text(f"---\n{header}---\n")
    return folder


@pytest.fixture
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("datasets_cache")
def test_a_folder_has_configurations_and_splits(tmp_path: Path) -> None:
    folder = folder_data_set(tmp_path / "set")
    train = readers.load_documents(f"{folder}:evol:train")
    assert sorted(train) == sorted(
        Document(f"evol {shard} {row}", "x") for shard in range(2) for row in range(300)
    )
    assert readers.load_documents(f"{folder}:educational:test") == [
        Document("educational test", "x")
    ]
    assert len(readers.load_documents(f"{folder}:evol:train[:10]")) == 10
    with pytest.raises(ValueError, match=r"set:none: cannot be read: .*educational"):
        readers.load_documents(f"{folder}:none:")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty cannot be read"):
        readers.load_documents(str(tmp_path / "empty"))


@pytest.mark.usefixtures("datasets_cache")
def test_streaming_reads_a_seeded_sample_without_storing(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    folder = folder_data_set(tmp_path / "set")

    def chosen(seed: int) -> sampling.Corpus:
        parts = readers.open_parts(f"{folder}:evol:", Form(), seed)
        return sampling.split_corpus(
            parts, tokenizer, shares=[0.5, 0.5], num_tokens=500, num_held_out=5, seed=seed
        )

    assert chosen(1) == chosen(1)
    assert chosen(1).subsets != chosen(2).subsets
    assert 500 <= sum(len(ids) for subset in chosen(1).subsets for ids in subset) < 600
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    with pytest.raises(ValueError, match=r"--streaming stops early, so .* needs weights"):
        readers.open_parts(f"{folder}:evol:,{folder}:educational:", Form(), 1)
    assert len(readers.open_parts(f"{folder}:evol:@1,{folder}:educational:@1", Form(), 1)) == 2


def test_a_folder_of_everything_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MOST_FILES", 3)
    for name in "abcd":
        (tmp_path / f"{name}.jsonl").write_text('{"question": "x", "answer": "y"}\n')
    with pytest.raises(ValueError, match="holds more than 3 files and folders"):
        readers.load_documents(str(tmp_path))


def test_a_revision_is_of_the_one_hub_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, object]] = []

    def load_dataset(name: str, *_: object, **others: object) -> list[dict]:
        asked.append((name, others["revision"]))
        return [{"text": "one"}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    file = write_data(tmp_path / "data.jsonl")
    parts = readers.open_parts(f"owner/name@1,{file}@1", Form(), revision="v1")
    assert [document.answer for document in parts[0].documents] == ["one"]
    list(readers.open_parts("owner/name", Form())[0].documents)
    assert asked == [("owner/name", "v1"), ("owner/name", None)]
    for data, number in ((str(file), 0), ("owner/one,owner/two", 2)):
        with pytest.raises(ValueError, match=f"--data-revision v1 is for one .* names {number}"):
            readers.open_parts(data, Form(), revision="v1")
