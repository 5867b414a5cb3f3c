"""Layers are in memory only while they are asked for, and have then the weights of their files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptl_fast.model.families import decoder_layers
from ptl_fast.model.layers_on_disk import LayersOnDisk, StoredTensors
from support.models import NUM_LAYERS, make_model


def in_memory(source: LayersOnDisk) -> list[bool]:
    layers = decoder_layers(source.model, source.family)
    return [not any(each.is_meta for each in layer.parameters()) for layer in layers]


def test_a_layer_has_its_weights_inside_the_context_alone(tmp_path: Path) -> None:
    model = make_model("qwen2")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    source = LayersOnDisk(tmp_path, model.config, torch.float32)
    with source.layer(3) as layer:
        assert in_memory(source) == [number == 3 for number in range(NUM_LAYERS)]
        for name, parameter in layer.named_parameters():
            assert torch.equal(parameter, model.get_parameter(f"model.layers.3.{name}")), name
    assert not any(in_memory(source))


def test_weights_come_in_the_type_of_the_computation(tmp_path: Path) -> None:
    model = make_model("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    source = LayersOnDisk(tmp_path, model.config, torch.float32)
    with source.layer(0) as layer:
        assert {each.dtype for each in layer.parameters()} == {torch.float32}
    embedding = source.model.get_input_embeddings().weight
    assert torch.equal(embedding, model.get_input_embeddings().weight.float())


def test_the_head_is_not_read(tmp_path: Path) -> None:
    model = make_model("llama", tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    source = LayersOnDisk(tmp_path, model.config, torch.float32)
    assert source.model.get_output_embeddings().weight.is_meta
    assert not source.model.get_input_embeddings().weight.is_meta


def test_files_with_other_names_are_refused(tmp_path: Path) -> None:
    model = make_model("llama")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("mlp.", "ffn."): value for name, value in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="names its tensors otherwise"):
        LayersOnDisk(tmp_path, model.config, torch.float32)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        StoredTensors(tmp_path)
