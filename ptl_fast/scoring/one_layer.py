"""One decoder layer of a model as a model of its own, on hidden states that were kept.

``statistics.collect``, ``gram.GramMatrices`` and the scorers run a model's ``base_model`` on the
batches of a corpus. ``OneLayer.base_model`` runs one layer alone on what the layers before it have
made of the batch, which ``HiddenStates`` keeps, so that the whole model is read once, layer by
layer, however much is computed of each.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ptl_fast.data.batching import document_batches
from ptl_fast.model.families import Family, decoder_layers
from ptl_fast.scoring.dropped_blocks import stream_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.data.packing import PackedTokens


class HiddenStates:
    """The residual stream of some batches before a layer and behind it, by the batches' content."""

    def __init__(self) -> None:
        self.before: dict[bytes, Tensor] = {}
        self.behind: dict[bytes, Tensor] = {}

    def advance(self) -> None:
        """Go on to the next layer.

        Raises:
            AssertionError: a batch has not passed the layer.
        """
        assert self.behind.keys() == self.before.keys(), "every batch passes every layer"
        self.before, self.behind = self.behind, {}


class OneLayer(nn.Module):
    """Stands for a model in functions that run ``base_model`` and look at FFNs; its only layer is
    the one that is walked at the moment. Made by ``walking``.
    """

    def __init__(self, model: "PreTrainedModel", family: Family) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.config, self.device = model.config, model.device
        # not a submodule: only the layer is
        self._whole: Callable[[], PreTrainedModel] = lambda: model
        self.family = Family(layers="layers", ffn=family.ffn, no_ffn=family.no_ffn)
        """Where the layer is in this module."""
        self.states = HiddenStates()
        self.eval()

    @property
    def base_model(self) -> "OneLayer":
        return self

    def forward(self, input_ids: Tensor, position_ids: Tensor, **options: Any) -> None:
        """Run the layer on a batch that the layers before it have seen."""
        key = _key(input_ids, position_ids)

        def take(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            states = self.states.before[key]
            if args:
                return (states, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": states}

        def keep(module: nn.Module, args: tuple, output: Any) -> None:
            # what statistics are taken on comes first, and the next layer's are of the same kind
            self.states.behind.setdefault(key, stream_of(output))

        layer = self.layers[0]
        # the first hook, so that all others see the hidden states that the layer is run on
        handles = (
            layer.register_forward_pre_hook(take, prepend=True, with_kwargs=True),
            layer.register_forward_hook(keep),
        )
        try:
            self._whole().base_model(input_ids=input_ids, position_ids=position_ids, **options)
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def at(self, layer: nn.Module) -> Iterator[None]:
        """Walk one layer, whose weights are in memory; afterwards the states are those behind it,
        of every batch that was run.
        """
        self.layers.append(layer)
        own = vars(layer).pop("forward")
        try:
            yield
        finally:
            del self.layers[0]
            layer.forward = own
        self.states.advance()


@contextmanager
def walking(
    model: "PreTrainedModel",
    family: Family,
    texts: "Sequence[PackedTokens]",
    batch_size: int,
    first: nn.Module,
) -> Iterator[OneLayer]:
    """Yield the view of a model whose layers are walked in order, beginning before the first.

    Inside the context the layers of ``model`` compute nothing but in ``OneLayer.at``.

    Args:
        model: only what is outside its layers needs its weights.
        texts: whose batches will be run through every layer.
        batch_size: packed sequences per batch.
        first: the first layer, with its weights, which is asked for what it returns.
    """
    view, layers = OneLayer(model, family), decoder_layers(model, family)
    with ExitStack() as stack:
        for layer in layers:
            layer.forward = _nothing(False)
            stack.callback(layer.__dict__.pop, "forward", None)
        with torch.inference_mode():
            for tokens in texts:
                for batch in document_batches(model, tokens, batch_size, "embed"):
                    inputs = batch.inputs
                    key = _key(inputs["input_ids"], inputs["position_ids"])
                    view.states.before[key] = _embedded(model, layers[0], inputs)
            as_tuple = _returns_tuple(model, first, inputs)
        for layer in layers:
            layer.forward = _nothing(as_tuple)
        yield view


class _Seen(Exception):
    """Ends a forward pass of which enough was seen."""


@contextmanager
def _removed_after(handle: RemovableHandle) -> Iterator[None]:
    """Remove a hook that has ended the forward pass inside."""
    try:
        yield
    except _Seen:
        pass
    finally:
        handle.remove()


def _embedded(model: "PreTrainedModel", first: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """A batch's hidden states before the first layer."""
    found: list[Tensor] = []

    def see(module: nn.Module, args: tuple, kwargs: dict) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])
        raise _Seen

    with _removed_after(first.register_forward_pre_hook(see, with_kwargs=True)):
        model.base_model(**inputs, use_cache=False)
    return found[0]


def _returns_tuple(model: "PreTrainedModel", layer: nn.Module, inputs: dict[str, Tensor]) -> bool:
    """Whether a layer returns the hidden states in a tuple."""
    found: list[bool] = []

    def see(module: nn.Module, args: tuple, output: Any) -> None:
        found.append(isinstance(output, tuple | list))
        raise _Seen

    own = vars(layer).pop("forward")
    try:
        with _removed_after(layer.register_forward_hook(see)):
            model.base_model(**inputs, use_cache=False)
    finally:
        layer.forward = own
    return found[0]


def _nothing(as_tuple: bool) -> Callable[..., Any]:
    """A layer's forward that returns the hidden states as they are."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        return (states,) if as_tuple else states

    return forward


def _key(input_ids: Tensor, position_ids: Tensor) -> bytes:
    """Batches of the same tokens at the same positions have the same hidden states."""
    both = torch.stack((input_ids, position_ids)).cpu().numpy()
    return hashlib.sha256(repr(both.shape).encode() + both.tobytes()).digest()
