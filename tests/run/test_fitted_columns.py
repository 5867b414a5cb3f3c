"""--compensate-inputs pruned in whole runs."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ptl_fast import compress
from support.runs import RUN

# One round without training, so that the result shows what the columns are worth.
PRUNE = {**RUN, "rounds": 1, "keep": 0.5, "recovery": "none"}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final" / "model.safetensors")


@pytest.mark.parametrize("scorer", ["reconstruction", "activation"])
def test_the_same_neurons_stay_and_later_layers_have_other_columns(
    scorer: str, tiny_run: dict[str, str], tmp_path: Path
) -> None:
    """Also with a scorer that reads no Gram matrices: then none are collected."""
    own = {**tiny_run, **PRUNE, "scorer": scorer}
    compress(**own, output=tmp_path / "together")
    compress(**own, compensate_inputs="pruned", output=tmp_path / "in_order")
    together, in_order = weights(tmp_path / "together"), weights(tmp_path / "in_order")
    for name, value in together.items():
        if "down_proj" not in name:
            assert torch.equal(value, in_order[name]), name
            continue
        # the first layer's inputs are the original's in both
        near = (value - in_order[name]).norm() < 1e-4 * value.norm()
        assert near == (".layers.0." in name), name


def test_without_compensation_there_is_nothing_to_fit() -> None:
    with pytest.raises(ValueError, match="--compensate-inputs pruned says on what --compensate"):
        compress(preset="demo", compensate=False, compensate_inputs="pruned", dry_run=True)
