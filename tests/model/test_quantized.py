"""Quantized weights come back as what they stand for, against a loop or transformers' own code."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from ptl_fast.model import quantized
from ptl_fast.model.quantized import find_quantization
from support.stored_models import from_fp8, to_fp8, write_weights

BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.parametrize("shape", [(256, 128), (192, 300), (1, 129), (576, 64)])
def test_blocks_at_the_edge_may_be_smaller(shape: tuple[int, int]) -> None:
    """192 rows have two scales, one for 128 and one for 64."""
    weight, scale = to_fp8(torch.randn(shape) * 10)
    stored = {"a.weight": weight, "a.weight_scale_inv": scale, "a.bias": torch.ones(3)}
    found = find_quantization(BLOCKS).dequantize(dict(stored), BLOCKS, torch.float32)
    assert found.keys() == {"a.weight", "a.bias"}
    assert torch.equal(found["a.weight"], from_fp8(weight, scale))


def test_one_scale_a_row_and_one_for_all() -> None:
    weight = torch.randn(6, 8).to(torch.float8_e4m3fn)
    rows = torch.rand(6, 1)
    for scale in (rows, rows.flatten(), torch.tensor(0.3), torch.tensor([0.3])):
        settings = {"quant_method": "fbgemm_fp8"}
        stored = {"a.weight": weight, "a.weight_scale": scale, "a.input_scale": torch.ones(1)}
        found = find_quantization(settings).dequantize(stored, settings, torch.float32)
        factor = scale.reshape(-1, 1) if scale.numel() > 1 else scale
        assert list(found) == ["a.weight"]
        assert torch.equal(found["a.weight"], weight.float() * factor)


def test_experts_stacked_in_one_tensor() -> None:
    parts = [to_fp8(torch.randn(256, 192)) for _ in range(3)]
    stored = {
        "experts.down_proj": torch.stack([weight for weight, _ in parts]),
        "experts.down_proj_scale_inv": torch.stack([scale for _, scale in parts]),
    }
    found = quantized.dequantize_scaled(stored, BLOCKS, torch.float32)["experts.down_proj"]
    assert torch.equal(found, torch.stack([from_fp8(*part) for part in parts]))


def test_scales_that_are_exponents() -> None:
    weight = torch.randn(4, 64).to(torch.float8_e4m3fn)
    exponents = torch.tensor([[120, 130], [127, 126], [125, 128], [127, 127]], dtype=torch.uint8)
    stored = {"a.weight": weight, "a.weight_scale_inv": exponents}
    settings = {"quant_method": "mxfp8"}
    found = find_quantization(settings).dequantize(stored, settings, torch.float32)["a.weight"]
    factor = (2.0 ** (exponents.double() - 127)).repeat_interleave(32, 1)
    assert torch.equal(found, (weight.double() * factor).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mxfp4_is_unpacked_as_transformers_does(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    blocks = torch.randint(0, 256, (3, 10, 2, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(110, 140, (3, 10, 2), dtype=torch.uint8, generator=generator)
    stored = {"e.gate_up_proj_blocks": blocks, "e.gate_up_proj_scales": scales}
    stored["e.gate_up_proj_bias"] = torch.ones(10)
    found = find_quantization({"quant_method": "mxfp4"}).dequantize(stored, {}, dtype)
    assert found.keys() == {"e.gate_up_proj", "e.gate_up_proj_bias"}
    expected = convert_moe_packed_tensors(blocks.clone(), scales.clone(), dtype=dtype)
    assert found["e.gate_up_proj"].dtype == dtype
    assert torch.equal(found["e.gate_up_proj"], expected.contiguous())


COMPRESSED: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "float-quantized"}


def compressed(**weights: Any) -> dict[str, Any]:
    return {**COMPRESSED, "config_groups": {"group_0": {"weights": {"num_bits": 8, **weights}}}}


def test_compressed_tensors_says_what_a_scale_is_of() -> None:
    weight = torch.randint(-127, 128, (4, 64), dtype=torch.int8)
    scale = torch.rand(4, 2)
    settings = {**compressed(group_size=32, symmetric=True), "format": "int-quantized"}
    stored = {"a.weight": weight, "a.weight_scale": scale}
    found = find_quantization(settings).dequantize(stored, settings, torch.float32)["a.weight"]
    assert torch.equal(found, weight.float() * scale.repeat_interleave(32, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "gptq"}, "quantized by gptq.*give the checkpoint from which"),
        ({"quant_method": "awq"}, "quantized by awq"),
        ({"load_in_4bit": True}, r"quantized by bitsandbytes.*call model.dequantize\(\)"),
        ({**COMPRESSED, "format": "pack-quantized"}, r"compressed-tensors \(pack-quantized\)"),
        (compressed(symmetric=False), "compressed-tensors"),
        ({"quant_method": "fp8", "expert_dtype": "fp4"}, "quantized by fp8"),
        ({}, "quantized by an unnamed method"),
    ],
)
def test_other_methods_are_refused_with_what_to_do(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_quantization(settings)


@pytest.mark.parametrize(
    ("scale", "message"),
    [(torch.ones(3, 2), "3 x 2 scales do not fit blocks"), (None, "without its scale")],
)
def test_a_scale_that_is_missing_or_does_not_fit_is_named(
    scale: torch.Tensor | None, message: str
) -> None:
    stored = {"a.weight": torch.randn(256, 256).to(torch.float8_e4m3fn)}
    if scale is not None:
        stored["a.weight_scale_inv"] = scale
    with pytest.raises(ValueError, match=rf"a\.weight .*{re.escape(message)}"):
        quantized.dequantize_scaled(stored, BLOCKS, torch.float32)


def test_eight_bits_without_a_word_in_the_config_are_noticed(tmp_path: Path) -> None:
    weights = {"a.weight": torch.ones(4, 4)}
    write_weights(tmp_path, weights)
    quantized.check_stored(tmp_path)
    write_weights(tmp_path, {"a.weight": torch.ones(4, 4).to(torch.float8_e4m3fn)})
    with pytest.raises(ValueError, match=r"a\.weight is stored as F8_E4M3"):
        quantized.check_stored(tmp_path)
