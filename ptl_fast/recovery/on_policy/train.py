"""Recovery by on-policy distillation (GKD, arXiv 2306.13649), on TRL's DistillationTrainer.

The pruned model answers the data's questions. With its distribution q and the teacher's p at each
token that it has written, the loss is the mean over these tokens of

    KL(q || p)                                          --opd-divergence reverse
    b KL(p || m) + (1 - b) KL(q || m),  m = b p + (1 - b) q          jsd, b = --opd-jsd-beta

over the whole vocabulary. No gradient flows through the sampling.

TRL computes the loss from both models' hidden states in tiles of at most 4096 tokens by 32768
entries of the vocabulary, also in the backward pass: two float32 tiles of at most 512 MiB, whatever
the vocabulary's size. Ours are the sampling (ptl_fast.data.generation, whose answers end where they
repeat themselves, and grow over the steps), the seeds and what a resumed training needs.
"""

import copy
import os
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import DistillationConfig, DistillationTrainer
from trl.models.utils import unwrap_model_for_generation

from ptl_fast.data.generation import Sampling, answer_batch, repeats
from ptl_fast.recovery.borrowed_model import borrowed, tear_down
from ptl_fast.recovery.checkpoints import Checkpoints
from ptl_fast.recovery.learning_rate import WARMUP_SHARE
from ptl_fast.recovery.on_policy.rollouts import longest_answer, rollouts_of
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
from ptl_fast.recovery.teacher import load_teacher
from ptl_fast.recovery.trainer import (
    ExactCheckpoints,
    Progress,
    StopAtNan,
    common_arguments,
    run,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.config.opd import OpdSettings

# Logged values that the round's record keeps of every step: {the log's name: ours}.
LOGGED = {
    "loss": "divergence",
    "completions/mean_length": "response_tokens",
    "completions/finished": "finished",
    "completions/repeating": "repeating",
}


def train(model: "PreTrainedModel", task: RecoveryTask) -> RecoveryResult:
    """Train in place by on-policy distillation: one answer to each of ``opd_prompts`` questions a
    step.

    Every rank samples its part of a step's answers, seeded by run seed, step and rank, so a resumed
    run samples what the interrupted one would have. The teacher stays in memory.

    Returns:
        A result whose ``details["opd"]`` has divergence, lengths etc. of every step.

    Raises:
        Diverged: the loss is NaN or infinite.
        ValueError: no question has a short enough prompt, a step's answers do not divide among the
            ranks, or the teacher lacks tokens of the model.
    """
    rollouts = rollouts_of(task.opd)
    prompts, num_too_long = make_prompts(
        task.problems, task.tokenizer, rollouts, task.trains_on_template, task.name
    )
    # before the arguments exist: they would have ZeRO-3 shard a model that is loaded
    teacher = load_teacher(task, str(model.device))
    _share_vocabulary_(teacher, model)
    arguments = _arguments(model, task, num_steps(len(prompts), rollouts))
    rows = in_seeded_order(prompts, arguments.max_steps * rollouts.prompts, task.seed)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(task.log_folder)
    with borrowed(model, arguments.deepspeed is not None), as_given(model), on_disk(model, task):
        trainer = OnPolicyTrainer(
            task.opd,
            model=model,
            teacher_model=teacher,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            # a copy: it gets a padding token, which must not reach the saved tokenizer
            processing_class=copy.deepcopy(task.tokenizer),
            callbacks=[
                Progress(task.name),
                StopAtNan("--opd-learning-rate"),
                Checkpoints(
                    task.folder, task.trainer.checkpoint_minutes * 60, lambda: arguments.max_steps
                ),
            ],
        )
        trainer.remove_callback(PrinterCallback)
        run(trainer, task.folder.newest_checkpoint(), model)
        record = {"num_too_long": num_too_long, **_record(trainer.state.log_history, task.opd)}
        tear_down(trainer, model)
    return RecoveryResult(details={"opd": record})


class OnPolicyTrainer(ExactCheckpoints, DistillationTrainer):
    """DistillationTrainer whose answers are seeded by step and rank, grow over the steps, and end
    where they repeat themselves.

    Args:
        opd: how answers are sampled.
    """

    def __init__(self, opd: "OpdSettings", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.opd = opd
        # TRL would divide the logits by the sampling's temperature in the loss too
        self.temperature = 1.0

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # for all randomness of a step besides the sampling, such as dropout
        torch.manual_seed(seed_of(self.args.seed, self.state.global_step))
        return super()._generate_and_score_completions(inputs)

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any
    ) -> list[list[int]]:
        """Answer this rank's prompts: token ids with the end-of-sequence token, where reached."""
        longest = longest_answer(self.opd, self.state.global_step, self.args.max_steps)
        if self.use_vllm:
            self.vllm_generation.max_completion_length = longest
            answers = super()._generate_single_turn(prompt_ids, *args, **kwargs)
            answers = [_until_repeating(answer) for answer in answers]
        else:
            answers = self._sample(prompt_ids, longest)
        ends = set(self.eos_token_ids)
        self._note("finished", [answer[-1] in ends for answer in answers])
        self._note("repeating", [repeats(answer) for answer in answers])
        return answers

    def _sample(self, prompt_ids: list[list[int]], longest: int) -> list[list[int]]:
        sampling = Sampling(
            max_new_tokens=longest,
            temperature=self.opd.opd_temperature,
            seed=seed_of(self.args.seed, self.state.global_step),
            stop_repeating=True,
        )
        arguments: Any = self.args
        with unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gradient_checkpointing_kwargs=arguments.gradient_checkpointing_kwargs,
        ) as model:
            answers = answer_batch(model, self._tokenizer, prompt_ids, sampling)
        # which of several ends it was makes no difference: nothing is predicted from it
        end = self.eos_token_ids[:1]
        return [answer.tokens + end * answer.finished for answer in answers]

    def _note(self, name: str, values: list[bool]) -> None:
        """Log the share of all ranks' answers for which this holds."""
        mine = torch.tensor(values, device=self.accelerator.device).float()
        share = self.accelerator.gather(mine).mean().item()
        self._metrics["train"][f"completions/{name}"].append(share)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the card would lie in a checkpoint, which is deleted after the round."""


def _until_repeating(tokens: list[int]) -> list[int]:
    """The beginning of an answer at whose end it repeats itself; all of it if it does not."""
    return next(
        (tokens[:length] for length in range(1, len(tokens)) if repeats(tokens[:length])), tokens
    )


def _share_vocabulary_(teacher: "PreTrainedModel", model: "PreTrainedModel") -> None:
    """Drop the teacher's logits beyond the model's, in place: padding, which belongs to no token.

    Raises:
        ValueError: it has fewer.
    """
    theirs, ours = (each.config.get_text_config().vocab_size for each in (teacher, model))
    if theirs < ours:
        raise ValueError(
            f"--teacher has {theirs} logits and the model {ours}: their distributions are compared"
            " over the whole vocabulary; use another teacher, or --recovery distill"
        )
    if theirs > ours:
        teacher.resize_token_embeddings(ours)


def _arguments(model: "PreTrainedModel", task: RecoveryTask, num_steps: int) -> DistillationConfig:
    """DistillationConfig for ``num_steps`` steps."""
    opd, rollouts = task.opd, rollouts_of(task.opd)
    micro_batch, accumulation = split(rollouts, task.trainer.micro_batch * task.sequence_length)
    arguments = DistillationConfig(
        max_steps=num_steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=opd.opd_learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=int(WARMUP_SHARE * num_steps),
        beta=opd.beta,
        # of vLLM's sampling; see OnPolicyTrainer for the loss
        temperature=opd.opd_temperature,
        max_completion_length=opd.opd_max_tokens,
        shuffle_dataset=False,  # the rows are in a seeded order already
        use_vllm=task.trainer.rollouts == "vllm",
        vllm_max_model_length=rollouts.longest,
        **common_arguments(model, task),
    )
    # without a launcher, several visible GPUs would mean nn.DataParallel
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _record(logs: list[dict[str, Any]], opd: "OpdSettings") -> dict[str, Any]:
    """Summarise the training logs for the round's record.

    Lists have a value per step under the names of LOGGED: the mean divergence per token, in nats,
    and means over the answers.
    """
    logs = [log for log in logs if "loss" in log]
    # a divergence of 0 may be rounded to just below it, and -0.0 is no number to show
    curves = {ours: [round(log[name], 4) + 0.0 for log in logs] for name, ours in LOGGED.items()}
    return {"steps": len(logs), "rollouts": len(logs) * opd.opd_prompts, **curves}
