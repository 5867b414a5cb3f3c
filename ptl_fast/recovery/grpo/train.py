"""Recovery by GRPO (arXiv 2402.03300) with verifiable rewards, on TRL's GRPOTrainer."""

import copy
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.models import prepare_deepspeed
from trl.trainer.utils import add_fused_lm_head

from ptl_fast.recovery.borrowed_model import borrowed, tear_down
from ptl_fast.recovery.checkpoints import Checkpoints
from ptl_fast.recovery.grpo.rewards import REWARDS, parse_weights
from ptl_fast.recovery.grpo.rollouts import rollouts_of
from ptl_fast.recovery.learning_rate import WARMUP_SHARE
from ptl_fast.recovery.prompts import make_prompts
from ptl_fast.recovery.rollouts import (
    as_given,
    in_seeded_order,
    num_steps,
    on_disk,
    seed_of,
    split,
)
from ptl_fast.recovery.task import RecoveryResult, RecoveryTask
from ptl_fast.recovery.trainer import (
    ExactCheckpoints,
    Progress,
    StopAtNan,
    common_arguments,
    run,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.config.grpo import GrpoSettings

# Logged values that the round's record keeps of every step besides the rewards: {TRL's name: ours}.
LOGGED = {
    "reward": "reward",
    "completions/clipped_ratio": "truncated",
    "completions/mean_length": "response_tokens",
    "kl": "kl",
}


def train(model: "PreTrainedModel", task: RecoveryTask) -> RecoveryResult:
    """Train in place by GRPO: ``grpo_rollouts`` responses per problem, ``grpo_prompts`` a step.

    Every rank samples its part of a step's rollouts, seeded by run seed, step and rank, so a
    resumed run samples what the interrupted one would have. With ``grpo_kl`` above 0 the reference
    model of the KL term is a copy of the model as it is on entry (already pruned).

    Returns:
        A result whose ``details["grpo"]`` has rewards, response lengths etc. of every step.

    Raises:
        Diverged: the loss is NaN or infinite.
        ValueError: no problem has a short enough prompt, or a step's rollouts do not divide among
            the ranks.
    """
    grpo = task.grpo
    rollouts = rollouts_of(grpo)
    prompts, num_too_long = make_prompts(
        task.problems, task.tokenizer, rollouts, task.trains_on_template, task.name
    )
    arguments = _arguments(model, task, num_steps(len(prompts), rollouts))
    reference = copy.deepcopy(model) if grpo.grpo_kl else None
    rows = in_seeded_order(prompts, arguments.max_steps * grpo.grpo_prompts, task.seed)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(task.log_folder)
    with (
        borrowed(model, arguments.deepspeed is not None),
        as_given(model),
        on_disk(model, task),
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
        run(trainer, task.folder.newest_checkpoint(), model)
        record = {"num_too_long": num_too_long, **_record(trainer.state.log_history, grpo)}
        tear_down(trainer, model)
    return RecoveryResult(details={"grpo": record})


class RolloutTrainer(ExactCheckpoints, GRPOTrainer):
    """GRPOTrainer with a given reference model, and rollouts that are seeded by step and rank.

    Args:
        reference: the reference model of the KL term, or None without one.
        kl: factor of the KL term (TRL's beta).
    """

    def __init__(self, reference: "PreTrainedModel | None", kl: float, **kwargs: Any) -> None:
        # with its default beta=0: otherwise TRL would load the reference by the model's name, and
        # that is the original model, not the pruned one
        super().__init__(**kwargs)
        if reference is not None:
            # what GRPOTrainer's constructor does with a reference model of its own
            add_fused_lm_head(reference, temperature=self.temperature)
            if self.is_deepspeed_enabled:
                self.ref_model = prepare_deepspeed(reference, self.accelerator)
            else:
                self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
            self.beta = kl

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        torch.manual_seed(seed_of(self.args.seed, self.state.global_step))
        return super()._generate_and_score_completions(inputs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the card would lie in a checkpoint, which is deleted after the round."""


def _reward(name: str) -> Callable[..., list[float]]:
    """Return the reward ``name`` with the signature that TRL calls; TRL logs it by ``__name__``."""

    def reward(completions: list[Any], answer: list[str], **kwargs: Any) -> list[float]:
        # a chat's completion is a list of messages, the last of which is the response
        texts = [
            completion if isinstance(completion, str) else completion[-1]["content"]
            for completion in completions
        ]
        return [REWARDS[name](gold, text) for gold, text in zip(answer, texts, strict=True)]

    reward.__name__ = name
    return reward


def _arguments(model: "PreTrainedModel", task: RecoveryTask, num_steps: int) -> GRPOConfig:
    """GRPOConfig for ``num_steps`` steps; beta stays 0, see ``RolloutTrainer``."""
    grpo = task.grpo
    tokens_per_pass = task.trainer.micro_batch * task.sequence_length
    micro_batch, accumulation = split(rollouts_of(grpo), tokens_per_pass)
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
        shuffle_dataset=False,  # the rows are in a seeded order already
        use_vllm=task.trainer.rollouts == "vllm",
        vllm_max_model_length=grpo.grpo_prompt_tokens + grpo.grpo_response_tokens,
        **common_arguments(model, task),
    )
    # without a launcher, several visible GPUs would mean nn.DataParallel
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _record(logs: list[dict[str, Any]], grpo: "GrpoSettings") -> dict[str, Any]:
    """Summarise the training logs for the round's record.

    Lists have a value per step, the mean over its rollouts, under the names of LOGGED and of the
    rewards. ``always_zero`` names rewards that were 0 in every rollout: nothing was learned there.
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
