"""What a rank does that loads a divided model and writes it."""

import json
from pathlib import Path

import torch

from ptl_fast.base import distributed
from ptl_fast.base.run_files import StreamedFolder
from ptl_fast.model import divided, loading


def load_and_write(folder: Path) -> None:
    """Load ``shards``, write ``written``, and say in rank-N.json what this rank had meanwhile."""
    distributed.join("cpu")
    source = StreamedFolder(folder / "shards")
    config = loading.load_config(str(source.path))
    model = divided.load(source.path, config, torch.float32, "cpu")
    parameters = list(model.parameters())
    had = {
        "whole": sum(each.numel() for each in parameters),
        "parts": sum(each.ds_tensor.numel() for each in parameters),  # type: ignore[attr-defined]
        "trains": all(each.requires_grad for each in parameters),
        "divided": divided.is_divided(model),
    }
    divided.write(model, source, StreamedFolder(folder / "written"), torch.bfloat16)
    (folder / f"rank-{distributed.rank()}.json").write_text(json.dumps(had))
