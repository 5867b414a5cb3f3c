"""Texts must fit into the model's positions: packed sequences, prompts and their answers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ptl_fast.base.console import say
from ptl_fast.config.checking import flag
from ptl_fast.config.config import FIELDS
from ptl_fast.evaluation.chat import LoadedChat
from ptl_fast.recovery import registry

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ptl_fast.config.config import Config
    from ptl_fast.evaluation.tasks import LoadedTask

# of lm-eval, for tasks that do not say how long an answer may be
ANSWER_TOKENS = 256


def fitted(config: "Config", original: "PretrainedConfig") -> "Config":
    """The settings, with the default of --sequence-length lowered to the model's positions.

    Before the run's identity is taken: of a model that has enough of them it is as it was.

    Raises:
        ValueError: what was asked for is longer than the model's positions.
    """
    limit = _positions(original)
    length, default = config.data.sequence_length, FIELDS["sequence_length"].default
    # two tokens at least: each is predicted from those before
    if length == default and limit is not None and 2 <= limit < default:
        say(f"--sequence-length is {limit}, as {config.model.model} has no more positions.")
        config = config.changed(sequence_length=limit)
    check_lengths(config, original)
    return config


def check_lengths(config: "Config", original: "PretrainedConfig") -> None:
    """Raise ValueError if a sequence is longer than the model's max_position_embeddings."""
    limit = _positions(original)
    lengths = {flag("sequence_length"): config.data.sequence_length}
    # a prompt and its answer are one sequence
    for each in registry.rollouts_of(config.recovery.all_recoveries, config.grpo, config.opd):
        lengths[f"--{each.method}-prompt-tokens and {each.answer_flag}"] = each.longest
    if config.traces.traces:
        # and a prompt
        lengths[flag("traces_max_tokens")] = config.traces.max_tokens(limit) + 1
    for name, length in lengths.items():
        # some architectures have no limit in their config
        if limit is not None and length > limit:
            raise ValueError(
                f"{name}: {length} tokens are more than the {limit} positions of"
                f" {config.model.model}; lower the setting"
            )


def check_answers(loaded: "Mapping[str, LoadedTask]", original: "PretrainedConfig") -> None:
    """Raise ValueError if a task's answers do not fit into the model, a chat task's behind its
    longest prompt. Other prompts lose their beginning, the examples, where both do not fit.
    """
    limit = _positions(original)
    if limit is None:
        return
    for label, task in loaded.items():
        if isinstance(task, LoadedChat):
            if task.longest > limit:
                raise ValueError(
                    f"evaluation task {label}: its longest prompt with an answer of"
                    f" --eval-max-tokens {task.max_tokens} has {task.longest} tokens, more than the"
                    f" model's {limit} positions; lower --eval-max-tokens"
                )
        elif (asked := _answer_tokens(task)) >= limit:
            raise ValueError(
                f"evaluation task {label}: its answers may have {asked} tokens, which leaves no"
                f" room for a question in the model's {limit} positions; leave it out of"
                " --eval-tasks"
            )


def _answer_tokens(task: "Mapping[str, Any]") -> int:
    """How long an answer of a loaded lm-eval task may be; 0 if it asks for none."""
    (own,) = task["tasks"].values()
    if own.OUTPUT_TYPE != "generate_until":
        return 0
    asked = (own.config.generation_kwargs or {}).get("max_gen_toks", ANSWER_TOKENS)
    return int(asked)


def _positions(original: "PretrainedConfig") -> int | None:
    """The longest text that the model reads; None if its config has no limit."""
    limit: int | None = getattr(original, "max_position_embeddings", None)
    return limit
