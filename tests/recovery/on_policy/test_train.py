"""On-policy distillation lowers the divergence that it says, on the answers that it samples, and
goes on where it was killed.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer import distillation_trainer

from ptl_fast import compress
from ptl_fast.model import loading
from ptl_fast.recovery import registry, trainer
from ptl_fast.recovery.on_policy import train as train_module
from ptl_fast.recovery.on_policy.train import OnPolicyTrainer
from support.models import make_model
from support.recovery import Killed, cast, config, killed_at_step, opd_config, problem_task
from support.runs import RUN

Sampled = list[tuple[list[int], list[int]]]


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[Sampled]:
    """Of every step, (prompt, answer) of each question; filled while training."""
    steps: list[Sampled] = []
    sample = OnPolicyTrainer._generate_single_turn

    def note(self: Any, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        answers = sample(self, prompt_ids, *args, **kwargs)
        steps.append(list(zip(copy.deepcopy(prompt_ids), copy.deepcopy(answers), strict=True)))
        return answers

    monkeypatch.setattr(OnPolicyTrainer, "_generate_single_turn", note)
    return steps


def plain_divergence(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """By the formula, from whole logits in float64."""
    log_q, log_p = (logits.double().log_softmax(-1) for logits in (student, teacher))

    def kl(one: Tensor, two: Tensor) -> Tensor:
        return (one.exp() * (one - two)).sum(-1)

    if beta == 1:
        return kl(log_q, log_p)
    log_m = (beta * log_p.exp() + (1 - beta) * log_q.exp()).log()
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


def plain_loss(
    model: PreTrainedModel, teacher: PreTrainedModel, answers: Sampled, beta: float
) -> Tensor:
    """The mean over all tokens of the answers, one answer at a time and without padding."""
    parts = []
    for prompt, answer in answers:
        ids = torch.tensor([prompt + answer])
        predicting = slice(len(prompt) - 1, ids.shape[1] - 1)
        student = model(ids, use_cache=False).logits[0, predicting]
        with torch.no_grad():
            judge = teacher(ids, use_cache=False).logits[0, predicting, : student.shape[-1]]
        parts.append(plain_divergence(student, judge, beta))
    return torch.cat(parts).mean()


@pytest.mark.parametrize("beta", [1.0, 0.3], ids=["reverse", "jsd"])
def test_loss_and_gradient_are_those_of_the_formula(
    any_model: PreTrainedModel,
    beta: float,
    sampled: list[Sampled],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over a step of 8 answers to ragged prompts in passes of 2, in float64; the gradient as it is
    clipped.
    """
    family = any_model.config.model_type
    teacher = make_model(family, intermediate_size=64)
    teacher.save_pretrained(tmp_path / "teacher")
    gradients: dict[str, Tensor] = {}

    def note(self: Any, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        gradients.update(
            {name: each.grad.clone() for name, each in model.named_parameters() if not gradients}
        )

    monkeypatch.setattr(trainer.StopAtNan, "on_pre_optimizer_step", note)
    changes = {} if beta == 1 else {"opd_divergence": "jsd", "opd_jsd_beta": beta}
    given = opd_config(
        str(tmp_path / "teacher"), opd_steps=1, opd_start_tokens=8, opd_micro_batch=2, **changes
    )
    before = copy.deepcopy(any_model)
    result = train_module.train(any_model, problem_task(given, tmp_path / "recovery"))
    (answers,) = sampled
    twin = before.double()
    loss = plain_loss(twin, teacher.double(), answers, beta)
    loss.backward()
    assert result.details["opd"]["divergence"][0] == pytest.approx(loss.item(), abs=1e-4)
    assert loss > 1e-3
    grads = {name: each.grad for name, each in twin.named_parameters()}
    norm = torch.stack([grad.norm() for grad in grads.values() if grad is not None]).norm()
    for name, grad in grads.items():
        assert grad is not None, name
        expected = grad * min(1.0, 1.0 / norm.item())
        distance = (gradients[name] - expected).norm() / expected.norm().clamp(min=1e-6)
        assert distance < 1e-3, (name, distance)


def test_student_comes_nearer_to_its_teacher_and_all_else_stays(
    llama: PreTrainedModel, original: str, tmp_path: Path
) -> None:
    before, parameters = copy.deepcopy(llama), dict(llama.named_parameters())
    given = opd_config(original, opd_steps=20, opd_start_tokens=8, checkpoint_minutes=9)
    details = train_module.train(llama, problem_task(given, tmp_path / "recovery")).details["opd"]
    assert (details["steps"], details["rollouts"], details["num_too_long"]) == (20, 160, 0)
    curve = details["divergence"]
    assert sum(curve[-5:]) < 0.6 * sum(curve[:5]), curve
    assert llama.config.to_dict() == before.config.to_dict()
    assert llama.generation_config.to_dict() == before.generation_config.to_dict()
    assert not {"forward", "_is_accelerate_prepared"} & set(llama.__dict__)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in llama.modules())
    assert not llama.training
    assert llama.model_tags is None
    assert all(
        parameter is not parameters[name] and parameter.grad is None
        for name, parameter in llama.named_parameters()
    )
    assert list((tmp_path / "log").glob("events*")), "TensorBoard has the curves"


def test_answers_grow_and_padding_logits_of_the_teacher_count_for_nothing(
    model: PreTrainedModel,
    original: str,
    sampled: list[Sampled],
    tmp_path: Path,
) -> None:
    """The teacher has 384 logits and the model fewer."""
    before = copy.deepcopy(model)
    assert model.config.vocab_size < 384
    given = opd_config(original, opd_max_tokens=16, checkpoint_minutes=9)
    details = train_module.train(model, problem_task(given, tmp_path / "recovery")).details["opd"]
    longest = [max(len(answer) for _, answer in step) for step in sampled]
    assert longest == [4, 10, 16, 16]
    teacher = loading.load_model(original, config().model, "cpu")
    expected = plain_loss(before, teacher, sampled[0], 1.0).item()
    assert details["divergence"][0] == pytest.approx(expected, abs=2e-4)
    assert expected > 1e-2
    fewer = make_model("llama", vocab_size=model.config.vocab_size - 1)
    fewer.save_pretrained(tmp_path / "fewer")
    with pytest.raises(ValueError, match="use another teacher, or --recovery distill"):
        train_module.train(
            model, problem_task(opd_config(str(tmp_path / "fewer")), tmp_path / "other")
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_killed_distillation_ends_bit_identical(
    llama: PreTrainedModel, original: str, tmp_path: Path, dtype: torch.dtype
) -> None:
    """Half of the steps are the second process's."""
    models = [cast(copy.deepcopy(llama), dtype) for _ in range(3)]
    given = opd_config(original, opd_micro_batch=4)
    whole = train_module.train(models[0], problem_task(given, tmp_path / "a" / "recovery"))
    killed = problem_task(given, tmp_path / "b" / "recovery")
    killed_at_step(2, lambda: train_module.train(models[1], killed))
    assert [each.name for each in killed.folder.path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert train_module.train(models[2], killed) == whole
    for name, parameter in models[0].named_parameters():
        assert torch.equal(parameter, models[2].get_parameter(name)), name
        assert parameter.dtype == dtype


def test_checkpoints_hold_every_weight() -> None:
    """What that means is tested beside the class."""
    assert issubclass(OnPolicyTrainer, trainer.ExactCheckpoints)


def test_answer_that_repeats_itself_ends_at_once(
    llama: PreTrainedModel, original: str, sampled: list[Sampled], tmp_path: Path
) -> None:
    """A model that says the same token for ever is stopped after 32 of them."""
    with torch.no_grad():
        for name, parameter in llama.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.zero_()
        llama.lm_head.weight.copy_(100 * llama.model.embed_tokens.weight)
    given = opd_config(
        original,
        opd_steps=1,
        opd_max_tokens=60,
        opd_start_tokens=60,
        opd_temperature=0.01,
    )
    details = train_module.train(llama, problem_task(given, tmp_path / "recovery")).details["opd"]
    assert {len(answer) for _, answer in sampled[0]} == {32}
    assert (details["repeating"], details["finished"]) == ([1.0], [0.0])
    assert details["response_tokens"] == [32.0]


def test_vllm_samples_from_the_pruned_weights_and_its_answers_are_cut_alike(
    llama: PreTrainedModel,
    original: str,
    sampled: list[Sampled],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stand-in for vLLM, which needs a GPU: what it is told, and what becomes of its answers."""
    asked: list[int] = []

    class Engine:
        def __init__(self, model: PreTrainedModel, **settings: Any) -> None:
            self.max_completion_length = settings["max_completion_length"]
            assert settings["temperature"] == 0.7
            start = loading.load_model(model.name_or_path, config().model, "cpu")
            assert torch.equal(start.lm_head.weight, model.lm_head.weight)

        def sync_weights(self) -> None:
            pass

        def generate(self, prompts: list[list[int]], **_: Any) -> Any:
            asked.append(self.max_completion_length)
            return None, [[5, 6] * 20, *[[7, 0]] * (len(prompts) - 1)], None, None

    monkeypatch.setattr(distillation_trainer, "is_vllm_available", lambda: True)
    monkeypatch.setattr(distillation_trainer, "VLLMGeneration", Engine)
    given = opd_config(original, rollouts="vllm", opd_max_tokens=40, opd_temperature=0.7)
    task = problem_task(given, tmp_path / "recovery")
    details = train_module.train(llama, task).details["opd"]
    assert asked == [10, 25, 40, 40]
    assert [len(answer) for _, answer in sampled[0]] == [32, *[2] * 7]
    assert details["repeating"] == [0.125] * 4
    assert details["finished"] == [0.875] * 4
    assert not task.folder.start.path.exists()


def test_run_killed_in_the_final_distillation_ends_bit_identical(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    """After text in a round, and once more at the end, with data of its own."""
    settings: dict[str, Any] = {
        **tiny_run,
        **RUN,
        "rounds": 1,
        "recovery_tokens": 2000,
        "recovery": "cpt,opd",
        "final_recovery": "opd",
        "opd_steps": 3,
        "opd_prompts": 4,
        "opd_prompt_tokens": 64,
        "opd_max_tokens": 8,
        "opd_learning_rate": 1e-3,
    }
    whole = compress(**settings, output=tmp_path / "whole")

    def die(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "round-02" in args.output_dir and state.global_step == 2:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.StopAtNan, "on_step_begin", die)
        with pytest.raises(Killed):
            compress(**settings, output=tmp_path / "killed")
    again = compress(**settings, output=tmp_path / "killed")
    assert [record["opd"] for record in again["rounds"]] == [
        record["opd"] for record in whole["rounds"]
    ]
    assert [len(record["opd"]["divergence"]) for record in again["rounds"]] == [3, 3]
    results = [tmp_path / name / "final" / "model.safetensors" for name in ("whole", "killed")]
    assert results[0].read_bytes() == results[1].read_bytes()
    assert "## On-policy distillation" in (tmp_path / "whole" / "report.md").read_text()


def test_right_answers_come_back_without_a_solution_being_shown(tmp_path: Path) -> None:
    """The bundled model with a quarter of its FFN, not compensated; 20 steps of 32 questions."""
    report = compress(
        model="ptl-demo",
        data="ptl-demo",
        keep=0.25,
        rounds=1,
        scorer="activation",
        compensate=False,
        width_multiple=32,
        calibration_tokens=8192,
        recovery="opd",
        recovery_tokens=40_000,
        sequence_length=256,
        gradient_checkpointing=False,
        opd_steps=20,
        opd_prompts=32,
        opd_learning_rate=5e-4,
        opd_prompt_tokens=64,
        opd_max_tokens=48,
        opd_micro_batch=32,
        eval_tasks="demo_arithmetic_validation",
        eval_batch=250,
        eval_limit=250,
        device="cpu",
        output=tmp_path,
    )
    (record,) = report["rounds"]
    pruned, recovered = (
        next(iter(record[name]["demo_arithmetic_validation"].values()))
        for name in ("eval_pruned", "eval")
    )
    assert recovered > pruned + 0.12, (pruned, recovered)


def test_extension_takes_a_share_of_the_steps(original: str, tmp_path: Path) -> None:
    task = problem_task(opd_config(original, opd_steps=None), tmp_path)
    shorter = registry.RECOVERIES["opd"].shortened(task, 0.25, {"steps": 10})
    assert shorter.opd.opd_steps == 2
    assert dataclasses.replace(shorter, opd=task.opd) == task
