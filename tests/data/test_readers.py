"""Files, folders and hub names become documents: columns found or named, question and answer
joined, errors that name the line.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptl_fast.data import documents, readers, sampling
from ptl_fast.data.documents import Document, Form
from ptl_fast.data.readers import Source
from ptl_fast.evaluation import nll
from support.files import write_rows


@pytest.mark.parametrize(
    "columns", [("question", "answer"), ("query", "response"), ("problem", "solution")]
)
def test_question_columns_are_found(tmp_path: Path, columns: tuple[str, str]) -> None:
    source = write_rows(tmp_path / "a.jsonl", {columns[0]: "1+1?", columns[1]: "2", "other": 3})
    assert readers.load_documents(source) == [Document("1+1?", "2")]


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
            '{"question": "a", "answer": 3}\n',
            r"line 1: question and answer must be text",
            id="number",
        ),
        pytest.param(
            '{"question": "", "answer": "x"}\n',
            r"line 1 has an empty question",
            id="empty-question",
        ),
        pytest.param(
            '{"question": 5, "answer": "x"}\n',
            r"line 1: question and answer must be text, not int",
            id="number-question",
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


NUMINA = {
    "source": "olympiads",
    "problem": "1+1?",
    "solution": "It is 2.",
    "messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "It is 2."}],
}
METAMATH = {
    "type": "GSM_Rephrased",
    "query": "1+1?",
    "original_question": "1+1=x",
    "response": "It is 2.",
}
OPC = {
    "seq_id": 7,
    "instruction": "1+1?",
    "output": "It is 2.",
    "code": "1+1",
    "entry_point": "f",
    "testcase": ["assert f()"],
}
STARCODER = {"max_stars_repo_path": "a.py", "max_stars_count": 3, "id": "7", "content": "print(2)"}
MATH = {"problem": "1+1?", "solution": "It is 2.", "answer": "2", "level": 1}
EXAMPLE = Document("1+1?", "It is 2.")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param(NUMINA, EXAMPLE, id="NuminaMath-CoT"),
        pytest.param(METAMATH, EXAMPLE, id="MetaMathQA"),
        pytest.param(OPC, EXAMPLE, id="opc-sft-stage2"),
        pytest.param(STARCODER, Document("", "print(2)"), id="StarCoder"),
        pytest.param(MATH, EXAMPLE, id="a-problem-belongs-to-its-solution"),
        pytest.param({"problem": "1+1?", "answer": "2"}, Document("1+1?", "2"), id="mixed-pair"),
        pytest.param(
            {"messages": NUMINA["messages"], "prompt": "1+1?"},
            EXAMPLE,
            id="messages-go-before-half-a-pair",
        ),
        pytest.param(
            {"text": "plain", "question": None, "answer": None},
            Document("", "plain"),
            id="null-is-absent",
        ),
        pytest.param(
            {"instruction": "Add", "input": "1+1", "output": "2"},
            Document("Add\n1+1", "2"),
            id="alpaca",
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_the_columns_of_known_data_sets_are_found(
    tmp_path: Path, row: dict, expected: Document, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        import datasets

        datasets.Dataset.from_list([row]).to_parquet(path)
    else:
        path.write_text(json.dumps(row if suffix == ".jsonl" else [row]))
    assert readers.load_documents(str(path)) == [expected]


def chat(*turns: str) -> dict:
    return {
        "messages": [
            dict(zip(("role", "content"), turn.split(": "), strict=True)) for turn in turns
        ]
    }


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (chat("system: Think.", "user: 1+1?", "assistant: 2"), Document("Think.\n\n1+1?", "2")),
        (
            chat("user: 1+1?", "assistant: 2", "user: +1?", "assistant: 3"),
            Document("1+1?\n\n2\n\n+1?", "3"),
        ),
        (chat("user: 1+1?", "assistant: 2", "user: thanks"), Document("1+1?", "2")),
    ],
)
def test_the_last_assistant_turn_is_the_answer(
    tmp_path: Path, row: dict, expected: Document
) -> None:
    assert readers.load_documents(write_rows(tmp_path / "a.jsonl", row)) == [expected]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": "hello"}, r"line 1: messages must be a list of"),
        ({"messages": [{"role": "user", "content": None}]}, r"line 1: messages must be a list of"),
        (chat("user: 1+1?"), r"line 1: none of the messages has the role assistant"),
        (chat("assistant: 2"), r"line 1 has an empty question"),
        ({"question": "  ", "answer": "2"}, r"line 1 has an empty question"),
    ],
)
def test_messages_without_question_or_answer_are_named(
    tmp_path: Path, row: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        readers.load_documents(write_rows(tmp_path / "a.jsonl", row))


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (Form(answer_column="answer"), Document("1+1?", "2")),
        (Form(question_column="level", answer_column="answer"), None),
        (Form(question_column="solution", answer_column="problem"), Document("It is 2.", "1+1?")),
        (Form(text_column="solution"), Document("", "It is 2.")),
        (Form(answer_column="solutoin"), None),
        (Form(text_column="txt"), None),
    ],
)
def test_named_columns_are_taken_or_missed(
    tmp_path: Path, form: Form, expected: Document | None
) -> None:
    source = write_rows(tmp_path / "a.jsonl", MATH)
    if expected is not None:
        assert readers.load_documents(source, form) == [expected]
        return
    with pytest.raises(
        ValueError,
        match=r"line 1(: question and answer must be text, not int| has .* does not fit them)",
    ):
        readers.load_documents(source, form)


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
    parsed, weights = readers._parse(entry)
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
        (
            "me@host.jsonl",
            r"'host.jsonl' after the @ is no positive weight, and there is no such file",
        ),
        ("x,y.jsonl", r"no file y.jsonl \(x,y.jsonl is read as a list: commas separate sources\)"),
        ("a.jsonl,", r"'' in 'a.jsonl,' is no source"),
        ("a.jsonl:train", r"a file has no configurations or splits; give a.jsonl alone"),
        ("n:a:b:c", r"'n:a:b:c' .* is no source"),
        ("./nowhere", r"no file ./nowhere"),
        ("a.csv", r"a.csv: unknown file type; give .jsonl, .json, .parquet, .txt"),
        ("a.jsonl,empty.txt", r"empty.txt holds no documents"),
    ],
)
def test_bad_lists_of_sources_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "a.csv", "b.txt", "empty.txt"):
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


def test_question_and_answer_are_joined_by_the_template() -> None:
    question, answer = "What is {answer} of {1}?", "42 {question}"
    assert (
        Document(question, answer).text
        == "Question: What is {answer} of {1}?\nAnswer: 42 {question}"
    )
    paper = Document(question, answer, documents.make_template("paper"))
    assert paper.text == "Question: What is {answer} of {1}?Answer: 42 {question}"
    own = Document(question, answer, documents.make_template("Q {question}\\n\\nA {answer}"))
    assert (own.prompt, own.text) == (
        "Q What is {answer} of {1}?\n\nA ",
        "Q What is {answer} of {1}?\n\nA 42 {question}",
    )
    plain = Document("", answer, documents.make_template("paper"))
    assert (plain.prompt, plain.text) == ("", answer)


@pytest.mark.parametrize(
    "template",
    [
        "papre",
        "{question}",
        "{question} {answer}.",
        "{question}{question}{answer}",
        "{answer}{question}",
    ],
)
def test_bad_templates_are_explained(template: str) -> None:
    with pytest.raises(ValueError, match=r"unknown --template .* choose lines, paper, or give"):
        documents.make_template(template)


@pytest.mark.parametrize("name", documents.TEMPLATES)
def test_nll_counts_the_answer_whatever_the_template(
    tmp_path: Path, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    """The oracle takes the tokens that are left when the longest beginning of tokens inside the
    prompt is dropped.
    """
    form = Form(template=documents.make_template(name))
    (document,) = readers.load_documents(write_rows(tmp_path / "a.jsonl", MATH), form)
    ids = tokenizer(document.text)["input_ids"]
    num_prompt = max(
        count
        for count in range(len(ids))
        if document.prompt.startswith(tokenizer.decode(ids[:count]))
    )
    assert 3 < num_prompt < len(ids) - 2
    with torch.inference_mode():
        log_probabilities = llama(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = -sum(
        float(log_probabilities[index - 1, ids[index]]) for index in range(num_prompt, len(ids))
    )
    result = nll.answer_nll(llama, tokenizer, [document], 1, 100)
    assert result["nll"] == pytest.approx(expected / (len(ids) - num_prompt), rel=1e-4)
