"""Copies of the bundled model whose weights are stored in another form."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from ptl_fast.model.quantized import unpack_mxfp4
from support.mixtures import make_mixture
from support.models import DEMO_MODEL

BLOCK = 128
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}


def copy_demo(folder: Path, **config: Any) -> dict[str, Tensor]:
    """Copy the bundled model with more settings in config.json; returns its weights."""
    shutil.copytree(DEMO_MODEL, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **config}))
    return load_file(folder / "model.safetensors")


def write_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_fp8(folder: Path, twin: Path) -> None:
    """The bundled model in block FP8, and in ``twin`` what that stands for, in float32."""
    copy_demo(twin)
    weights = copy_demo(folder, quantization_config=FP8)
    chosen = {name for name, each in weights.items() if each.dim() == 2 and "embed" not in name}
    _write_blocks(weights, chosen, folder, twin)


def write_fp8_mixture(folder: Path, twin: Path) -> None:
    """A tiny Qwen3-MoE in block FP8, each expert by itself, and what that stands for."""
    _save_both(make_mixture("qwen3_moe"), FP8, folder, twin)
    weights = load_file(folder / "model.safetensors")
    chosen = {name for name in weights if name.endswith("_proj.weight")}
    _write_blocks(weights, chosen, folder, twin)


def _save_both(
    model: PreTrainedModel, quantization: dict[str, Any], folder: Path, twin: Path
) -> None:
    """Save a model in both folders; the config in the first says that it is quantized."""
    for each, settings in ((folder, {"quantization_config": quantization}), (twin, {})):
        model.save_pretrained(each)
        config = json.loads((each / "config.json").read_text())
        (each / "config.json").write_text(json.dumps({**config, **settings}))


def _write_blocks(weights: dict[str, Tensor], chosen: set[str], folder: Path, twin: Path) -> None:
    """Write the weights with the chosen ones in block FP8, and in ``twin`` what they stand for."""
    stored, plain = {}, {}
    for name, weight in weights.items():
        stored[name] = plain[name] = weight
        if name in chosen:
            stored[name], scale = to_fp8(weight)
            stored[f"{name}_scale_inv"] = scale
            plain[name] = from_fp8(stored[name], scale)
    write_weights(folder, stored)
    write_weights(twin, plain)


def write_mxfp4(folder: Path, twin: Path) -> None:
    """A tiny gpt-oss whose experts are MXFP4, and what that stands for."""
    model = make_mixture("gpt_oss", intermediate_size=32)
    _save_both(model, {"quant_method": "mxfp4"}, folder, twin)
    stored, plain = {}, {}
    generator = torch.Generator().manual_seed(0)
    for name, weight in load_file(folder / "model.safetensors").items():
        stored[name] = plain[name] = weight
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            continue
        del stored[name]
        experts, inputs, outputs = weight.shape
        shape = (experts, outputs, inputs // 32, 16)
        blocks = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        # 2 ** -5 to 2 ** -3
        scales = torch.randint(122, 125, shape[:-1], dtype=torch.uint8, generator=generator)
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        plain[name] = unpack_mxfp4(blocks, scales, torch.float32)
    write_weights(folder, stored)
    write_weights(twin, plain)


def to_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(FP8 weights, a scale for each block of 128 x 128, the last ones smaller)."""
    rows, columns = (-(-size // BLOCK) for size in weight.shape)
    quantized, scale = (
        torch.empty_like(weight, dtype=torch.float8_e4m3fn),
        torch.empty(rows, columns),
    )
    for row in range(rows):
        for column in range(columns):
            part = (
                slice(row * BLOCK, (row + 1) * BLOCK),
                slice(column * BLOCK, (column + 1) * BLOCK),
            )
            scale[row, column] = weight[part].abs().max() / 448
            quantized[part] = (weight[part] / scale[row, column]).to(torch.float8_e4m3fn)
    return quantized, scale


def from_fp8(quantized: Tensor, scale: Tensor) -> Tensor:
    """What ``to_fp8`` made, in float32, block by block."""
    weight = quantized.float()
    for row in range(scale.shape[0]):
        for column in range(scale.shape[1]):
            part = weight[row * BLOCK :][:BLOCK, column * BLOCK :][:, :BLOCK]
            part *= scale[row, column]
    return weight


def lora(rank: int, seed: int = 0) -> dict[str, Tensor]:
    """A LoRA adapter of the bundled model's gate and down projections, in PEFT's names."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(4):
        for name, inputs, outputs in (("gate_proj", 128, 768), ("down_proj", 768, 128)):
            stem = f"base_model.model.model.layers.{layer}.mlp.{name}"
            for part, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                drawn = torch.randn(shape, generator=generator)
                weights[f"{stem}.lora_{part}.weight"] = 0.05 * drawn
    return weights


def write_adapter(folder: Path, weights: dict[str, Tensor], **config: Any) -> None:
    """An adapter's two files."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(DEMO_MODEL),
        "r": 2,
        "lora_alpha": 6,
        "target_modules": ["gate_proj", "down_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **config}))
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
