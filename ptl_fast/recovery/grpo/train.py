"""Reinforcement learning with verifiable rewards (GRPO, arXiv 2402.03300) on the round's problems,
by TRL's GRPOTrainer.
"""

import contextlib
import copy
import os
import random
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.models import prepare_deepspeed
from trl.trainer.utils import add_fused_lm_head

from ptl_fast.base import distributed
from ptl_fast.recovery.borrowed_model import borrowed, tear_down
from ptl_fast.recovery.checkpoints import Checkpoints, newest_checkpoint
from ptl_fast.recovery.grpo.prompts import make_prompts
from ptl_fast.recovery.grpo.rewards import REWARDS, parse_weights
from ptl_fast.recovery.learning_rate import WARMUP_SHARE
from ptl_fast.recovery.task import RecoveryResult, RecoveryTask
from ptl_fast.recovery.trainer import Progress, StopAtNan, common_arguments, run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.config.grpo import GrpoSettings

# Every step and rank has a seed of its own, below 2**63.
MAX_STEPS, MAX_RANKS = 2**24, 2**16
# What the record keeps of every step besides the rewards: TRL's names and ours.
LOGGED = {
    "reward": "reward",
    "completions/clipped_ratio": "truncated",
    "completions/mean_length": "response_tokens",
    "kl": "kl",
}


def train(model: "PreTrainedModel", task: RecoveryTask) -> RecoveryResult:
    """Sample ``grpo_rollouts`` responses to each problem and make the better ones likelier, in
    place.

    Every rank samples its part of a step's rollouts, with a seed made of the run's seed, the step
    and the rank: what was killed goes on with the same rollouts. The weights that the model begins
    with are the reference model of ``grpo_kl``.

    Raises:
        ValueError: no problem has a question that is short enough, the loss is NaN or infinite, or
            a step's rollouts do not divide among the ranks.
    """
    grpo = task.grpo
    prompts, num_too_long = make_prompts(
        task.problems, task.tokenizer, grpo, task.trains_on_template, task.name
    )
    arguments = _arguments(model, task, num_steps(len(prompts), grpo))
    reference = copy.deepcopy(model) if grpo.grpo_kl else None
    rows = _in_seeded_order(prompts, arguments.max_steps * grpo.grpo_prompts, task.seed)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(task.log_folder)
    with (
        borrowed(model, arguments.deepspeed is not None),
        _as_given(model),
        _on_disk(model, task),
    ):
        trainer = RolloutTrainer(
            reference,
            grpo.grpo_kl,
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            # a copy: it gets a padding token, which must not reach the saved tokenizer
            processing_class=copy.deepcopy(task.tokenizer),
            reward_funcs=[_reward(name) for name in parse_weights(grpo.reward_weights)],
            callbacks=[
                Progress(task.name, "reward"),
                StopAtNan("--grpo-learning-rate"),
                Checkpoints(
                    task.folder, task.trainer.checkpoint_minutes * 60, lambda: arguments.max_steps
                ),
            ],
        )
        trainer.remove_callback(PrinterCallback)
        run(trainer, newest_checkpoint(task.folder), model)
        record = {"num_too_long": num_too_long, **_record(trainer.state.log_history, grpo)}
        tear_down(trainer, model)
    return RecoveryResult(details={"grpo": record})


def rollout_split(grpo: "GrpoSettings", tokens_per_pass: int) -> tuple[int, int]:
    """(rollouts in a rank's forward pass, forward passes in a step): --grpo-micro-batch, or no more
    tokens than in a pass of text.

    Raises:
        ValueError: a step's rollouts do not divide among the ranks.
    """
    total, num_ranks = grpo.grpo_prompts * grpo.grpo_rollouts, distributed.world_size()
    if total % num_ranks:
        raise ValueError(
            f"--grpo-prompts {grpo.grpo_prompts} times --grpo-rollouts {grpo.grpo_rollouts} do"
            f" not divide among {num_ranks}"
            " ranks; change one of them"
        )
    longest = grpo.grpo_prompt_tokens + grpo.grpo_response_tokens
    most = grpo.grpo_micro_batch or max(1, tokens_per_pass // longest)
    micro_batch = next(
        size
        for size in range(min(most, total // num_ranks), 0, -1)
        if total // num_ranks % size == 0
    )
    return micro_batch, total // num_ranks // micro_batch


def num_steps(num_problems: int, grpo: "GrpoSettings") -> int:
    """Optimizer steps of a round: as many as were asked for, or as see each problem once."""
    return grpo.grpo_steps or max(1, num_problems // grpo.grpo_prompts)


class RolloutTrainer(GRPOTrainer):
    """GRPOTrainer with a reference model that is given, and rollouts that follow from the step
    alone.
    """

    def __init__(self, reference: "PreTrainedModel | None", kl: float, **kwargs: Any) -> None:
        # with beta=0: otherwise it would load the original model as the reference, unpruned
        super().__init__(**kwargs)
        if reference is not None:
            add_fused_lm_head(reference, temperature=self.temperature)
            if self.is_deepspeed_enabled:
                self.ref_model = prepare_deepspeed(reference, self.accelerator)
            else:
                self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
            self.beta = kl

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        torch.manual_seed(
            (self.args.seed * MAX_STEPS + self.state.global_step) * MAX_RANKS + distributed.rank()
        )
        return super()._generate_and_score_completions(inputs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: what lies in a checkpoint goes with it."""


def _in_seeded_order(rows: list[dict[str, Any]], number: int, seed: int) -> list[dict[str, Any]]:
    """``number`` rows, epoch after epoch, each in an order of its own."""
    order: list[dict[str, Any]] = []
    generator = random.Random(seed)
    while len(order) < number:
        order += generator.sample(rows, len(rows))
    return order[:number]


def _reward(name: str) -> Callable[..., list[float]]:
    """The reward as TRL calls it, under its name."""

    def reward(completions: list[Any], answer: list[str], **kwargs: Any) -> list[float]:
        texts = [
            completion if isinstance(completion, str) else completion[-1]["content"]
            for completion in completions
        ]
        return [REWARDS[name](gold, text) for gold, text in zip(answer, texts, strict=True)]

    reward.__name__ = name
    return reward


def _arguments(model: "PreTrainedModel", task: RecoveryTask, num_steps: int) -> GRPOConfig:
    grpo = task.grpo
    tokens_per_pass = task.trainer.micro_batch * task.sequence_length
    micro_batch, accumulation = rollout_split(grpo, tokens_per_pass)
    arguments = GRPOConfig(
        max_steps=num_steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=grpo.grpo_learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=int(WARMUP_SHARE * num_steps),
        num_generations=grpo.grpo_rollouts,
        temperature=grpo.grpo_temperature,
        max_completion_length=grpo.grpo_response_tokens,
        reward_weights=list(parse_weights(grpo.reward_weights).values()),
        shuffle_dataset=False,
        use_vllm=grpo.rollouts == "vllm",
        vllm_max_model_length=grpo.grpo_prompt_tokens + grpo.grpo_response_tokens,
        **common_arguments(model, task),
    )
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


@contextlib.contextmanager
def _as_given(model: "PreTrainedModel") -> Iterator[None]:
    """Undo what TRL writes to the model besides its weights, for all of it would be saved."""
    pad, generation, tags = (
        model.config.pad_token_id,
        copy.deepcopy(model.generation_config),
        model.model_tags,
    )
    yield
    model.config.pad_token_id, model.generation_config, model.model_tags = pad, generation, tags


@contextlib.contextmanager
def _on_disk(model: "PreTrainedModel", task: RecoveryTask) -> Iterator[None]:
    """For vLLM, which loads a model by its name: have this one, which is smaller than the one of
    that name, in a folder.
    """
    if task.grpo.rollouts != "vllm":
        yield
        return
    folder, name = task.folder / "start", model.config._name_or_path
    if distributed.is_main():
        model.save_pretrained(folder)
        task.tokenizer.save_pretrained(folder)
    distributed.barrier()
    model.config._name_or_path = model.name_or_path = str(folder)
    yield
    model.config._name_or_path = model.name_or_path = name
    if distributed.is_main():
        shutil.rmtree(folder)


def _record(logs: list[dict[str, Any]], grpo: "GrpoSettings") -> dict[str, Any]:
    """What the round's record keeps: the mean over rollouts of each reward and some more, step by
    step.
    """
    logs = [log for log in logs if "reward" in log]
    rewards = list(parse_weights(grpo.reward_weights))
    names = LOGGED | {f"rewards/{name}/mean": name for name in rewards}
    steps = {
        ours: [round(log[name], 4) for log in logs]
        for name, ours in names.items()
        if name in logs[0]
    }
    return {
        "steps": len(logs),
        "rollouts": len(logs) * grpo.grpo_prompts * grpo.grpo_rollouts,
        "always_zero": [
            name for name in rewards if not any(log[f"rewards/{name}/mean"] for log in logs)
        ],
        **steps,
    }
