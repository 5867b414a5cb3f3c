"""Merge a LoRA adapter into its model's weights, as PEFT's ``merge_and_unload`` does.

LoRA (arXiv 2106.09685) trained B and A with W' = W + scale * B A; rsLoRA (arXiv 2312.03732) differs
in the scale, DoRA (arXiv 2402.09353) also sets the norm of each of W's rows. Other adapters change
what the model computes and not its weights alone, so there is nothing to merge.

Shape suffixes: O outputs, I inputs, R rank.
"""

import math
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ptl_fast.model.checkpoint import ADAPTER_WEIGHTS, Adapter, file_of

if TYPE_CHECKING:
    from torch import nn

PREFIX = "base_model.model."
# ends of a tensor's name in an adapter's file, and what is before it a module's; an embedding's
# matrices are parameters themselves
PARTS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "embedding_A",
    ".lora_embedding_B": "embedding_B",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
WITH_PEFT = (
    "merge it with PEFT (PeftModel.from_pretrained, merge_and_unload, save_pretrained) and give"
    " that folder"
)


def check_adapter(adapter: Adapter) -> None:
    """Raise ValueError for an adapter that cannot be merged here; says what to do."""
    kind = str(adapter.config.get("peft_type", "an unnamed kind"))
    if kind != "LORA":
        raise ValueError(f"its adapter is of PEFT's kind {kind}, which is not merged; {WITH_PEFT}")
    if _file(adapter) is None:
        raise ValueError(
            f"its adapter has no {' or '.join(ADAPTER_WEIGHTS)}; copy the adapter's files again"
        )


@torch.no_grad()
def merge_adapter_(model: "nn.Module", adapter: Adapter) -> None:
    """Add a LoRA adapter's change to the model's weights, in place; products are in float32.

    Raises:
        ValueError: the adapter changes something that the model does not have.
    """
    changes, whole = defaultdict[str, dict[str, Tensor]](dict), {}
    for name, tensor in _read(adapter).items():
        # a bias of a changed module is stored under PEFT's wrapper
        stem = name.removeprefix(PREFIX).replace(".base_layer.", ".")
        part = next((end for end in PARTS if stem.endswith(end)), None)
        if part is None:
            # trained whole: modules_to_save, and biases
            whole[stem] = tensor
        else:
            changes[stem.removesuffix(part)][PARTS[part]] = tensor
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in whole.items():
        _parameter(parameters, name, tensor.shape).copy_(tensor)
    for module, parts in changes.items():
        _merge_(parameters, module, parts, adapter.config)


def _merge_(
    parameters: dict[str, "nn.Parameter"],
    module: str,
    parts: dict[str, Tensor],
    config: dict[str, Any],
) -> None:
    """Change the weight of one module by its part of the adapter."""
    change, turned = _product(module, parts), bool(config.get("fan_in_fan_out"))
    if "embedding_A" in parts or turned:
        change = change.T
    weight = _parameter(parameters, f"{module}.weight", change.shape)
    rank = next(each for key, each in parts.items() if key.endswith("A")).shape[0]
    merged = weight.float() + _scale(module, rank, config) * change.to(weight.device)
    if "magnitude" in parts:
        # DoRA's norm is over the inputs of each output
        norm = torch.linalg.norm(merged, dim=0 if turned else 1, keepdim=True)
        magnitude = parts["magnitude"].float().to(weight.device).flatten()
        merged *= magnitude.view_as(norm) / norm
    weight.copy_(merged)


def _product(module: str, parts: dict[str, Tensor]) -> Tensor:
    """B A in float32: [O, I] of a linear layer, [hidden, vocabulary] of an embedding."""
    for left, right in (("B", "A"), ("embedding_B", "embedding_A")):
        if left in parts and right in parts:
            return parts[left].float() @ parts[right].float()
    raise ValueError(f"its adapter has only one of the two matrices for {module}; copy it again")


def _scale(module: str, rank: int, config: dict[str, Any]) -> float:
    """alpha / rank, or alpha / sqrt(rank) for rsLoRA; a module may have an alpha of its own."""
    alpha = config.get("lora_alpha", 8)
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        # PEFT's own rule: a regular expression of the name's end
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = own
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _parameter(
    parameters: dict[str, "nn.Parameter"], name: str, shape: torch.Size
) -> "nn.Parameter":
    """A parameter of the model, which must have this shape."""
    if name not in parameters or parameters[name].shape != shape:
        found = "does not have" if name not in parameters else "has with another shape"
        raise ValueError(
            f"its adapter changes {name} [{', '.join(map(str, shape))}], which the model {found};"
            f" is it this model's? If so, {WITH_PEFT}"
        )
    return parameters[name]


def _file(adapter: Adapter) -> Path | None:
    """The adapter's weights."""
    found = (file_of(adapter.name, file, adapter.revision) for file in ADAPTER_WEIGHTS)
    return next((file for file in found if file is not None), None)


def _read(adapter: Adapter) -> dict[str, Tensor]:
    """The adapter's tensors by name, on the CPU."""
    from safetensors.torch import load_file

    file = _file(adapter)
    assert file is not None, "checked before"
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)
