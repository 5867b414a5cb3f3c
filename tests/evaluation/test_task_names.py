"""Entries of --eval-tasks are checked by name, and told at once."""

import pytest

from ptl_fast.evaluation.task_names import check, check_names


def test_entries_have_labels_tasks_and_files() -> None:
    (task,) = check_names(["own:ptl_gsm8k=test.jsonl"])
    assert (task.label, task.task, task.file) == ("own", "ptl_gsm8k", "test.jsonl")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["nl"], "unknown evaluation task nl; choose nll, .*; did you mean nll\\?"),
        (["nll", "gsm8k_cto"], "unknown evaluation task gsm8k_cto; .* did you mean gsm8k_cot\\?"),
        (["nll", "nll"], "two evaluation tasks have the same label"),
        (["a b"], "is not of the form"),
        (["ptl_gsm8k=nowhere.jsonl"], "evaluation task ptl_gsm8k: no file nowhere.jsonl"),
        (["ptl_mbpp"], "allow it with --allow-code-execution"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(entries: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(entries, allow_code_execution=False)


def test_code_runs_when_it_is_allowed() -> None:
    assert check(["ptl_mbpp"], allow_code_execution=True)[0].task == "ptl_mbpp"
