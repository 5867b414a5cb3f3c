"""Checks before any work is done: names of variants, lengths, what is installed."""

import importlib.util
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ptl_fast.base.console import say
from ptl_fast.config.config import Config, check_deepspeed
from ptl_fast.run import inputs

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def mention_missing_kernels(device: str) -> None:
    from ptl_kernels import cpu

    if device == "cpu" and not cpu.available():
        say(
            "Scoring runs on plain PyTorch: the C++ kernels were not built; with a C++ compiler,"
            " install again to have them."
        )


def mention_missing_protections() -> None:
    from ptl_fast.evaluation import sandbox

    missing = sandbox.missing_protections()
    if missing:
        say(
            "Generated code runs with limits on time and memory, but without"
            f" {', '.join(missing)}: see ptl_fast/evaluation/sandbox.py."
        )


def check_names(config: Config) -> None:
    from ptl_fast.recovery import registry
    from ptl_fast.recovery.grpo import rewards
    from ptl_fast.scoring import scorers

    names: list[tuple[str, str, Iterable[str]]] = [
        ("--scorer", config.scorer, scorers.SCORERS),
        ("--layer-scorer", config.layer_scorer, scorers.LAYER_SCORERS),
        *(("--recovery", name, registry.RECOVERIES) for name in config.recoveries),
        *(("--final-recovery", name, registry.RECOVERIES) for name in config.final_recoveries),
    ]
    for flag, name, choices in names:
        if name not in choices:
            raise ValueError(f"unknown {flag} {name}; choose {', '.join(choices)}")
    inputs.make_form(config)
    rewards.parse_weights(config.reward_weights)
    if config.rollouts == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "--rollouts vllm: vllm is not installed; pip install vllm, or use --rollouts"
            " transformers"
        )
    if config.deepspeed is not None:
        check_deepspeed(config.deepspeed)


def check_lengths(config: Config, hf_config: "PretrainedConfig") -> None:
    """Raise ValueError when a sequence would have positions that the model does not know."""
    limit = getattr(hf_config, "max_position_embeddings", None)
    lengths = {"--sequence-length": config.sequence_length}
    if config.uses_grpo:
        lengths["--grpo-prompt-tokens and --grpo-response-tokens"] = (
            config.grpo_prompt_tokens + config.grpo_response_tokens
        )
    for flag, length in lengths.items():
        if limit is not None and length > limit:
            raise ValueError(
                f"{flag}: {length} tokens are more than the {limit} positions of {config.model};"
                " lower the setting"
            )
