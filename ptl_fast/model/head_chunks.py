"""Logits of a batch a part at a time: float32 logits of 16 documents of 500 tokens take 8 GB with a
vocabulary of 262,000, where everything else takes a tenth of that.

The decoder runs once. Its output, the head's input, is caught on its way, and the positions that
are wanted go through the head in chunks. They do so inside the model's own forward pass, on one
token whose hidden state is exchanged for theirs, because many families change the head's output
afterwards (a scale, a soft cap), each in a way of its own.

Shape suffixes: B sequences, T tokens, N wanted positions, H hidden size, V vocabulary.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Float32 logits that exist at a time. A batch with fewer goes through the head as one.
LOGITS_BYTES = 2**28


def wanted_logits(
    model: "PreTrainedModel", input_ids_BT: Tensor, wanted_BT: Tensor
) -> Iterator[tuple[Tensor, slice]]:
    """Yield logits at the wanted positions chunk by chunk, (n, V) in the model's type, each with
    the place of its n positions among the N of ``input_ids_BT[wanted_BT]``.

    Equal to the model's whole logits but for the rounding of another matrix shape; a batch whose
    logits take at most LOGITS_BYTES is not divided at all.

    Args:
        wanted_BT: bool.
    """
    head, num_wanted = model.get_output_embeddings(), int(wanted_BT.sum())
    row_bytes = 4 * len(head.weight) if isinstance(head, nn.Module) else 0  # type: ignore[arg-type]
    if input_ids_BT.numel() * row_bytes <= LOGITS_BYTES:
        yield _whole(model, input_ids_BT, wanted_BT), slice(0, num_wanted)
        return
    catch, size = _HeadInput(wanted_BT), max(1, LOGITS_BYTES // row_bytes)
    hook = head.register_forward_pre_hook(catch)
    try:
        # the head is given one position: its logits are not looked at
        model(input_ids=input_ids_BT, use_cache=False)
        hidden_NH = catch.hidden_NH
        for first in range(0, num_wanted, size) if hidden_NH is not None else []:
            part = slice(first, min(first + size, num_wanted))
            catch.given_NH = hidden_NH[part]  # type: ignore[index]
            yield model(input_ids=input_ids_BT[:1, :1], use_cache=False).logits[0], part
    finally:
        hook.remove()
    if hidden_NH is None:
        yield _whole(model, input_ids_BT, wanted_BT), slice(0, num_wanted)


class _HeadInput:
    """A hook before the head: it keeps the wanted hidden states, and then gives the head others."""

    def __init__(self, wanted_BT: Tensor) -> None:
        self.wanted_BT = wanted_BT
        self.hidden_NH: Tensor | None = None
        """The hidden states at the wanted positions; None until the head was called with those of
        the batch.
        """
        self.given_NH: Tensor | None = None

    def __call__(self, head: nn.Module, inputs: tuple[Any, ...]) -> Any:
        if self.given_NH is not None:
            return (self.given_NH[None],)
        # a head that is called otherwise: the caller takes the whole logits
        if len(inputs) != 1 or inputs[0].shape[:2] != self.wanted_BT.shape:
            return None
        (hidden_BTH,) = inputs
        self.hidden_NH = hidden_BTH[self.wanted_BT]
        return (hidden_BTH[:1, :1],)


def _whole(model: "PreTrainedModel", input_ids_BT: Tensor, wanted_BT: Tensor) -> Tensor:
    return model(input_ids=input_ids_BT, use_cache=False).logits[wanted_BT]
