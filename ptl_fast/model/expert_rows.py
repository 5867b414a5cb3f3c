"""Whether transformers can run a mixture's experts in a type, by the length of their rows.

transformers runs stacked experts by one product of grouped matrices
(``torch.nn.functional.grouped_mm``), which takes rows of multiples of 16 bytes only: those of the
hidden states, and those of what enters the down projections. Experts that a model's class runs
otherwise, such as Llama 4's, may have any width.
"""

from typing import TYPE_CHECKING, Any, cast

from ptl_fast.model.experts import layout

if TYPE_CHECKING:
    import torch
    from torch import nn

ROW_BYTES = 16
GROUPED = "grouped_mm"  # what a config calls it


def sizes(model: "nn.Module") -> set[tuple[int, int]]:
    """(hidden size, width) of the experts that the grouped product runs; empty: it runs none.

    Args:
        model: may be on the meta device.
    """
    found = set()
    for module in model.modules():
        form, stack = layout(module), cast("Any", module)
        # only classes with transformers' decorator have a choice of implementations
        if form is None or not hasattr(stack, "has_gate"):
            continue
        if stack.config._experts_implementation == GROUPED:
            rows, columns = stack.down_proj.shape[1:]
            found.add((columns, rows) if form.transposed else (rows, columns))
    return found


def least_multiple(dtype: "torch.dtype") -> int:
    """Of which number of values rows must be multiples."""
    return ROW_BYTES // dtype.itemsize


def why_not(size: int, what: str, dtype: "torch.dtype") -> str | None:
    """Why the grouped product does not take rows of so many values; None: it does.

    Args:
        what: of what the rows are, in words.
    """
    if size % least_multiple(dtype) == 0:
        return None
    name = str(dtype).removeprefix("torch.")
    return (
        f"{what} {size} wide, {size * dtype.itemsize} bytes a row in {name}, and the grouped matrix"
        f" product by which transformers runs experts takes multiples of {ROW_BYTES} bytes"
    )


def remedy(model: "nn.Module", dtype: "torch.dtype") -> str | None:
    """What helps a model whose experts cannot run in a type; None: it is not their rows' length."""
    multiple = least_multiple(dtype)
    for hidden, width in sizes(model):
        if width % multiple and not hidden % multiple:
            return f"give a --width-multiple that is a multiple of {multiple}"
        if hidden % multiple:
            return f"its hidden size {hidden} is no multiple of {multiple}"
    return None
