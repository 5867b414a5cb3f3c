"""Recovery trains on what it should, several rounds in one process, and goes on from its
checkpoints.
"""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from ptl_fast.base.atomic_files import WHOLE
from ptl_fast.data import batching, packing
from ptl_fast.model.families import find_family
from ptl_fast.recovery import checkpoints, continual_pretraining
from ptl_fast.scoring import statistics
from support.models import make_model
from support.recovery import cast, config, killed_at_step, packed, train


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


def test_gradient_checkpointing_changes_nothing(llama: PreTrainedModel, tmp_path: Path) -> None:
    other = copy.deepcopy(llama)
    for model, flag in ((llama, True), (other, False)):
        train(
            model,
            packed(),
            500,
            config(gradient_checkpointing=flag),
            tmp_path / str(flag) / "recovery",
        )
    for name, parameter in llama.named_parameters():
        torch.testing.assert_close(parameter, other.get_parameter(name), atol=1e-6, rtol=1e-5)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounds_in_one_process_do_not_disturb_each_other(
    llama: PreTrainedModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    """The second recovery equals the same recovery by a fresh copy of the weights; nothing of the
    first stays attached.
    """
    llama = cast(llama, dtype)
    train(llama, packed(), 400, config(), tmp_path / "round-01" / "recovery")
    assert not {"forward", "_is_accelerate_prepared"} & set(llama.__dict__)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in llama.modules())
    assert llama.model.rotary_emb.inv_freq.dtype == torch.float32
    fresh = cast(make_model("llama"), dtype)
    fresh.load_state_dict(llama.state_dict())
    train(llama, packed(seed=6), 400, config(), tmp_path / "round-02" / "recovery")
    train(fresh, packed(seed=6), 400, config(), tmp_path / "round-03" / "recovery")
    for name, parameter in llama.named_parameters():
        assert torch.equal(parameter, fresh.get_parameter(name)), name


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


def test_half_written_checkpoint_is_not_used(tmp_path: Path) -> None:
    for step in (3, 12, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert checkpoints.newest_checkpoint(tmp_path) is None
    for step in (3, 12):
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"moments")
        (tmp_path / f"checkpoint-{step}" / WHOLE).write_text('{"optimizer.pt": 7}')
    assert checkpoints.newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-12")
    (tmp_path / "checkpoint-12" / "optimizer.pt").write_bytes(b"mom")  # as after a power failure
    assert checkpoints.newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")


def test_nan_loss_names_the_step(llama: PreTrainedModel, tmp_path: Path) -> None:
    with torch.no_grad():
        llama.lm_head.weight[5] = float("nan")
    with pytest.raises(ValueError, match="loss is nan at step 1 of"):
        train(llama, packed(), 1500, config(), tmp_path / "round-01" / "recovery")


def test_global_batch_must_divide(llama: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--global-batch 5 is no multiple of --micro-batch 2"):
        train(llama, packed(), 1500, config(global_batch=5), tmp_path / "recovery")
