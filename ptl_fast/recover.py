"""Recovery: the training that follows each pruning. One module a method; here is which there are."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ptl_fast.budget import Spent
from ptl_fast.cpt import cpt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.config import Config
    from ptl_fast.lesson import Lesson


def none(model: "PreTrainedModel", lesson: "Lesson", config: "Config") -> Spent:
    """No recovery: pruning alone."""
    return Spent(moments=lesson.spending.moments if lesson.spending.keep_moments else None)


RECOVERIES: dict[str, Callable[["PreTrainedModel", "Lesson", "Config"], Spent]] = {"none": none, "cpt": cpt}
