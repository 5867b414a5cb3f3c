"""Distillation teaches what the teacher says, reads only what it needs, and goes on where it was
killed.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from ptl_fast import compress
from ptl_fast.base.run_files import RecoveryFolder
from ptl_fast.model import loading
from ptl_fast.recovery.continual_pretraining import examples
from ptl_fast.recovery.continual_pretraining import train as cpt
from ptl_fast.recovery.distillation import loss as loss_module
from ptl_fast.recovery.distillation.teacher_cache import TeacherCache
from ptl_fast.recovery.distillation.train import train as distill
from ptl_fast.recovery.task import HeldOutText, TrainingOptions
from support.distillation import distill_config, distill_task, fill, plain_divergence
from support.models import make_model
from support.recovery import cast, config, killed_at_step, packed


def test_student_comes_nearer_to_its_teacher_than_by_text_alone(
    llama: PreTrainedModel, original: str, tmp_path: Path
) -> None:
    """The teacher is random, so that the text says nothing of it."""
    tokens, reference = packed(), loading.load_model(original, config().model, "cpu")
    counted = tokens.mask[:, 1:] & (tokens.position_ids[:, 1:] > 0)

    def distance(student: PreTrainedModel) -> float:
        inputs = {"input_ids": tokens.input_ids, "position_ids": tokens.position_ids}
        with torch.inference_mode():
            logits = [
                model(**inputs, use_cache=False).logits[:, :-1][counted]
                for model in (student, reference)
            ]
        return plain_divergence(logits[0], logits[1], None, 1.0).mean().item()

    before, student = distance(llama), copy.deepcopy(llama)
    cpt(llama, distill_task(tmp_path / "a"))
    distill(student, distill_task(tmp_path / "b", distill_config(original, distill_weight=1.0)))
    assert distance(student) < 0.8 * before < distance(llama)
    assert "_loss_function" not in student.__dict__


def test_without_weight_training_is_continual_pre_training(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    """The whole path: accumulation, the division by the step's tokens, the schedule. The teacher
    says something else.
    """
    other, one = copy.deepcopy(llama), distill_task(tmp_path / "a", num_tokens=600)
    cache = TeacherCache(RecoveryFolder(tmp_path), torch.arange(len(one.tokens)), 32, 16, 384)
    fill(cache, one.tokens, lambda: make_model("llama", intermediate_size=64))
    for weight, same in ((0.0, True), (0.5, False)):
        model = copy.deepcopy(llama)
        cpt(
            model,
            distill_task(tmp_path / str(weight), num_tokens=600),
            loss_module.Teaching(cache, weight, 2.0),
        )
        if same:
            cpt(other, one)
        distances = [
            (model.get_parameter(name) - each).norm() / each.norm()
            for name, each in other.named_parameters()
        ]
        assert (max(distances) < 1e-4) == same, max(distances)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interrupted_distillation_ends_bit_identical(
    llama: PreTrainedModel,
    original: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
) -> None:
    """Killed in training; what goes on does not need the teacher any more."""
    models_here = [cast(copy.deepcopy(llama), dtype) for _ in range(3)]
    distill(models_here[0], distill_task(tmp_path / "a", distill_config(original), 600))
    often = distill_config(original, checkpoint_minutes=0)
    killed_at_step(3, lambda: distill(models_here[1], distill_task(tmp_path / "b", often, 600)))
    monkeypatch.setattr(
        loading, "load_model", lambda *arguments: pytest.fail("the teacher was loaded")
    )
    distill(models_here[2], distill_task(tmp_path / "b", distill_config(original), 600))
    for name, parameter in models_here[0].named_parameters():
        assert torch.equal(parameter, models_here[2].get_parameter(name)), name
        assert parameter.dtype == dtype


def test_only_what_training_reads_is_predicted(
    llama: PreTrainedModel, original: str, tmp_path: Path
) -> None:
    one_step = distill_task(tmp_path, distill_config(original), 10)
    distill(llama, one_step)
    rows = load_file(tmp_path / "recovery" / "teacher" / "part-00000.safetensors")["log_rest"]
    assert len(rows) == 4 < len(one_step.tokens)
    assert len(examples(one_step.tokens, 10**6, 4, 0).unique()) == len(one_step.tokens)


def test_round_that_pruning_has_not_hurt_has_no_teacher(
    llama: PreTrainedModel, original: str, tmp_path: Path
) -> None:
    """until-recovered: it does not train, so nothing would read the predictions."""
    held_out = HeldOutText(nll=lambda: 0.5, num_tokens=1, recovered=1.0)
    unhurt = dataclasses.replace(
        distill_task(tmp_path, distill_config(original)), options=TrainingOptions(held_out=held_out)
    )
    spent = distill(llama, unhurt)
    assert (spent.num_steps, spent.checks) == (0, [(0, 0.5)])
    assert not list(tmp_path.rglob("part-*"))


def test_model_that_computes_its_own_loss_is_refused(
    llama: PreTrainedModel, original: str, tmp_path: Path
) -> None:
    """Its teacher would be ignored without a word."""

    class Own(type(llama)):  # type: ignore[misc]
        def forward(self, labels: Tensor | None = None, **inputs: Any) -> Any:
            output = super().forward(**inputs)
            if labels is not None:
                output.loss = F.cross_entropy(
                    output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
                )
            return output

    llama.__class__ = Own
    with pytest.raises(ValueError, match="Own computes its own; use --recovery cpt"):
        distill(llama, distill_task(tmp_path, distill_config(original)))


SMALL: dict[str, Any] = {
    "preset": "demo",
    "recovery": "distill",
    "rounds": 2,
    "keep": 0.25,
    "learning_rate": 1e-4,
    "lr_schedule": "round",
    "keep_optimizer_state": False,
    "scorer": "output-change",
    "compensate": False,
    "recovery_tokens": 6000,
    "recovery_growth": 1.0,
    "sequence_length": 128,
    "global_batch": 4,
    "micro_batch": 2,
    "calibration_tokens": 1000,
    "eval_tasks": ["nll"],
    "eval_limit": 8,
    "device": "cpu",
}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"score_during_recovery": True}, id="score-during-recovery"),
        pytest.param(
            {
                "recovery_split": "until-recovered",
                "recovered_within": 0.012,
                "lr_schedule": "run",
                "keep_optimizer_state": True,
                "anticipate": 1e-4,
                "fused_ffn": True,
            },
            id="spending",
        ),
    ],
)
def test_goes_with_every_way_of_spending_and_leaves_no_predictions(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    report = compress(**{**SMALL, **changes}, output=str(tmp_path / "run"))
    first, second = report["rounds"]
    assert report["final"]["eval"]["nll"]["nll"] < second["eval_pruned"]["nll"]["nll"]
    if "anticipate" in changes:
        assert 0 < first["recovery_tokens"] < 3000 < second["recovery_tokens"], (
            "the first round ended early"
        )
    assert not list(tmp_path.rglob("part-*"))
