"""Corpora are read with clear errors, split without overlap, and packed so that documents do not see each other."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptl_fast import data
from ptl_fast.demo.problems import generate, part_of


def write(path: Path, *lines: object) -> str:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize("columns", [("question", "answer"), ("query", "response"), ("problem", "solution")])
def test_question_columns_are_found(tmp_path: Path, columns: tuple[str, str]) -> None:
    source = write(tmp_path / "a.jsonl", {columns[0]: "1+1?", columns[1]: "2", "other": 3})
    assert data.load_documents(source) == [data.Document("1+1?", "2")]


def test_text_formats_agree(tmp_path: Path) -> None:
    import datasets

    expected = [data.Document("", "one"), data.Document("", "two")]
    rows = [{"text": "one"}, {"text": "two"}]
    assert data.load_documents(write(tmp_path / "a.jsonl", *rows)) == expected
    assert data.load_documents(write(tmp_path / "a.json", json.dumps(rows))) == expected
    assert data.load_documents(write(tmp_path / "a.txt", "one\n\n  \ntwo\n")) == expected
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    assert data.load_documents(str(tmp_path / "a.parquet")) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param('{"text": "a"}\n{"text": \n', r"line 2 is not valid JSON", id="malformed"),
        pytest.param('{"text": "a"}\n[1]\n', r"line 2 is not a JSON object", id="not-an-object"),
        pytest.param('{"text": "a"}\n{"txt": "a"}\n', r"line 2 has the columns txt; expected", id="wrong-column"),
        pytest.param('{"question": "a", "answer": 3}\n', r"line 1: question and answer must be text", id="number"),
        pytest.param('{"question": "", "answer": "x"}\n', r"line 1 has an empty question", id="empty-question"),
        pytest.param(
            '{"question": 5, "answer": "x"}\n', r"line 1: question and answer must be text, not int", id="number-question"
        ),
        pytest.param('{"text": "\\ud800"}\n', r"line 1 holds half a surrogate pair", id="surrogate"),
        pytest.param("[" * 100000, r"line 1 is not valid JSON", id="deep"),
        pytest.param("", r"holds no documents", id="empty"),
        pytest.param('{"text": "  "}\n', r"holds no documents", id="blank"),
    ],
)
def test_bad_jsonl_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load_documents(write(tmp_path / "bad.jsonl", content))


def test_binary_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        data.load_documents(str(tmp_path / "bad.jsonl"))


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=120), length=st.integers(4, 24))
def test_packing_keeps_every_token_once(lengths: list[int], length: int) -> None:
    counter = iter(range(1, 10**6))
    documents = [[next(counter) for _ in range(count)] for count in lengths]
    if sum(lengths) < length:
        with pytest.raises(ValueError, match="less than one sequence"):
            data.pack(documents, length, 0)
        return
    packed = data.pack(documents, length, 0)
    assert packed.num_tokens == sum(lengths)
    assert sorted(packed.input_ids[packed.mask].tolist()) == list(range(1, sum(lengths) + 1))
    pieces = {tuple(document[first : first + length]) for document in documents for first in range(0, len(document), length)}
    for row in range(len(packed)):
        ids, positions, mask = packed.input_ids[row], packed.position_ids[row], packed.mask[row]
        starts = [*(positions == 0).nonzero().flatten().tolist(), length]
        for start, end in itertools.pairwise(starts):
            if mask[start]:
                assert tuple(ids[start:end].tolist()) in pieces
                assert positions[start:end].tolist() == list(range(end - start))
            else:
                assert end == start + 1, "each padding token stands alone"
        assert packed[row]["labels"][positions == 0].eq(data.IGNORED).all()


def test_packing_wastes_little(tokenizer: PreTrainedTokenizerBase) -> None:
    documents = [data.Document(**problem) for problem in generate(500, 5, "training")]
    packed = data.pack(data.tokenize(documents, tokenizer), 256, 1)
    assert packed.num_tokens / packed.mask.numel() > 0.9


def test_packed_documents_do_not_see_each_other(any_model: PreTrainedModel) -> None:
    """Each document's logits in a packed sequence are those of the document alone, also under a sliding window."""
    generator = torch.Generator().manual_seed(2)
    documents = [torch.randint(2, 384, (count,), generator=generator).tolist() for count in (13, 7, 5, 20)]
    packed = data.pack(documents, 32, 1)
    with torch.inference_mode():
        logits = any_model(packed.input_ids, position_ids=packed.position_ids, use_cache=False).logits
        for document in documents:
            row, start = next(
                (row, start)
                for row in range(len(packed))
                for start in range(32)
                if packed.input_ids[row, start : start + len(document)].tolist() == document
            )
            alone = any_model(torch.tensor([document]), use_cache=False).logits[0]
            torch.testing.assert_close(logits[row, start : start + len(document)], alone, atol=2e-5, rtol=2e-5)


def split(tokenizer: PreTrainedTokenizerBase, num_tokens: int | None, seed: int = 0) -> data.Corpus:
    documents = [data.Document(**problem) for problem in generate(2000, 6, "training")]
    return data.split_corpus(
        documents, tokenizer, shares=[0.1, 0.3, 0.6], num_tokens=num_tokens, num_held_out=50, seed=seed, source="x"
    )


@pytest.mark.parametrize("num_tokens", [None, 20_000])
def test_rounds_get_disjoint_subsets_of_the_asked_shares(tokenizer: PreTrainedTokenizerBase, num_tokens: int | None) -> None:
    corpus = split(tokenizer, num_tokens)
    assert len(corpus.held_out) == 50
    held_out = {tuple(ids) for ids in data.tokenize(corpus.held_out, tokenizer)}
    subsets = [{tuple(ids) for ids in subset} for subset in corpus.subsets]
    for index, subset in enumerate(subsets):
        assert not subset & held_out
        assert all(not subset & other for other in subsets[:index])
    totals = [sum(map(len, subset)) for subset in corpus.subsets]
    assert [total / sum(totals) for total in totals] == pytest.approx([0.1, 0.3, 0.6], abs=0.01)
    if num_tokens is not None:
        assert num_tokens <= sum(totals) < num_tokens + 100


def test_split_depends_on_the_seed_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    assert split(tokenizer, 9000) == split(tokenizer, 9000)
    assert split(tokenizer, 9000).subsets != split(tokenizer, 9000, seed=1).subsets


def test_demo_parts_never_meet() -> None:
    problems = {part: {item["question"] for item in generate(2000, 7, part)} for part in ("training", "validation", "test")}
    assert not problems["training"] & problems["test"]
    assert not problems["training"] & problems["validation"]
    assert not problems["test"] & problems["validation"]
    assert all(part_of(question) == part for part, questions in problems.items() for question in questions)


def test_demo_answers_are_right() -> None:
    """Each thought is recomputed from its own text, and chains to the next."""
    for problem in generate(300, 8, "training"):
        *thoughts, last = problem["answer"].split(";")
        value = int(problem["question"].split("start with ")[1].split(",")[0])
        for thought in thoughts:
            left, right = thought.split("=")
            operator = next(symbol for symbol in "+-*" if symbol in left)
            before, operand = map(int, left.split(operator))
            assert before == value
            value = {"+": before + operand, "-": before - operand, "*": before * operand}[operator] % 100
            assert int(right) == value
        assert last == f"#### {value}"
