"""The teacher is --teacher, or else the original."""

from pathlib import Path

import torch

from ptl_fast.recovery.teacher import load_teacher
from support.models import make_model
from support.recovery import config, packed, task


def test_teacher_is_the_original_unless_another_is_named(tmp_path: Path) -> None:
    for name, width in (("original", 48), ("other", 64)):
        model = make_model("llama", intermediate_size=width)
        model.to(torch.float16).save_pretrained(tmp_path / name)
    given = config(model=str(tmp_path / "original"), dtype="bfloat16")
    own = task(packed(), 100, given, tmp_path / "recovery")
    teacher = load_teacher(own, "cpu")
    assert teacher.config.intermediate_size == 48
    assert teacher.dtype == torch.float32, "auto on a CPU, whatever --dtype says of the model"
    given.distill.teacher = str(tmp_path / "other")
    given.model.merge_adapter, given.model.revision = True, "v1"
    assert load_teacher(own, "cpu").config.intermediate_size == 64, "those are --model's"
