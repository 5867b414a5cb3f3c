"""Continual pre-training trains on what it should, ends when it has recovered, and goes on from its
checkpoints.
"""

import copy
import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from ptl_fast.data import batching, packing
from ptl_fast.model.families import find_family
from ptl_fast.recovery import (
    continual_pretraining,
)
from ptl_fast.recovery.task import (
    OptimizerState,
    TrainingOptions,
)
from ptl_fast.scoring import statistics
from support.models import make_model
from support.recovery import cast, config, held_out, killed_at_step, packed, train, train_steps


def loss(model: PreTrainedModel, tokens: packing.PackedTokens) -> float:
    batch = batching.stack([tokens[index] for index in range(len(tokens))])
    with torch.inference_mode():
        return model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            labels=batch["labels"],
            use_cache=False,
        ).loss.item()


def test_training_begins_with_the_first_step(llama: PreTrainedModel, tmp_path: Path) -> None:
    """A round of a single step is no warm-up."""
    before = loss(llama, packed())
    train(llama, packed(), 10, config(), tmp_path / "round-01" / "recovery")
    assert loss(llama, packed()) < before


def test_cpt_lowers_the_loss_and_keeps_type_and_tying(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    model = cast(make_model("llama", tie_word_embeddings=True), torch.bfloat16)
    tokens = packed()
    before = loss(model, tokens)
    train(
        model,
        tokens,
        20 * 4 * 32,
        config(gradient_checkpointing=True),
        tmp_path / "round-01" / "recovery",
    )
    assert loss(model, tokens) < before - 1
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.is_gradient_checkpointing
    assert model.config.use_cache


def test_padding_and_document_starts_are_not_trained_on(llama: PreTrainedModel) -> None:
    """The packed loss is that of the documents one by one, each predicting its own tokens only."""
    documents = [[2, 3, 4, 5, 6], [7, 8, 9], [10, 11, 12, 13]]
    total, count = 0.0, 0
    with torch.inference_mode():
        for document in documents:
            ids = torch.tensor([document])
            total += llama(ids, labels=ids).loss.item() * (len(document) - 1)
            count += len(document) - 1
    assert loss(llama, packing.pack(documents, 12, 1)) == pytest.approx(total / count, rel=1e-5)


def test_interrupted_recovery_ends_bit_identical(llama: PreTrainedModel, tmp_path: Path) -> None:
    undisturbed = copy.deepcopy(llama)
    train(undisturbed, packed(), 1500, config(), tmp_path / "a" / "recovery")
    original = copy.deepcopy(llama)
    settings = config(checkpoint_minutes=0)
    killed_at_step(
        5, lambda: train(original, packed(), 1500, settings, tmp_path / "b" / "recovery")
    )
    assert [path.name for path in (tmp_path / "b" / "recovery").glob("checkpoint-*")] == [
        "checkpoint-5"
    ]
    train(llama, packed(), 1500, config(), tmp_path / "b" / "recovery")
    for name, parameter in llama.named_parameters():
        assert torch.equal(parameter, undisturbed.get_parameter(name)), name


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_watch_counts_the_last_tokens_once(
    llama: PreTrainedModel, tmp_path: Path, gradient_checkpointing: bool
) -> None:
    """With a learning rate that changes nothing, the statistics are those of a pass over the same
    sequences, without padding.
    """
    tokens, family = packed(num_documents=20), find_family(llama)
    assert not tokens.mask.all()
    settings = config(
        learning_rate=1e-12,
        calibration_tokens=3 * 4 * 32,
        gradient_checkpointing=gradient_checkpointing,
    )
    with statistics.collecting(llama, family) as watch:
        train(llama, tokens, 8 * 4 * 32, settings, tmp_path / "round-01" / "recovery", watch)
    num_steps = continual_pretraining.num_steps(tokens, 8 * 4 * 32, 4)
    num_watched = continual_pretraining.num_steps(tokens, settings.score.calibration_tokens, 4)
    assert 0 < num_watched < num_steps
    order = continual_pretraining.Sequences(tokens, num_steps * 4, settings.run.seed).order[
        -num_watched * 4 :
    ]
    rows = packing.PackedTokens(
        tokens.input_ids[order], tokens.position_ids[order], tokens.mask[order]
    )
    expected, total = statistics.collect(llama, family, rows, 2), watch.total()
    assert int(total.num_tokens) == int(expected.num_tokens) == rows.num_tokens
    torch.testing.assert_close(total.square_LI, expected.square_LI, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(total.change_L3, expected.change_L3, rtol=1e-5, atol=1e-9)


def test_interrupted_watch_ends_bit_identical(llama: PreTrainedModel, tmp_path: Path) -> None:
    """Killed while statistics are being taken: the checkpoint has those of the steps before."""
    totals, family = [], find_family(llama)
    settings = config(calibration_tokens=10 * 4 * 32, checkpoint_minutes=0)
    for name, steps_before_kill in (("a", None), ("b", 9)):
        folder = tmp_path / name / "recovery"
        if steps_before_kill is not None:
            model = copy.deepcopy(llama)
            with statistics.collecting(model, family) as watch:
                killed_at_step(
                    steps_before_kill,
                    partial(train, model, packed(), 1500, settings, folder, watch),
                )
        model = copy.deepcopy(llama)
        with statistics.collecting(model, family) as watch:
            train(model, packed(), 1500, settings, folder, watch)
        totals.append(watch.total())
    assert all(
        torch.equal(first, totals[1].tensors()[name]) for name, first in totals[0].tensors().items()
    )


def test_round_ends_when_it_has_recovered(llama: PreTrainedModel, tmp_path: Path) -> None:
    """Checked at every second step; recovered at the sixth; then two steps with a falling learning
    rate.
    """
    check = held_out(6.0, 5.0, 2.0, 0.5, num_tokens=60)
    spent, logs = train_steps(llama, tmp_path, 20, TrainingOptions(held_out=check))
    assert spent.checks == [(0, 6.0), (2, 5.0), (4, 2.0), (6, 0.5)]
    assert spent.num_steps == 8
    full = round(20 * packed().num_tokens / len(packed()) * 4)
    assert spent.num_tokens == round(full * 8 / 20)
    assert [log["learning_rate"] for log in logs] == pytest.approx([0.0, *[1e-2] * 6, 0.5e-2])


def test_round_that_begins_recovered_does_not_train(llama: PreTrainedModel, tmp_path: Path) -> None:
    before = {name: parameter.clone() for name, parameter in llama.named_parameters()}
    kept: OptimizerState = {"weight": {"exp_avg": torch.ones(1)}}
    check = held_out(0.5, num_tokens=60)
    spent, logs = train_steps(
        llama,
        tmp_path,
        20,
        TrainingOptions(held_out=check, optimizer_state=kept, keep_optimizer_state=True),
    )
    assert logs == []
    assert (spent.num_steps, spent.num_tokens, spent.checks) == (0, 0, [(0, 0.5)])
    assert spent.optimizer_state is kept, "they wait for the next round"
    assert all(torch.equal(before[name], parameter) for name, parameter in llama.named_parameters())


def test_sequences_that_a_round_leaves_go_to_the_next() -> None:
    parts = [packed(seed=seed) for seed in (5, 6, 7)]
    left = continual_pretraining.last_part(parts, [2, 1], 4, 0)

    assert len(left) == sum(map(len, parts)) - 3 * 4, "three steps of four sequences"
    assert torch.equal(left.input_ids[: len(parts[2])], parts[2].input_ids)
    everything = [tuple(row.tolist()) for part in parts for row in part.input_ids]
    rest = [tuple(row.tolist()) for row in left.input_ids]
    assert all(rest.count(row) <= everything.count(row) for row in set(rest))

    assert len(continual_pretraining.last_part(parts[:2], [100], 4, 0)) == len(parts[1]), (
        "nothing is left of a part that was seen whole"
    )


def test_answers_alone_are_learnt(llama: PreTrainedModel, tmp_path: Path) -> None:
    """Questions and answers are two patterns that are both learnt fast, if they are learnt."""
    documents = [[2, 3, 4, 5] * 3 + [6, 7, 8, 9] * 3 for _ in range(40)]
    tokens = packing.pack(documents, 32, 1, answers=[[12, 24] for _ in documents])
    answers = dataclasses.replace(tokens, learn_answers=True)
    questions = packing.pack(documents, 32, 1, answers=[[0, 12] for _ in documents])
    questions = dataclasses.replace(questions, learn_answers=True)
    before = loss(llama, answers), loss(llama, questions)
    folder = tmp_path / "round-01" / "recovery"
    train(llama, answers, 20 * 4 * 24, config(), folder)
    assert loss(llama, answers) < before[0] - 1
    assert loss(llama, questions) > before[1] - 0.5


def test_each_mask_is_its_own(llama: PreTrainedModel) -> None:
    """Statistics during a training may count other tokens than it learns."""
    documents = [[2, 3, 4, 5, 6, 7]] * 8
    tokens = packing.pack(documents, 24, 1, answers=[[4, 6]] * 8)
    answers = tokens.answers
    assert answers is not None
    for count, learn in ((True, False), (False, True)):
        chosen = dataclasses.replace(tokens, count_answers=count, learn_answers=learn)
        example = continual_pretraining.Sequences(chosen, 2, 0)[0]
        row = int(continual_pretraining.Sequences(chosen, 2, 0).order[0])
        assert torch.equal(example["mask"], answers[row] if count else tokens.mask[row])
        labelled = example["labels"] != packing.IGNORED
        expected = answers[row] if learn else tokens.mask[row] & (tokens.position_ids[row] > 0)
        assert torch.equal(labelled, expected)
