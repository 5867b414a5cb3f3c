"""Shared by the recoveries that let the model answer questions (rollouts): how many answers there
are in a step, their seeds, the order of the questions, and what TRL's trainers change in a model.
"""

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ptl_fast.base import distributed
from ptl_fast.base.disk import model_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from ptl_fast.recovery.task import RecoveryTask

# Bounds that give every (run seed, step, rank) a seed of its own.
MAX_STEPS, MAX_RANKS = 2**24, 2**16


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """What a method samples, according to its settings."""

    method: str
    """Its name in RECOVERIES, with which the flags of its settings begin."""
    steps: int | None
    """Optimizer steps in a round; None if the number of questions decides."""
    prompts: int
    """Questions in one step, over all ranks (--METHOD-prompts)."""
    per_prompt: int = 1
    """Answers to each (--METHOD-rollouts)."""
    prompt: str
    """How questions are asked: auto, template or chat (--METHOD-prompt)."""
    prompt_tokens: int
    """The longest prompt (--METHOD-prompt-tokens)."""
    answer_tokens: int
    """The longest answer."""
    answer_flag: str
    """The flag that this is from."""
    micro_batch: int | None
    """Answers in a forward pass of one rank, at most (--METHOD-micro-batch)."""
    gold: Callable[[str], str] | None = None
    """For rewards: the final answer in the data's answer, empty if it has none. Questions without
    one are left out. None where answers are not compared with the data's.
    """

    @property
    def per_step(self) -> int:
        """Answers in one step, over all ranks."""
        return self.prompts * self.per_prompt

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and the longest answer together."""
        return self.prompt_tokens + self.answer_tokens


def split(rollouts: Rollouts, tokens_per_pass: int) -> tuple[int, int]:
    """Return (micro-batch per rank, in answers; gradient-accumulation steps).

    The micro-batch is the largest divisor of a rank's answers that is at most --METHOD-micro-batch.

    Args:
        tokens_per_pass: without --METHOD-micro-batch, at most this many tokens are in a forward
            pass, if every answer is as long as it may be: as many as in training on text.

    Raises:
        ValueError: a step's answers do not divide among the ranks.
    """
    total, num_ranks = rollouts.per_step, distributed.world_size()
    if total % num_ranks:
        times = f" times --{rollouts.method}-rollouts {rollouts.per_prompt}"
        raise ValueError(
            f"--{rollouts.method}-prompts {rollouts.prompts}{times * (rollouts.per_prompt > 1)} do"
            f" not divide among {num_ranks} ranks; change --{rollouts.method}-prompts"
        )
    own = total // num_ranks
    most = rollouts.micro_batch or max(1, tokens_per_pass // rollouts.longest)
    micro_batch = next(size for size in range(min(most, own), 0, -1) if own % size == 0)
    return micro_batch, own // micro_batch


def num_steps(num_problems: int, rollouts: Rollouts) -> int:
    """Optimizer steps of a round: --METHOD-steps, by default one epoch over the problems."""
    return rollouts.steps or max(1, num_problems // rollouts.prompts)


def seed_of(run_seed: int, step: int) -> int:
    """The seed of this rank's answers in a step.

    By the step alone: the random state at a checkpoint would not be the same after resuming.
    """
    return (run_seed * MAX_STEPS + step) * MAX_RANKS + distributed.rank()


def in_seeded_order(rows: list[dict[str, Any]], number: int, seed: int) -> list[dict[str, Any]]:
    """Return ``number`` rows, over several epochs if needed, each epoch in a new random order."""
    order: list[dict[str, Any]] = []
    generator = random.Random(seed)
    while len(order) < number:
        order += generator.sample(rows, len(rows))
    return order[:number]


@contextlib.contextmanager
def as_given(model: "PreTrainedModel") -> Iterator[None]:
    """Undo TRL's changes to padding token, generation config and tags, which would be saved."""
    pad, generation, tags = (
        model.config.pad_token_id,
        copy.deepcopy(model.generation_config),
        model.model_tags,
    )
    yield
    model.config.pad_token_id, model.generation_config, model.model_tags = pad, generation, tags


@contextlib.contextmanager
def on_disk(model: "PreTrainedModel", task: "RecoveryTask") -> Iterator[None]:
    """Save the model for vLLM and point its name there; nothing without vLLM rollouts.

    vLLM builds its engine from the model's name, which still is the unpruned original's, with
    other shapes. The folder is deleted afterwards.
    """
    if task.trainer.rollouts != "vllm":
        yield
        return
    start, name = task.folder.start, model.config._name_or_path

    def write(folder: "Path") -> None:
        model.save_pretrained(folder)
        task.tokenizer.save_pretrained(folder)

    start.fill(write, model_bytes(model))
    model.config._name_or_path = model.name_or_path = str(start.path)
    yield
    model.config._name_or_path = model.name_or_path = name
    start.remove()
