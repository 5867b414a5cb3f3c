"""A model whose decoder layers stay on disk: each is in memory only while something is done to it.

Everything outside the decoder layers that their inputs need, such as the embedding, is in memory.
The language-model head is not: what goes layer by layer needs no predictions.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ptl_fast.base import json_text
from ptl_fast.model.families import decoder_layers, find_family
from ptl_fast.model.precision import FLOAT_TYPES
from ptl_fast.model.saved_model_check import on_this_rank_alone

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class _Place(NamedTuple):
    """Where a tensor is stored."""

    file: Path
    start: int
    """Its first byte in the file."""
    num_bytes: int
    dtype: torch.dtype
    shape: list[int]


class StoredTensors:
    """The tensors of a folder's safetensors files, each read when it is asked for.

    They are read from the files and not out of a map of them as by ``safetensors.safe_open``: that
    one is private and writable, so a shard of 5 GB counts as 5 GB to a limit of the process' data
    (RLIMIT_DATA), and its pages as memory of the process.

    Raises:
        ValueError: the folder has no safetensors files, or one cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.places: dict[str, _Place] = {}
        for file in _files(folder):
            self.places |= _places(file)

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored, on the CPU and in memory of its own.

        Raises:
            ValueError: the file is shorter than its header says.
        """
        place = self.places[name]
        tensor = torch.empty(place.shape, dtype=place.dtype)
        # numpy knows no bfloat16
        content: Any = tensor.view(-1).view(torch.uint8).numpy() if place.num_bytes else b""
        with place.file.open("rb", buffering=0) as file:
            file.seek(place.start)
            left = memoryview(content)
            while len(left):
                # Linux reads at most 2 GiB at once
                num_bytes = file.readinto(left)
                if not num_bytes:
                    raise ValueError(f"{place.file} is cut off: {name} is not whole; copy it again")
                left = left[num_bytes:]
        return tensor


def _places(file: Path) -> dict[str, _Place]:
    """{tensor's name: where it is} of a safetensors file: 8 bytes with the length of a JSON object,
    that object, and the tensors' bytes.

    Raises:
        ValueError: the file is not of that form, or has a type that is no model's.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        # damaged lengths are not taken at their word
        text = opened.read(length) if length < file.stat().st_size else b""
    try:
        header = json_text.loads(text)
        header.pop("__metadata__", None)
        return {
            name: _Place(
                file,
                8 + length + each["data_offsets"][0],
                each["data_offsets"][1] - each["data_offsets"][0],
                FLOAT_TYPES[each["dtype"]],
                each["shape"],
            )
            for name, each in header.items()
        }
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{file} cannot be read layer by layer: {error!r}; save the model with save_pretrained"
        ) from error


def _files(folder: Path) -> list[Path]:
    """The weight files of a folder: those that its index names, or the only one."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [
            folder / name
            for name in sorted(set(json_text.loads(index.read_text())["weight_map"].values()))
        ]
    whole = folder / "model.safetensors"
    if not whole.is_file():
        raise ValueError(
            f"{folder} has no model.safetensors, from which layers could be read one by one; save"
            " the model with save_pretrained"
        )
    return [whole]


class LayersOnDisk:
    """A model and the files that hold its layers.

    Args:
        folder: of ordinary weights in safetensors files.
        config: the model's.
        dtype: of the computation.
        device: of the computation.
        attention: transformers' name of the attention implementation; None: transformers chooses.

    Raises:
        ValueError: the files lack a tensor, or their names are not the model's.
    """

    def __init__(
        self,
        folder: Path,
        config: "PretrainedConfig",
        dtype: torch.dtype,
        device: str = "cpu",
        attention: str | None = None,
    ) -> None:
        self.folder, self.stored, self.dtype, self.device = (
            folder,
            StoredTensors(folder),
            dtype,
            device,
        )
        self.model = _empty(config, dtype, attention)
        self.family = find_family(self.model)
        self.prefix = f"{self.family.layers}."
        self._check_names(folder)
        base: Any = self.model.base_model
        inside = {id(each) for each in decoder_layers(self.model, self.family).parameters()}
        own = {id(each) for each in base.parameters()} - inside
        for name, parameter in list(self.model.named_parameters()):
            if id(parameter) in own:
                self._load(self.model, name, name)
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(device)

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(decoder_layers(self.model, self.family))

    def others(self) -> list[str]:
        """The names of the stored tensors that belong to no decoder layer."""
        return [name for name in self.stored.places if not name.startswith(self.prefix)]

    @contextmanager
    def layer(
        self, number: int, timed: Callable[[str], AbstractContextManager] = nullcontext
    ) -> Iterator[nn.Module]:
        """A decoder layer with its weights in memory, which are given back at the end.

        Args:
            timed: a context for the time of "load", that of reading them.
        """
        layer = decoder_layers(self.model, self.family)[number]
        with timed("load"):
            self.load(number)
        try:
            yield layer
        finally:
            for name, parameter in list(layer.named_parameters()):
                _put(layer, name, torch.empty_like(parameter, device="meta"))

    def load(self, number: int) -> None:
        """Read a decoder layer's weights, for as long as the model lives."""
        layer = decoder_layers(self.model, self.family)[number]
        for name, _ in list(layer.named_parameters()):
            self._load(layer, name, f"{self.prefix}{number}.{name}")

    def load_head(self) -> None:
        """The same for the language-model head, its own or the embedding."""
        name = _head(self.model)
        if name in self.stored.places:
            self._load(self.model, name, name)
        self.model.tie_weights()

    def forget_embedding(self) -> None:
        """Give back the memory of the token embedding, a gibibyte of an 8B model: once the tokens'
        hidden states are there, ``walking`` asks no more for it.
        """
        embedding: Any = self.model.get_input_embeddings()
        for name, parameter in list(embedding.named_parameters()):
            _put(embedding, name, torch.empty_like(parameter, device="meta"))

    def _load(self, module: nn.Module, name: str, stored: str) -> None:
        tensor = self.stored.read(stored)
        _put(module, name, tensor.to(device=self.device, dtype=self.dtype))

    def _check_names(self, folder: Path) -> None:
        wanted = {name for name, _ in self.model.named_parameters()}
        # persistent buffers of layers would have to be read too, and no dense decoder has any
        strange = sorted(
            {name for name in self.stored.places if name.startswith(self.prefix)} - wanted
        )
        missing = sorted(
            name for name in wanted - self.stored.places.keys() if name != _head(self.model)
        )
        if strange or missing:
            raise ValueError(
                f"{folder} names its tensors otherwise than the model does, such as"
                f" {(strange or missing)[0]}; load the model with"
                " transformers and save it again"
            )


def _empty(
    config: "PretrainedConfig", dtype: torch.dtype, attention: str | None
) -> "PreTrainedModel":
    """The model without memory for its weights; what it computes for itself, such as rotary
    frequencies, it has.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    # after a training with ZeRO-3, too, which would have it divided
    with (
        on_this_rank_alone(),
        torch.random.fork_rng(devices=[]),
        init_empty_weights(include_buffers=False),
    ):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
    model.requires_grad_(False)
    return model.eval()


def _head(model: "PreTrainedModel") -> str | None:
    """The name of the head's weight, which a model with a tied head need not store."""
    found = model.get_output_embeddings()
    weight = getattr(found, "weight", None)
    return next((name for name, each in model.named_parameters() if each is weight), None)


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter: those on the meta device cannot be filled in place."""
    path, _, last = name.rpartition(".")
    owner: Any = attrgetter(path)(module) if path else module
    owner._parameters[last] = nn.Parameter(tensor, requires_grad=False)
