"""Lending a model to a Trainer, and getting it back as it was: types, parameters, forward methods."""

import contextlib
import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextlib.contextmanager
def borrowed(model: "PreTrainedModel", with_deepspeed: bool) -> Iterator[None]:
    """Lend the model to a Trainer, which ends with ``tear_down``; its type and all that is not
    trained comes back as it was.

    Without DeepSpeed, half-precision weights are float32 meanwhile, for training under autocast.
    """
    dtype, use_cache = model.dtype, model.config.use_cache
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    attributes = [(module, set(module.__dict__)) for module in model.modules()]
    if dtype != torch.float32 and not with_deepspeed:
        renew_parameters_(
            model, torch.float32
        )  # an update of 1e-5 vanishes in bf16's 8 bits of mantissa
    yield
    renew_parameters_(model, dtype)
    for (
        name,
        buffer,
    ) in buffers.items():  # DeepSpeed casts them too, and rotary frequencies must stay float32
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, buffer)
    for (
        module,
        names,
    ) in (
        attributes
    ):  # ZeRO-3 leaves parameters of this training in them, which the next would take for its own
        for name in set(module.__dict__) - names:
            delattr(module, name)
    model.config.use_cache = use_cache  # Trainer turns it off, and the saved config would keep that


def tear_down(trainer: Trainer, model: "PreTrainedModel") -> None:
    """Undo everything that training attached to the model, so that the next round starts from plain
    weights.
    """
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    if trainer.is_deepspeed_enabled:
        whole = _whole_weights(model)
        trainer.model_wrapped.destroy()  # type: ignore[operator]
        _leave_zero3_(model, whole)
    trainer.accelerator.free_memory()
    # accelerate wraps a model's forward in autocast, and would take a model with this mark for
    # wrapped
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
    """The weights that ZeRO-3 has spread over the ranks, whole, by their parameters' id; nothing
    after other stages.
    """
    spread = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
    if not spread:
        return {}
    import deepspeed

    whole = {}
    for parameter in spread:
        with deepspeed.zero.GatheredParameters([parameter]):
            whole[id(parameter)] = parameter.detach().clone()
    return whole


def _leave_zero3_(model: nn.Module, whole: dict[int, torch.Tensor]) -> None:
    """Give the model plain parameters in plain dicts, which ZeRO-3 replaces and leaves behind."""
    plain = {identity: nn.Parameter(weight) for identity, weight in whole.items()}
    for module in model.modules() if whole else []:
        module._parameters = {
            name: plain.get(id(each), each) for name, each in module._parameters.items()
        }


def renew_parameters_(model: nn.Module, dtype: torch.dtype) -> None:
    """Give each parameter a new object, memory and type: optimizers leave hooks on them and views
    of flat buffers in them.
    """
    renewed: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in renewed:
                renewed[id(parameter)] = nn.Parameter(
                    parameter.detach().to(dtype, copy=True), parameter.requires_grad
                )
            setattr(module, name, renewed[id(parameter)])
