"""Recovery by distillation."""

import math
from dataclasses import dataclass

from ptl_fast.config.checking import as_text, check_at_least_one


@dataclass(kw_only=True)
class DistillSettings:
    """Recovery by distillation."""

    teacher: str | None = None
    """With distill or opd: folder or hub name of the model to learn from, with the vocabulary of
    --model (default: --model itself).
    """

    teacher_revision: str | None = None
    """Branch, tag or commit of a --teacher on the hub (default: its main branch)."""

    distill_weight: float = 0.9
    """With distill: the share of the divergence from the teacher in the loss, in (0, 1]; the rest
    is cpt's loss.
    """

    distill_temperature: float = 2.0
    """With distill: what both models' logits are divided by in the divergence. Above 1, unlikely
    tokens count more.
    """

    distill_top_k: int = 64
    """With distill: how many of the teacher's likeliest tokens are kept of each position; all
    others are one. On disk, a token of the data takes 4 bytes for each (6 with a vocabulary above
    65536) until its round is finished."""

    def __post_init__(self) -> None:
        self.teacher = as_text(self.teacher)

    def check(self) -> None:
        """Raise ValueError for a setting out of range."""
        check_at_least_one(self, ["distill_top_k"])
        if self.teacher_revision is not None and self.teacher is None:
            raise ValueError(
                "--teacher-revision is of --teacher, which is not given; --revision is of --model"
            )
        if not 0 < self.distill_weight <= 1:
            raise ValueError(
                f"--distill-weight {self.distill_weight} is outside (0, 1]; without the teacher"
                " use --recovery cpt"
            )
        if not 0 < self.distill_temperature < math.inf:
            raise ValueError(
                f"--distill-temperature {self.distill_temperature} must be a positive number, for"
                " example 1"
            )
