"""One decoder layer of a model as a model of its own, on hidden states that were kept.

``statistics.collect``, ``gram.GramMatrices`` and the scorers run a model's ``base_model`` on the
batches of a corpus. ``OneLayer.base_model`` runs one layer alone on what the layers before it have
made of the batch, which ``HiddenStates`` keeps, so that the whole model is read once, layer by
layer, however much is computed of each.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
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
    """The residual stream of some batches before a layer and behind it, by the batches' content.

    Args:
        folder: where they are kept, in files that are mapped into memory and so can be written out
            when memory is short; None: on the device, as the layers gave them.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.before, self.behind = folder, dict[bytes, Tensor](), dict[bytes, Tensor]()
        self._num_layers = 0

    def put_before(self, key: bytes, states: Tensor) -> None:
        """Keep what the first layer is given."""
        if key not in self.before:
            self.before[key] = self._kept(states, f"0-{len(self.before)}")

    def put_behind(self, key: bytes, states: Tensor) -> None:
        """Keep what the layer gives, unless it has given it before: statistics are taken in the
        first pass, and the next layer's are of the same kind.
        """
        if key not in self.behind:
            # two sets of files in turn: those before this layer are still read
            side = (self._num_layers + 1) % 2
            self.behind[key] = self._kept(states, f"{side}-{len(self.behind)}")

    def _kept(self, states: Tensor, name: str) -> Tensor:
        if self.folder is None:
            return states
        file = str(self.folder / name)
        mapped = torch.from_file(file, shared=True, size=states.numel(), dtype=states.dtype)
        return mapped.view(states.shape).copy_(states)

    def advance(self) -> None:
        """Go on to the next layer.

        Raises:
            AssertionError: a batch has not passed the layer.
        """
        assert self.behind.keys() == self.before.keys(), "every batch passes every layer"
        self.before, self.behind = self.behind, {}
        self._num_layers += 1


class OneLayer(nn.Module):
    """Stands for a model in functions that run ``base_model`` and look at FFNs; its only layer is
    the one that is walked at the moment. Made by ``walking``.
    """

    def __init__(
        self, model: "PreTrainedModel", family: Family, folder: Path | None = None
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.config, self.device = model.config, model.device
        # not a submodule: only the layer is
        self._whole: Callable[[], PreTrainedModel] = lambda: model
        self.family = Family(layers="layers", ffn=family.ffn, no_ffn=family.no_ffn)
        """Where the layer is in this module."""
        self.states = HiddenStates(folder)
        self.eval()

    @property
    def base_model(self) -> "OneLayer":
        return self

    def forward(self, input_ids: Tensor, position_ids: Tensor, **options: Any) -> None:
        """Run the layer on a batch that the layers before it have seen."""
        key = _key(input_ids, position_ids)

        def take(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            states = self.states.before[key].to(self.device)
            if args:
                return (states, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": states}

        def keep(module: nn.Module, args: tuple, output: Any) -> None:
            self.states.put_behind(key, stream_of(output))

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
    folder: Path | None = None,
) -> Iterator[OneLayer]:
    """Yield the view of a model whose layers are walked in order, beginning before the first.

    Inside the context the layers of ``model`` compute nothing but in ``OneLayer.at``, and its token
    embedding gives zeros.

    Args:
        model: only what is outside its layers needs its weights.
        texts: whose batches will be run through every layer.
        batch_size: packed sequences per batch.
        first: the first layer, with its weights, which is asked for what it returns.
        folder: as for ``HiddenStates``.
    """
    view, layers = OneLayer(model, family, folder), decoder_layers(model, family)
    with ExitStack() as stack:
        for layer in layers:
            layer.forward = _nothing(False)
            stack.callback(layer.__dict__.pop, "forward", None)
        as_tuple = False
        with torch.inference_mode():
            inputs: dict[str, Tensor] | None = None
            for tokens in texts:
                for batch in document_batches(model, tokens, batch_size, "embed"):
                    inputs = batch.inputs
                    key = _key(inputs["input_ids"], inputs["position_ids"])
                    view.states.put_before(key, _embedded(model, layers[0], inputs))
            # a rank may have no batch, and then runs no layer
            if inputs is not None:
                as_tuple = _returns_tuple(model, first, inputs)
        for layer in layers:
            layer.forward = _nothing(as_tuple)
        embedding: Any = model.get_input_embeddings()
        embedding.forward = _no_embedding(embedding.weight)
        stack.callback(embedding.__dict__.pop, "forward", None)
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


def _no_embedding(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """An embedding's forward of zeros in the shape and type of its own, which take almost no
    memory: the layer is run on what was kept.
    """
    dtype, device, width = weight.dtype, weight.device, weight.shape[-1]
    zero = torch.zeros((), dtype=dtype, device=device)
    return lambda input_ids: zero.expand(*input_ids.shape, width)


def _key(input_ids: Tensor, position_ids: Tensor) -> bytes:
    """Batches of the same tokens at the same positions have the same hidden states."""
    both = torch.stack((input_ids, position_ids)).cpu().numpy()
    return hashlib.sha256(repr(both.shape).encode() + both.tobytes()).digest()
