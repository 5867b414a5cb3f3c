"""Quantized checkpoints whose weights can be had back in full precision, without other libraries.

A stored weight times the scale of its block is what the quantized model computes with, so the model
that is loaded here is the released one, but for activations that it would have rounded to 8 bits
as it ran. What is saved later is an ordinary checkpoint.

Shape suffixes: O rows (outputs), I columns (inputs), E experts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
IN_8_BITS = (*FP8, torch.int8)
SCALE_ENDINGS = ("_scale_inv", "_scale")
# what else lies beside such weights: scales of activations and of the key-value cache
BESIDE = (".activation_scale", ".input_scale", ".output_scale", ".k_scale", ".v_scale")

# The 16 values of FP4 (E2M1), by their 4 bits (OCP Microscaling Formats 1.0, section 5.3.3).
FP4_VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
FP4_VALUES += [-value for value in FP4_VALUES]
E8M0_BIAS = 127  # of MX formats' scales, which are exponents of 2 (section 5.4.1)

OTHER_REMEDY = "give the checkpoint from which it was quantized"
REMEDIES = {
    "bitsandbytes": "where bitsandbytes is installed, load it with transformers, call"
    " model.dequantize() and save_pretrained, and give that folder",
}
"""What to do about methods without an entry in QUANTIZATIONS, where it is not OTHER_REMEDY."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """A way of storing weights, and how to have them back."""

    what: str
    """In words, for messages."""
    dequantize: Callable[[dict[str, Tensor], dict[str, Any], torch.dtype], dict[str, Tensor]]
    """From all stored tensors by name, the quantization's settings in config.json and the type
    wanted to a model's tensors by name; empties the first as it goes. Raises ValueError.
    """
    covers: Callable[[dict[str, Any]], bool] = lambda settings: True
    """Whether the settings are those of a kind that ``dequantize`` knows."""


def find_quantization(settings: dict[str, Any]) -> Quantization:
    """Return the entry of QUANTIZATIONS for the settings in a config.json.

    Raises:
        ValueError: it is not known how to have the weights back; says what to do.
    """
    method = method_name(settings)
    found = QUANTIZATIONS.get(method)
    if found is None or not found.covers(settings):
        kind = f"{method} ({settings['format']})" if settings.get("format") else method
        raise ValueError(
            f"its weights are quantized by {kind}, which is not undone here;"
            f" {REMEDIES.get(method, OTHER_REMEDY)}"
        )
    return found


def method_name(settings: dict[str, Any]) -> str:
    """The name of the quantization method, in transformers' spelling."""
    # bitsandbytes' older configs say it only so
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return "bitsandbytes"
    return str(settings.get("quant_method", "an unnamed method"))


def dequantize_scaled(
    stored: dict[str, Tensor], settings: dict[str, Any], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Multiply every 8-bit weight with its scale: one per block, per row, or for all of it.

    The weight X is stored as X and X_scale_inv or X_scale, of which each multiplies a block of
    ``weight_block_size`` (rows, columns; the last ones may be smaller). Ordinary weights pass.

    Raises:
        ValueError: a weight has no scale, or one that does not fit it.
    """
    # from json: null is one scale for all of a weight, and no such setting is the usual size
    block = settings.get("weight_block_size", (128, 128))
    quantized = [name for name, tensor in stored.items() if tensor.dtype in IN_8_BITS]
    scale_of = {name: _scale_name(name, stored) for name in quantized}
    weights = {
        name: tensor
        for name, tensor in stored.items()
        if name not in scale_of and name not in scale_of.values() and not name.endswith(BESIDE)
    }
    for name, scale in scale_of.items():
        if scale is None:
            raise ValueError(f"{name} is stored as {stored[name].dtype} without its scale")
        # taken out one by one, so that memory does not hold all of both forms
        weights[name] = _scaled(name, stored.pop(name), stored[scale], block).to(dtype)
    return weights


def dequantize_mxfp4(
    stored: dict[str, Tensor], settings: dict[str, Any], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Unpack MXFP4 as gpt-oss stores it: X_blocks and X_scales, by expert, to X as [E, I, O].

    Blocks are uint8 [E, O, I / 32, 16]: each byte two values, the lower 4 bits first; scales are
    exponents of 2 with bias 127, uint8 [E, O, I / 32]. Ordinary weights pass.
    """
    weights = {}
    for name in list(stored):
        if name.endswith("_scales") and f"{name.removesuffix('_scales')}_blocks" in stored:
            continue
        if not name.endswith("_blocks"):
            weights[name] = stored[name]
            continue
        stem = name.removesuffix("_blocks")
        if f"{stem}_scales" not in stored:
            raise ValueError(f"{name} is stored without {stem}_scales")
        weights[stem] = unpack_mxfp4(stored[name], stored[f"{stem}_scales"], dtype)
    return weights


def unpack_mxfp4(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., O, I / 32, 16] bytes and [..., O, I / 32] exponents to [..., I, O] in ``dtype``."""
    values = torch.tensor(FP4_VALUES, dtype=torch.float32)
    pairs = torch.stack([blocks & 0xF, blocks >> 4], dim=-1).flatten(-2)
    exponents = scales.to(torch.int32).unsqueeze(-1) - E8M0_BIAS
    weight_OI = torch.ldexp(values[pairs.long()], exponents).flatten(-2)
    return weight_OI.to(dtype).transpose(-1, -2).contiguous()


def check_stored(folder: Path) -> None:
    """Raise ValueError if a weight is stored in 8 bits, where config.json says nothing of it.

    transformers would take the 8 bits for the weight and leave the scale out. Reads the headers of
    safetensors files alone.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no dict
                stored_as = file.get_slice(name).get_dtype()
                if stored_as.startswith("F8_E4M3") or stored_as.startswith("F8_E5M2"):
                    raise ValueError(
                        f"{name} is stored as {stored_as}, and config.json has no"
                        " quantization_config that says how; add it, or give the checkpoint from"
                        " which it was quantized"
                    )


def _scale_name(name: str, stored: dict[str, Tensor]) -> str | None:
    """The name under which a weight's scale is stored; None if there is none."""
    return next((name + end for end in SCALE_ENDINGS if name + end in stored), None)


def _scaled(name: str, weight: Tensor, scale: Tensor, block: Any) -> Tensor:
    """A weight [..., O, I] times its scale, in float32."""
    factor, (rows, columns) = _as_factor(scale), weight.shape[-2:]
    if factor.numel() == 1:
        return weight.float() * factor.reshape(())
    if factor.shape == (rows,):
        factor = factor.unsqueeze(-1)
    if factor.shape[-2:] == (rows, 1):
        return weight.float() * factor
    if not block or factor.shape[-2:] != (-(-rows // block[0]), -(-columns // block[1])):
        raise ValueError(
            f"{name} is {rows} x {columns}, and its {' x '.join(map(str, factor.shape))} scales do"
            f" not fit blocks of {block}"
        )
    factor = factor.repeat_interleave(block[0], -2).narrow(-2, 0, rows)
    factor = factor.repeat_interleave(block[1], -1).narrow(-1, 0, columns)
    return weight.float() * factor


def _as_factor(scale: Tensor) -> Tensor:
    """A scale in float32; stored as bytes, it is an exponent of 2 (E8M0)."""
    if scale.dtype == torch.uint8:
        return torch.ldexp(torch.ones(scale.shape), scale.int() - E8M0_BIAS)
    return scale.float()


def _groups(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What compressed-tensors says of the weights of each group of modules."""
    return [group.get("weights") or {} for group in (settings.get("config_groups") or {}).values()]


def _is_of_8_bits(settings: dict[str, Any]) -> bool:
    """Whether compressed-tensors stored each weight as 8 bits, with no zero points."""
    unpacked = settings.get("format") in ("float-quantized", "int-quantized", "naive-quantized")
    kinds = [(group.get("num_bits"), group.get("symmetric", True)) for group in _groups(settings)]
    return unpacked and set(kinds) == {(8, True)}


def _with_block(settings: dict[str, Any]) -> dict[str, Any]:
    """compressed-tensors' settings with weight_block_size, where scales are of blocks or groups."""
    for group in _groups(settings):
        if group.get("block_structure"):
            return {**settings, "weight_block_size": group["block_structure"]}
        if group.get("group_size"):
            return {**settings, "weight_block_size": (1, group["group_size"])}
    return {**settings, "weight_block_size": None}


QUANTIZATIONS = {
    "fp8": Quantization(
        what="FP8, with a scale for each block",
        dequantize=dequantize_scaled,
        # DeepSeek-V4 packs its experts in 4 bits
        covers=lambda settings: settings.get("expert_dtype", "fp8") == "fp8",
    ),
    "mxfp8": Quantization(
        what="MXFP8, with a scale for each 32 weights",
        dequantize=lambda stored, settings, dtype: dequantize_scaled(
            stored, {"weight_block_size": (1, 32), **settings}, dtype
        ),
    ),
    "fbgemm_fp8": Quantization(what="FP8, with a scale for each row", dequantize=dequantize_scaled),
    "compressed-tensors": Quantization(
        what="8 bits, with a scale for each row or block",
        dequantize=lambda stored, settings, dtype: dequantize_scaled(
            stored, _with_block(settings), dtype
        ),
        covers=_is_of_8_bits,
    ),
    "mxfp4": Quantization(what="MXFP4", dequantize=dequantize_mxfp4),
}
"""{quantization method, in transformers' spelling: how to have its weights back}"""
