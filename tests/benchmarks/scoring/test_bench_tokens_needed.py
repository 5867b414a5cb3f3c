"""The errors are those of the layer's output, on the tokens that were fitted and on others."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.scoring import bench_tokens_needed as bench
from support.least_squares import activations, best_columns, gram, projection


def test_lost_share_is_that_of_the_output() -> None:
    a_TI, down_HI, kept = activations(60, 9, 4, 2), projection(5, 9), [0, 2, 3, 7]
    columns_HK, _ = best_columns(a_TI, down_HI, kept)
    off = a_TI[:, kept] @ columns_HK.T - a_TI @ down_HI.T
    share = off.square().sum() / (a_TI @ down_HI.T).square().sum()
    found = bench.lost(a_TI.T @ a_TI, down_HI, torch.tensor(kept), columns_HK)
    assert found == pytest.approx(float(share), rel=1e-6)
    # the ridge's matrix is another
    assert found != bench.lost(gram(a_TI), down_HI, torch.tensor(kept), columns_HK)


def test_more_tokens_fit_others_better(tmp_path: Path) -> None:
    flags = "--tokens 400 2000 --held-out 400 --layers 1 2 --sequence-length 256 --json"
    bench.main([*flags.split(), str(tmp_path / "x.json")])
    result = json.loads((tmp_path / "x.json").read_text())
    assert result["held_out_tokens"] >= 400
    assert [row["layer"] for row in result["rows"]] == [1, 2, 1, 2]
    few, many = result["rows"][0], result["rows"][2]
    assert 400 <= few["tokens"] < 2000 <= many["tokens"]
    assert few["calibration"] < many["calibration"] < many["held out"] < few["held out"]


def test_data_that_ends_too_early_is_named() -> None:
    with pytest.raises(ValueError, match="only 3 more tokens, and 4 are asked for"):
        bench._until(iter([[1, 2], [3]]), 4)
