"""Rebuild a saved model from its folder alone, as its users will, and compare it with the model in
memory, which was measured.

A checkpoint can load without a word and yet be another model: a config whose list per layer lost
the wrong entry, a bias that the config does not ask for, a weight that the type has no place for.
So everything is compared: the files' names, shapes and types; every tensor, bit for bit; the
layers' own settings, as some only show in long texts (a sliding window); and the logits of a few
tokens, in one piece and with a key-value cache.

Beside the model in memory this needs the saved one on the CPU, and on the device nothing: once its
tensors are known to be equal, the rebuilt model computes with those of the model in memory.

Shape suffixes: S sequences, T tokens.
"""

import contextlib
import numbers
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.integrations import deepspeed

from ptl_fast.base.console import first_line
from ptl_fast.model import tying
from ptl_fast.model.auto_classes import auto_class
from ptl_fast.model.precision import FLOAT_TYPES, on_meta, stored_types

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# How far logits may be apart, as a part of the largest, by the type of the computation. Both models
# compute the same with the same weights on the same device: only kernels that add in a changing
# order differ at all.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
# Numbers and lists in a config or a layer are mostly sizes, which the tensors have shown; these
# decide which layer does what, and how far it looks.
INDEX_OR_REACH = re.compile(r"idx|index|window|chunk|layer|pattern|interval|sparse_step")
# what a training leaves on modules, and no forward pass reads
UNREAD = re.compile(r"_.*|training|gradient_checkpointing|name_or_path")


def difference(
    folder: Path, model: "PreTrainedModel", dtype: torch.dtype, input_ids_ST: Tensor
) -> str | None:
    """Say what is the first thing in which a saved model differs from the one in memory.

    Args:
        folder: where the model in memory was saved.
        dtype: of the saved weights, to which those in memory have been rounded.
        input_ids_ST: token ids to compare logits on, without padding.

    Returns:
        A clause that names the tensor or the module; None if there is no difference.
    """
    found = _file_difference(folder, model, dtype)
    if found is not None:
        return found
    try:
        with on_this_rank_alone():
            loaded: Any = auto_class(model.config).from_pretrained(
                folder,
                dtype=computed_in(model),
                output_loading_info=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are named below
            )
    except Exception as error:  # safetensors, torch and transformers raise many types
        return f"it cannot be loaded: {first_line(error)}"
    rebuilt, info = loaded
    for what, keys in (
        ("is missing", info["missing_keys"]),
        ("has another shape than the config says", info["mismatched_keys"]),
        ("has no place in a model of this config", info["unexpected_keys"]),
    ):
        if keys:
            return f"{min(map(_key, keys), key=_in_order)} {what}"
    return (
        _tensor_difference(model, rebuilt)
        or _tying_difference(rebuilt)
        or _config_difference(model.config, rebuilt.config)
        or _settings_difference(model, rebuilt)
        or _logits_difference(model, rebuilt, input_ids_ST)
    )


def structure_difference(model: "PreTrainedModel") -> str | None:
    """Say what is the first thing in which a model differs from one built from its config.

    Compares names, shapes and the layers' own settings, without weights: it takes no memory and no
    file, so it shows before a training what ``difference`` would show after it.
    """
    empty = on_meta(model, computed_in(model))
    own, other = model.state_dict(), empty.state_dict()
    for name in sorted(own.keys() ^ other.keys(), key=_in_order):
        return f"{name} {'has no place in' if name in own else 'is missing for'} its config"
    for name, tensor in own.items():
        if tensor.shape != other[name].shape:
            return (
                f"{name} has shape {list(tensor.shape)}, and by its config"
                f" {list(other[name].shape)}"
            )
    return _settings_difference(model, empty)


def _file_difference(folder: Path, model: "PreTrainedModel", dtype: torch.dtype) -> str | None:
    """The first tensor whose type or shape in the files is not that of the model in memory.

    Reads headers alone. A tensor that transformers stores under another name, such as single
    experts of a stack, must have one of the types that the model has.
    """
    types = {**{name: buffer.dtype for name, buffer in model.named_buffers()}}
    types |= stored_types(model, dtype)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape, saved in _headers(folder):
        if name in shapes and shape != shapes[name]:
            return f"{name} is saved with shape {shape}, and has {shapes[name]}"
        wanted = {types[name]} if name in types else {dtype, *types.values()}
        if saved is not None and saved not in wanted:
            return f"{name} is saved as {_name(saved)}, and should be {_name(min(wanted, key=str))}"
    return None


def _headers(folder: Path) -> Iterator[tuple[str, list[int], torch.dtype | None]]:
    """Name, shape and floating-point type (None: another type) of each tensor of a checkpoint."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in sorted(tensors.keys(), key=_in_order):
                held = tensors.get_slice(name)
                yield name, held.get_shape(), FLOAT_TYPES.get(held.get_dtype())


@torch.no_grad()
def _tensor_difference(model: "PreTrainedModel", rebuilt: "PreTrainedModel") -> str | None:
    """The first parameter or saved buffer that is not the same, bit for bit, or tied otherwise.

    Parameters that are equal become one in memory: the rebuilt model lets go of its own.
    """
    mine, theirs = (_saved_tensors(each) for each in (model, rebuilt))
    for name in sorted(mine.keys() ^ theirs.keys(), key=_in_order):
        return f"{name} is only in the {'measured' if name in mine else 'saved'} model"
    for name, own in mine.items():
        other = theirs[name]
        if own.shape != other.shape or own.dtype != other.dtype:
            return (
                f"{name} is {_name(other.dtype)} {list(other.shape)}, and was measured as"
                f" {_name(own.dtype)} {list(own.shape)}"
            )
        if not same_bits(own, other.to(own.device)):
            return f"{name} has other values"
        if isinstance(other, nn.Parameter):
            other.data = own.data
    counts = [each.num_parameters() for each in (model, rebuilt)]
    if counts[0] != counts[1]:
        return (
            f"it has {counts[1]:,} parameters, and {counts[0]:,} were measured: other weights are"
            " tied"
        )
    return None


def _saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, each under all of its names, and those buffers that a checkpoint has."""
    saved = model.state_dict()
    named = dict(model.named_parameters(remove_duplicate=False))
    return {name: named.get(name, tensor) for name, tensor in saved.items()}


def _tying_difference(rebuilt: Any) -> str | None:
    """Whether a head of its own has a config that says it is tied to the embedding.

    transformers compares the two weights and warns; other programs follow the config.
    """
    head, embedding = rebuilt.get_output_embeddings(), rebuilt.get_input_embeddings()
    if head is None or not tying.says_tied(rebuilt.config) or head.weight is embedding.weight:
        return None
    return "its config says tie_word_embeddings, and its head has weights of its own"


def _config_difference(config: "PretrainedConfig", saved: "PretrainedConfig") -> str | None:
    """The first field about layers, windows or their pattern in which two configs differ."""
    own, other = config.get_text_config().to_dict(), saved.get_text_config().to_dict()
    for name in [name for name in own if name in other]:
        # a tuple is a list in JSON
        first, second = (list(v) if isinstance(v, tuple) else v for v in (own[name], other[name]))
        if INDEX_OR_REACH.search(name) and first != second:
            return f"config.json has {name} {second}, and was measured with {first}"
    return None


def _settings_difference(model: nn.Module, rebuilt: nn.Module) -> str | None:
    """The first module whose own settings differ: an index, a window, a kind, a factor."""
    others = dict(rebuilt.named_modules())
    for name, module in model.named_modules():
        own, other = _settings(module), _settings(others[name]) if name in others else {}
        for setting in [setting for setting in own if setting in other]:
            if own[setting] != other[setting]:
                return (
                    f"{name or 'the model'} has {setting} {other[setting]}, and was measured with"
                    f" {own[setting]}"
                )
    return None


def _settings(module: nn.Module) -> dict[str, Any]:
    """A module's own plain values, without sizes."""
    plain = (bool, str, float, type(None))
    return {
        name: value
        for name, value in vars(module).items()
        if not UNREAD.fullmatch(name)
        and (
            isinstance(value, plain)
            or (isinstance(value, numbers.Integral) and INDEX_OR_REACH.search(name))
        )
    }


@torch.inference_mode()
def _logits_difference(
    model: "PreTrainedModel", rebuilt: "PreTrainedModel", input_ids_ST: Tensor
) -> str | None:
    """The first layer whose output differs; None if the logits are the same, also with a cache."""
    rebuilt.set_attn_implementation(model.config._attn_implementation)
    rebuilt.to(model.device)  # type: ignore[arg-type]  # its decorator hides the signature
    input_ids_ST = input_ids_ST.to(model.device)
    part = TOLERANCE[computed_in(model)]
    if not _alike(_logits(model, input_ids_ST), _logits(rebuilt, input_ids_ST), part):
        return f"{_first_layer(model, rebuilt, input_ids_ST, part)} computes something else"
    cached = _cached_logits(model, input_ids_ST)
    if cached is not None:
        other = _cached_logits(rebuilt, input_ids_ST)
        if other is None or not _alike(cached, other, part):
            return "its logits with a key-value cache are others"
    return None


def _logits(model: "PreTrainedModel", input_ids_ST: Tensor) -> Tensor:
    return model(input_ids=input_ids_ST, use_cache=False).logits


def _cached_logits(model: "PreTrainedModel", input_ids_ST: Tensor) -> Tensor | None:
    """Logits of the second half of the tokens, after a cache of the first; None if the type of
    model has no cache that goes on with several tokens.
    """
    half = input_ids_ST.shape[1] // 2
    try:
        first = model(input_ids=input_ids_ST[:, :half], use_cache=True)
        return model(
            input_ids=input_ids_ST[:, half:],
            past_key_values=first.past_key_values,
            use_cache=True,
        ).logits
    except Exception:  # each type has its own; without a cache, both computed the same
        return None


def _first_layer(model: nn.Module, rebuilt: nn.Module, input_ids_ST: Tensor, part: float) -> str:
    """The first decoder layer, or other member of a list of modules, whose outputs differ."""
    mine, theirs = (_outputs(each, input_ids_ST) for each in (model, rebuilt))
    for name, output in mine.items():
        if name in theirs and not _alike(output, theirs[name], part):
            return name
    return "the model's head"


def _outputs(model: Any, input_ids_ST: Tensor) -> dict[str, Tensor]:
    """{name: first output} of every member of a list of modules, in the order of computation."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                outputs.setdefault(name, first)

        return hook

    hooks = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if name.rpartition(".")[2].isdigit()
    ]
    try:
        _logits(model, input_ids_ST)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _alike(own: Tensor, other: Tensor, part: float) -> bool:
    """Whether two results of the same computation are equal, but for the order of sums."""
    if own.shape != other.shape:
        return False
    limit = part * own.abs().max().item()
    return torch.allclose(own, other, rtol=0.0, atol=limit, equal_nan=True)


def same_bits(own: Tensor, other: Tensor) -> bool:
    """Whether two tensors of the same type hold the same numbers; NaN is equal to NaN."""
    return torch.equal(own, other) or torch.equal(own.nan_to_num(), other.nan_to_num())


@contextlib.contextmanager
def on_this_rank_alone() -> Iterator[None]:
    """Have transformers build and load whole models also after a training with ZeRO-3: while its
    settings live, it spreads every model over the ranks, and the main rank would wait for ranks
    that load none.
    """
    kept = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = kept


def computed_in(model: Any) -> torch.dtype:
    """The type of the computation; single parameters may have a wider one."""
    return model.get_input_embeddings().weight.dtype


def _key(key: Any) -> str:
    """The name in an entry of transformers' loading info: mismatches have shapes beside it."""
    return key[0] if isinstance(key, tuple) else str(key)


def _in_order(name: str) -> list[Any]:
    """Sorts names as layers follow one another: 2 before 10."""
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in name.split(".")]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
