"""Recovery by GRPO (arXiv 2402.03300) with verifiable rewards, on TRL's GRPOTrainer."""

import contextlib
import copy
import os
import random
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
from ptl_fast.recovery.checkpoints import Checkpoints
from ptl_fast.recovery.grpo.prompts import make_prompts
from ptl_fast.recovery.grpo.rewards import REWARDS, parse_weights
from ptl_fast.recovery.learning_rate import WARMUP_SHARE
from ptl_fast.recovery.task import RecoveryResult, RecoveryTask
from ptl_fast.recovery.trainer import Progress, StopAtNan, common_arguments, run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.config.grpo import GrpoSettings

# Bounds that give every (run seed, step, rank) a seed of its own.
MAX_STEPS, MAX_RANKS = 2**24, 2**16
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
        run(trainer, task.folder.newest_checkpoint(), model)
        record = {"num_too_long": num_too_long, **_record(trainer.state.log_history, grpo)}
        tear_down(trainer, model)
    return RecoveryResult(details={"grpo": record})


def rollout_split(grpo: "GrpoSettings", tokens_per_pass: int) -> tuple[int, int]:
    """Return (micro-batch per rank, in rollouts; gradient-accumulation steps).

    The micro-batch is the largest divisor of a rank's rollouts that is at most --grpo-micro-batch.

    Args:
        tokens_per_pass: without --grpo-micro-batch, at most this many tokens are in a forward
            pass, if every rollout is as long as it may be: as many as in training on text.

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
    """Optimizer steps of a round: --grpo-steps, by default one epoch over the problems."""
    return grpo.grpo_steps or max(1, num_problems // grpo.grpo_prompts)


class RolloutTrainer(GRPOTrainer):
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
        # by the step alone: the random state at a checkpoint would not be the same after resuming
        torch.manual_seed(
            (self.args.seed * MAX_STEPS + self.state.global_step) * MAX_RANKS + distributed.rank()
        )
        return super()._generate_and_score_completions(inputs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the card would lie in a checkpoint, which is deleted after the round."""


def _in_seeded_order(rows: list[dict[str, Any]], number: int, seed: int) -> list[dict[str, Any]]:
    """Return ``number`` rows, over several epochs if needed, each epoch in a new random order."""
    order: list[dict[str, Any]] = []
    generator = random.Random(seed)
    while len(order) < number:
        order += generator.sample(rows, len(rows))
    return order[:number]


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
        shuffle_dataset=False,  # the rows are in a seeded order already
        use_vllm=grpo.rollouts == "vllm",
        vllm_max_model_length=grpo.grpo_prompt_tokens + grpo.grpo_response_tokens,
        **common_arguments(model, task),
    )
    # without a launcher, several visible GPUs would mean nn.DataParallel
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


@contextlib.contextmanager
def _as_given(model: "PreTrainedModel") -> Iterator[None]:
    """Undo TRL's changes to padding token, generation config and tags, which would be saved."""
    pad, generation, tags = (
        model.config.pad_token_id,
        copy.deepcopy(model.generation_config),
        model.model_tags,
    )
    yield
    model.config.pad_token_id, model.generation_config, model.model_tags = pad, generation, tags


@contextlib.contextmanager
def _on_disk(model: "PreTrainedModel", task: RecoveryTask) -> Iterator[None]:
    """Save the model for vLLM and point its name there; nothing without vLLM rollouts.

    vLLM builds its engine from the model's name, which still is the unpruned original's, with
    other shapes. The folder is deleted afterwards.
    """
    if task.grpo.rollouts != "vllm":
        yield
        return
    start, name = task.folder.start, model.config._name_or_path
    start.save(model, task.tokenizer)
    model.config._name_or_path = model.name_or_path = str(start.path)
    yield
    model.config._name_or_path = model.name_or_path = name
    start.remove()


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
