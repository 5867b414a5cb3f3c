"""The plain formula of distillation, and a teacher's predictions of small random data."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ptl_fast.base.run_files import RecoveryFolder
from ptl_fast.config.config import Config
from ptl_fast.data.packing import PackedTokens
from ptl_fast.recovery.distillation import teacher_cache
from ptl_fast.recovery.distillation.teacher_cache import TeacherCache
from ptl_fast.recovery.task import RecoveryTask
from support.recovery import config, packed, task


def distill_task(
    folder: Path, values: Config | None = None, num_tokens: int = 1500
) -> RecoveryTask:
    return task(packed(), num_tokens, values or config(), folder / "recovery")


def distill_config(original: str, **changes: object) -> Config:
    return config(**{"recovery": "distill", "teacher": original, "distill_top_k": 16, **changes})


def plain_divergence(
    student: Tensor, teacher: Tensor, tokens: Tensor | None, temperature: float
) -> Tensor:
    """In float64, with the tokens that are not named as one outcome; the whole divergence where
    none are named.
    """
    p, q = ((logits.double() / temperature).softmax(-1) for logits in (teacher, student))
    if tokens is not None and tokens.shape[-1] < p.shape[-1]:
        named = torch.zeros_like(p, dtype=torch.bool).scatter(-1, tokens, True)
        p, q = (
            torch.cat([each.gather(-1, tokens), each.where(~named, 0).sum(-1, keepdim=True)], -1)
            for each in (p, q)
        )
    return (p * (p.log() - q.log())).sum(-1)


def random_logits(*shape: int) -> tuple[Tensor, Tensor]:
    """Student and teacher; the teacher is sure of itself, as trained models are."""
    return torch.randn(*shape), torch.randn(*shape) * 4


def cached(
    folder: Path, num_rows: int | None = None, top_k: int = 16
) -> tuple[TeacherCache, PackedTokens]:
    tokens = packed()
    rows = torch.arange(len(tokens))[1:num_rows]
    return TeacherCache(RecoveryFolder(folder), rows, tokens.input_ids.shape[1], top_k, 384), tokens


def fill(
    cache: TeacherCache,
    tokens: PackedTokens,
    load: Callable[[], PreTrainedModel],
    temperature: float = 2.0,
) -> None:
    teacher_cache.fill(cache, tokens, load, 16, temperature, 384, batch_size=2, description="")
