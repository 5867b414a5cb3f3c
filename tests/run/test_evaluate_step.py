"""A run's model is measured by its tasks, and on the held-out text of until-recovered."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptl_fast import compress
from ptl_fast.base.run_files import RunFiles
from ptl_fast.data.documents import Document
from ptl_fast.demo.problems import generate
from ptl_fast.evaluation.nll import answer_nll
from ptl_fast.evaluation.tasks import EvalTask
from ptl_fast.run import evaluate_step
from support.runs import RUN
from support.settings import settings

DOCUMENTS = [
    Document(problem["question"], problem["answer"]) for problem in generate(8, 2, "training")
]


@pytest.fixture
def context(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Any:
    return SimpleNamespace(
        folder=RunFiles(tmp_path),
        config=settings(eval_limit=8),
        model=llama,
        original=llama.config,
        tasks=[EvalTask("nll", "nll", None)],
        inputs=SimpleNamespace(
            tokenizer=tokenizer,
            nll_documents={"nll": DOCUMENTS},
            loaded_tasks={},
            checked_documents=[],
        ),
    )


def test_the_original_is_measured_with_its_size(context: Any) -> None:
    dense = evaluate_step.measure_dense(context)
    assert dense["num_parameters"] == context.model.num_parameters()
    answers = context.folder.dense_answers
    assert dense["eval"] == evaluate_step.evaluate(context, "again", answers)
    assert not answers.exists(), "a loss asks for no answers"
    assert "checked_nll" not in dense, "no round asks whether it has recovered"


def test_held_out_text_is_measured_where_rounds_ask_for_it(context: Any) -> None:
    context.inputs.checked_documents = DOCUMENTS[:3]
    expected = answer_nll(context.model, context.inputs.tokenizer, DOCUMENTS[:3], 2, 512)["nll"]
    assert evaluate_step.measure_dense(context)["checked_nll"] == pytest.approx(expected, rel=1e-4)


def test_a_run_that_measures_nothing_prunes_and_trains(
    tiny_run: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {**tiny_run, **RUN, "rounds": 2, "recovery_tokens": 3000, "eval_tasks": "none"}
    content = compress(**given, output=tmp_path / "run")
    assert content["dense"]["eval"] == content["final"]["eval"] == {}
    assert [record["recovery_steps"] > 0 for record in content["rounds"]] == [True, True]
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| seconds |" in report
    assert "## Evaluation" not in report
    assert "Nothing was measured" in (tmp_path / "run" / "final" / "README.md").read_text()
    assert compress(**given, output=tmp_path / "run") == content, "the same command answers again"
    with pytest.raises(ValueError, match="--eval-tasks none measures nothing; give --eval-tasks n"):
        compress(**given, output=tmp_path / "other", gate="nll:nll", max_drop=0.1)
