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
from ptl_fast.recovery import trainer as trainer_module
from ptl_fast.recovery.grpo.prompts import make_prompts
from ptl_fast.recovery.grpo.rewards import REWARDS, parse_weights
from ptl_fast.recovery.learning_rate import WARMUP_SHARE
from ptl_fast.recovery.token_budget import Spent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.config.config import Config
    from ptl_fast.recovery.task import Lesson

MAX_STEPS, MAX_RANKS = (
    2**24,
    2**16,
)  # so that every step and rank has a seed of its own, below 2**63
# What the record keeps of every step besides the rewards: TRL's names and ours.
LOGGED = {
    "reward": "reward",
    "completions/clipped_ratio": "truncated",
    "completions/mean_length": "response_tokens",
    "kl": "kl",
}


def grpo(model: "PreTrainedModel", lesson: "Lesson", config: "Config") -> Spent:
    """Sample ``config.grpo_rollouts`` responses to each problem and make the better ones likelier,
    in place.

    Every rank samples its part of a step's rollouts, with a seed made of the run's seed, the step
    and the rank: what was killed goes on with the same rollouts. The weights that the model begins
    with are the reference of ``config.grpo_kl``.

    Raises:
        ValueError: no problem has a question that is short enough, the loss is NaN or infinite, or
            a step's rollouts do not divide among the ranks.
    """
    prompts, num_too_long = make_prompts(lesson.problems, lesson.tokenizer, config, lesson.name)
    arguments = _arguments(model, lesson, config, num_steps(len(prompts), config))
    reference = copy.deepcopy(model) if config.grpo_kl else None
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(lesson.log_folder)
    with (
        trainer_module.borrowed(model, arguments.deepspeed is not None),
        _as_given(model),
        _on_disk(model, lesson, config),
    ):
        trainer = RoundTrainer(
            reference,
            config.grpo_kl,
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(
                _in_seeded_order(prompts, arguments.max_steps * config.grpo_prompts, config.seed)
            ),
            processing_class=copy.deepcopy(
                lesson.tokenizer
            ),  # it gets a padding token, which must not reach the saved one
            reward_funcs=[_reward(name) for name in parse_weights(config.reward_weights)],
            callbacks=[
                trainer_module.Progress(lesson.name, "reward"),
                trainer_module.StopAtNan("--grpo-learning-rate"),
                trainer_module.Checkpoints(
                    lesson.folder, config.checkpoint_minutes * 60, lambda: arguments.max_steps
                ),
            ],
        )
        trainer.remove_callback(PrinterCallback)
        trainer_module.run(trainer, trainer_module.newest_checkpoint(lesson.folder), model)
        record = {"num_too_long": num_too_long, **_record(trainer.state.log_history, config)}
        trainer_module.tear_down(trainer, model)
    return Spent(details={"grpo": record})


def num_steps(num_problems: int, config: "Config") -> int:
    """Optimizer steps of a round: as many as were asked for, or as see each problem once."""
    return config.grpo_steps or max(1, num_problems // config.grpo_prompts)


class RoundTrainer(GRPOTrainer):
    """GRPOTrainer with a reference model that is given, and rollouts that follow from the step
    alone.
    """

    def __init__(self, reference: "PreTrainedModel | None", kl: float, **kwargs: Any) -> None:
        super().__init__(
            **kwargs
        )  # with beta=0, for otherwise it would load the original model as the reference, unpruned
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


def _arguments(
    model: "PreTrainedModel", lesson: "Lesson", config: "Config", num_steps: int
) -> GRPOConfig:
    micro_batch, accumulation = trainer_module.rollout_split(config)
    arguments = GRPOConfig(
        max_steps=num_steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=config.grpo_learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=int(WARMUP_SHARE * num_steps),
        num_generations=config.grpo_rollouts,
        temperature=config.grpo_temperature,
        max_completion_length=config.grpo_response_tokens,
        reward_weights=list(parse_weights(config.reward_weights).values()),
        shuffle_dataset=False,
        use_vllm=config.rollouts == "vllm",
        vllm_max_model_length=config.grpo_prompt_tokens + config.grpo_response_tokens,
        **trainer_module.common_arguments(model, lesson.folder, config),
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
def _on_disk(model: "PreTrainedModel", lesson: "Lesson", config: "Config") -> Iterator[None]:
    """For vLLM, which loads a model by its name: have this one, which is smaller than the one of
    that name, in a folder.
    """
    if config.rollouts != "vllm":
        yield
        return
    folder, name = lesson.folder / "start", model.config._name_or_path
    if distributed.is_main():
        model.save_pretrained(folder)
        lesson.tokenizer.save_pretrained(folder)
    distributed.barrier()
    model.config._name_or_path = model.name_or_path = str(folder)
    yield
    model.config._name_or_path = model.name_or_path = name
    if distributed.is_main():
        shutil.rmtree(folder)


def _record(logs: list[dict[str, Any]], config: "Config") -> dict[str, Any]:
    """What the round's record keeps: the mean over rollouts of each reward and some more, step by
    step.
    """
    logs = [log for log in logs if "reward" in log]
    rewards = list(parse_weights(config.reward_weights))
    names = LOGGED | {f"rewards/{name}/mean": name for name in rewards}
    steps = {
        ours: [round(log[name], 4) for log in logs]
        for name, ours in names.items()
        if name in logs[0]
    }
    return {
        "steps": len(logs),
        "rollouts": len(logs) * config.grpo_prompts * config.grpo_rollouts,
        "always_zero": [
            name for name in rewards if not any(log[f"rewards/{name}/mean"] for log in logs)
        ],
        **steps,
    }
