"""A model is divided while it is loaded, and written as it is."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ptl_fast.base.run_files import StreamedFolder
from ptl_fast.model import divided
from support.divided import load_and_write
from support.models import make_model
from support.ranks import call_on_ranks


def test_a_plain_model_is_not_divided() -> None:
    assert not divided.is_divided(make_model("llama"))


@pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed compiles with g++")
def test_each_of_two_ranks_has_half_and_the_file_has_all(tmp_path: Path) -> None:
    # its head is the embedding
    model = make_model("gemma2")
    assert model.config.tie_word_embeddings
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    call_on_ranks(load_and_write, tmp_path)
    num_parameters = sum(each.numel() for each in model.parameters())
    for rank in range(2):
        had = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert had["divided"]
        assert had["trains"]
        assert had["whole"] == 0
        # an odd one is padded
        assert num_parameters / 2 <= had["parts"] < num_parameters / 2 + 100
    shards, written = tmp_path / "shards", tmp_path / "written"
    for file in sorted(shards.glob("*.safetensors")):
        own, other = load_file(file), load_file(written / file.name)
        assert own.keys() == other.keys()
        for name in own:
            assert torch.equal(own[name].bfloat16(), other[name]), name
    assert (written / "config.json").read_text() == (shards / "config.json").read_text()
    assert StreamedFolder(written).is_complete()
