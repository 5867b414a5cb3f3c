"""What the trainings train on, and how their steps are timed."""

import types
from typing import Any

import pytest
import torch
from transformers import trainer

from benchmarks.harness import clock
from benchmarks.recovery import trainings
from benchmarks.recovery.trainings import TrainingSetup

DOCUMENTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14, 15]]


@pytest.fixture
def setup(tokenizer: Any) -> TrainingSetup:
    model: Any = None
    return TrainingSetup(model, tokenizer, DOCUMENTS, sequence_length=4, batch=2, num_steps=3)


def test_without_packing_a_document_is_a_row_cut_to_the_length(setup: TrainingSetup) -> None:
    tokens = trainings.unpacked_documents(setup)
    assert tokens.num_tokens == 3 + 2 + 4
    rows = [row[mask].tolist() for row, mask in zip(tokens.input_ids, tokens.mask, strict=True)]
    assert rows == [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    assert tokens.position_ids[0].tolist() == [0, 1, 2, 0]


def test_documents_per_step_hold_about_the_tokens_of_packed_sequences(setup: TrainingSetup) -> None:
    per_sequence = setup.packed().num_tokens / len(setup.packed())
    assert setup.documents_per_step() == max(1, round(2 * per_sequence / (11 / 3)))


def test_steps_are_timed_inside_and_not_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 3.0, 10.0, 15.0])
    monkeypatch.setitem(clock.CLOCKS, "wall", lambda: next(times))
    before = list(trainer.DEFAULT_CALLBACKS)
    with trainings.step_times(torch.device("cpu")) as steps:
        timer: Any = trainer.DEFAULT_CALLBACKS[-1]
        for loss in (2.5, 2.0):
            timer.on_step_begin()
            timer.on_step_end()
            timer.on_log(types.SimpleNamespace(), None, None, logs={"loss": loss})
        timer.on_log(types.SimpleNamespace(), None, None, logs={"train_runtime": 1.0})
    assert (steps.seconds, steps.losses) == ([2.0, 5.0], [2.5, 2.0])
    assert before == trainer.DEFAULT_CALLBACKS
