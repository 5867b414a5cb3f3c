"""Lend a model to a Trainer and take it back as a plain model: dtypes, parameters, forward."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import Trainer

from ptl_fast.model import divided

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextlib.contextmanager
def borrowed(model: "PreTrainedModel", with_deepspeed: bool) -> Iterator[None]:
    """Restore the model's dtype, buffers and attributes after a Trainer has trained it.

    The body must end with ``tear_down``. Without DeepSpeed, half-precision weights are float32
    inside the context (master weights for training under autocast), which takes twice their
    memory; DeepSpeed keeps master weights of its own. A model that ZeRO-3 has divided before is not
    restored.
    """
    dtype, use_cache = model.dtype, model.config.use_cache
    # transformers keeps single parameters in float32, such as the router's in some models
    named = model.named_parameters(remove_duplicate=False)
    types = {name: parameter.dtype for name, parameter in named}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    attributes = [(module, set(module.__dict__)) for module in model.modules()]
    if dtype != torch.float32 and not with_deepspeed:
        # an update of 1e-5 vanishes in bf16's 8 bits of mantissa
        renew_parameters_(model, dict.fromkeys(types, torch.float32))
    comes_divided = divided.is_divided(model)
    yield
    if comes_divided:
        return
    renew_parameters_(model, types)
    # DeepSpeed casts buffers too, and rotary frequencies must stay float32
    for name, buffer in buffers.items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, buffer)
    # ZeRO-3 leaves attributes with this training's parameters on the modules; the next training
    # would take them for its own
    for module, names in attributes:
        for name in set(module.__dict__) - names:
            delattr(module, name)
    # the Trainer turns the KV cache off, and the saved config would keep that
    model.config.use_cache = use_cache


def tear_down(
    trainer: Trainer, model: "PreTrainedModel", leave: Callable[[], None] | None = None
) -> None:
    """Detach the model from the Trainer: no wrappers, hooks, gradients or optimizer memory remain.

    The weights stay as trained. Every rank must call this, as ZeRO-3 gathers its shards here.

    Args:
        leave: writes the weights of a model that was divided when it came, and is of no use
            afterwards: they are not gathered.
    """
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    if trainer.is_deepspeed_enabled:
        # gathered before the engine goes, which knows where the shards are
        whole = {} if leave is not None else _whole_weights(model)
        if leave is not None:
            leave()
        trainer.model_wrapped.destroy()  # type: ignore[operator]
        _leave_zero3_(model, whole)
    trainer.accelerator.free_memory()
    # accelerate sets an instance attribute ``forward`` that runs under autocast, and would not
    # wrap a model again that carries the mark
    for attribute in ("_is_accelerate_prepared", "forward"):
        model.__dict__.pop(attribute, None)
    model.gradient_checkpointing_disable()
    model.disable_input_require_grads()
    model.zero_grad(set_to_none=True)
    model.eval()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _whole_weights(model: nn.Module) -> dict[int, torch.Tensor]:
    """Gather the parameters that ZeRO-3 sharded over the ranks: {id of the parameter: full tensor}.

    Empty after other ZeRO stages, which do not shard parameters.
    """
    if not divided.is_divided(model):
        return {}
    import deepspeed

    whole = {}
    # one at a time: gathering all at once would hold the full model twice
    for parameter in model.parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            whole[id(parameter)] = parameter.detach().clone()
    return whole


def _leave_zero3_(model: nn.Module, whole: dict[int, torch.Tensor]) -> None:
    """Put plain parameters back: ZeRO-3 replaced them, and the modules' ``_parameters`` dicts."""
    plain = {identity: nn.Parameter(weight) for identity, weight in whole.items()}
    for module in model.modules() if whole else []:
        module._parameters = {
            name: plain.get(id(each), each) for name, each in module._parameters.items()
        }


def renew_parameters_(model: nn.Module, types: dict[str, torch.dtype]) -> None:
    """Replace each parameter by a new one of the type under its name, in memory of its own, in
    place.

    Optimizers leave hooks on the old parameter objects, and DeepSpeed turns their data into views
    of flat buffers, which one living view would keep in memory. Tied parameters stay tied.
    """
    renewed: dict[int, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in renewed:
                dtype = types[f"{prefix}.{name}" if prefix else name]
                renewed[id(parameter)] = nn.Parameter(
                    parameter.detach().to(dtype, copy=True), parameter.requires_grad
                )
            setattr(module, name, renewed[id(parameter)])
