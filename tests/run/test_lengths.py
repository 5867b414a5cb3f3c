"""The default length follows the model; what cannot fit into its positions is one line."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ptl_fast.evaluation import tasks
from ptl_fast.evaluation.tasks import EvalTask
from ptl_fast.run import lengths
from ptl_fast.run.folder import RunFolder
from support.settings import settings


def model_of(positions: int | None) -> Any:
    return SimpleNamespace(max_position_embeddings=positions)


@pytest.mark.parametrize(
    ("positions", "length"), [(None, 1024), (8192, 1024), (1024, 1024), (1023, 1023), (2, 2)]
)
def test_the_default_is_no_longer_than_the_model(positions: int | None, length: int) -> None:
    default = settings(model="m", recovery="none")
    assert lengths.fitted(default, model_of(positions)).data.sequence_length == length


def test_a_model_with_enough_positions_has_the_run_that_it_had() -> None:
    default = settings(model="m", recovery="none")
    names = {
        RunFolder(Path(), {"config": each.identity()}).state["run"]
        for each in (default, lengths.fitted(default, model_of(1024)))
    }
    assert len(names) == 1


@pytest.mark.parametrize(("positions", "length"), [(512, 513), (512, 2000), (1, 1024)])
def test_what_was_asked_for_is_refused_where_it_does_not_fit(positions: int, length: int) -> None:
    asked = settings(model="m", recovery="none", sequence_length=length)
    with pytest.raises(ValueError, match=f"{length} tokens are more than the {positions}"):
        lengths.fitted(asked, model_of(positions))


def test_a_task_without_room_for_its_question_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text(json.dumps({"question": "1 + 1 = ?", "answer": "#### 2"}) + "\n")
    loaded = {"g": tasks.load_lm_eval_task(EvalTask("g", "ptl_gsm8k", str(file)))}
    for positions in (None, 257):
        lengths.check_answers(loaded, model_of(positions))
    with pytest.raises(ValueError, match="task g: its answers may have 256 tokens, which leaves"):
        lengths.check_answers(loaded, model_of(256))
