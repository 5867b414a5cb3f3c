"""Run a saved model as its users will: loaded by plain transformers in the type of its file.

A run may compute in another type than it saves, such as float32 on a CPU for bfloat16 weights. Some
kernels take sizes in one type that they refuse in the other, and float16 overflows where bfloat16
does not. So the saved model computes the logits of a few tokens in its own type.

Shape suffixes: S sequences, T tokens, V vocabulary.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ptl_fast.base.console import first_line
from ptl_fast.model import expert_rows
from ptl_fast.model.auto_classes import auto_class
from ptl_fast.model.saved_model_check import computed_in, on_this_rank_alone

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# How far the median token's logits may be from those that were measured, as a part of their norm,
# in units of the coarser type's last place. Tiny random models come to 0.8 to 5.9 units; single
# tokens of a mixture, which go to another expert, to 45.
UNITS = 32


def why_not(
    folder: Path, model: "PreTrainedModel", dtype: torch.dtype, input_ids_ST: Tensor
) -> str | None:
    """Say why a saved model does not compute in its own type what was measured; None: it does.

    Takes memory for the saved model once more, unless its type is that of the computation: then
    ``saved_model_check.difference`` has shown it.

    Args:
        folder: where the model in memory was saved.
        dtype: of the saved weights.
        input_ids_ST: token ids, without padding.

    Returns:
        A clause that names what helps.
    """
    if dtype == computed_in(model):
        return None
    name = str(dtype).removeprefix("torch.")
    try:
        with on_this_rank_alone():
            loaded: Any = auto_class(model.config).from_pretrained(
                folder, dtype=dtype, trust_remote_code=False
            )
        found_STV = _logits(loaded.to(model.device).eval(), input_ids_ST)
    except Exception as error:  # torch and the model classes raise many types
        helps = expert_rows.remedy(model, dtype) or "give --save-dtype float32"
        return f"it does not run in {name}: {first_line(error)}; {helps}"
    return why_apart(found_STV, _logits(model, input_ids_ST), dtype, computed_in(model))


def why_apart(
    found: Tensor,
    measured: Tensor,
    dtype: torch.dtype,
    computed: torch.dtype,
    what: str = "logits",
) -> str | None:
    """Say why results in the type of a file are not those that were measured; None: they are, but
    for rounding.

    Args:
        found: in the saved type; a vector for each token, in the last dimension.
        measured: in the type of the computation.
        what: they are.
    """
    name = str(dtype).removeprefix("torch.")
    if not found.isfinite().all():
        return f"its {what} overflow in {name}; give --save-dtype float32, or bfloat16"
    apart = _apart(found.float(), measured.float())
    limit = UNITS * max(torch.finfo(each).eps for each in (dtype, computed))
    if apart > limit:
        return (
            f"in {name} it computes something else: the median token's {what} are {apart:.2g} of"
            f" their norm away, and rounding explains {limit:.2g}; give --save-dtype float32"
        )
    return None


@torch.inference_mode()
def _logits(model: "PreTrainedModel", input_ids_ST: Tensor) -> Tensor:
    ids_ST = input_ids_ST.to(model.device)
    return model(input_ids=ids_ST, use_cache=False).logits.float()


def _apart(found: Tensor, measured: Tensor) -> float:
    """The median over tokens of the difference's norm, as a part of the measured vector's norm."""
    away = (found - measured).norm(dim=-1)
    return float((away / measured.norm(dim=-1).clamp_min(1e-30)).median())
