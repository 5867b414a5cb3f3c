"""Rows that the shipped benchmarks read: from a file or the hub, with errors that name the row."""

from pathlib import Path

import pytest

from ptl_fast.evaluation import tasks
from ptl_fast.evaluation.lm_eval_tasks import rows as rows_module


@pytest.mark.parametrize(
    ("entry", "content", "message"),
    [
        (
            "ptl_gsm8k=test.jsonl",
            '{"q": "?", "answer": "1 #### 1"}',
            r"row 1: it has the columns q, answer; expected question",
        ),
        (
            "ptl_gsm8k=test.jsonl",
            '{"question": "?", "answer": "It is 1."}',
            r'row 1: its answer does not end in "#### N"',
        ),
        ("ptl_gsm8k=test.jsonl", '{"question": ', r"line 1 is not valid JSON"),
        ("ptl_gsm8k=test.jsonl", "", r"it has no rows"),
        (
            "ptl_minerva_math=test.jsonl",
            '{"problem": "?", "solution": "one"}',
            r"row 1: .*no answer column, and.*no \\boxed",
        ),
        (
            "ptl_mbpp=test.jsonl",
            '{"text": "?", "test_list": []}',
            r"row 1: its test_list is no list of assertions",
        ),
        ("ptl_gsm8k=nowhere.jsonl", "", r"no file nowhere.jsonl"),
        ("gsm8k_cot=owner/name", "", r"no file owner/name"),
        (
            "demo_arithmetic=test.jsonl",
            '{"q": "?"}',
            r"row 1: it has the columns q; expected question",
        ),
    ],
)
def test_unfit_data_is_named(
    entry: str, content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("test.jsonl").write_text(content and content + "\n")
    with pytest.raises(ValueError, match=message):
        tasks.load_lm_eval_task(*tasks.parse_tasks([entry], allow_code_execution=True))


@pytest.mark.parametrize(
    ("entry", "asked"),
    [
        ("ptl_gsm8k", [("openai/gsm8k", "main", "test")]),
        ("ptl_gsm8k=openai/gsm8k:train", [("openai/gsm8k", "main", "train")]),
        ("ptl_gsm8k=someone/copy", [("someone/copy", None, "test")]),
        ("ptl_mbpp", [("google-research-datasets/mbpp", "full", "test")]),
        ("ptl_math500", [("HuggingFaceH4/MATH-500", None, "test")]),
        ("ptl_minerva_math", 7),
    ],
)
def test_hub_names(entry: str, asked: list | int, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    seen = []
    row = {
        "question": "?",
        "answer": "#### 1",
        "problem": "?",
        "solution": "\\boxed{1}",
        "text": "?",
        "test_list": ["assert 1"],
    }

    def load(path: str, name: str | None = None, *, split: str, **_: object) -> datasets.Dataset:
        seen.append((path, name, split))
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load)
    loaded = tasks.load_lm_eval_task(*tasks.parse_tasks([entry], allow_code_execution=True))
    (task,) = loaded["tasks"].values()
    if isinstance(asked, int):
        assert len(set(seen)) == len(task.eval_docs) == asked
    else:
        assert seen == asked


def test_standard_examples_come_from_lm_eval() -> None:
    assert [
        len(rows_module.standard_examples(f"{path}"))
        for path in ("gsm8k/gsm8k-cot.yaml", "minerva_math/utils.py")
    ] == [8, 4]
    with pytest.raises(
        ValueError, match=r"standard examples are not in .*nothing.yaml; pip install lm-eval=="
    ):
        rows_module.standard_examples("gsm8k/nothing.yaml")
    with pytest.raises(ValueError, match="standard examples are not in"):
        rows_module.standard_examples("__init__.py")
