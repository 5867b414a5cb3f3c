"""Predicted sizes are those of the model that is left, also where its layers are unlike."""

from pathlib import Path
from typing import Any

import pytest

from ptl_fast import compress, planned_sizes
from ptl_fast.pruning.schedule import Round
from ptl_fast.run import layers_left
from support.mixtures import make_mixture
from support.models import make_model
from support.runs import RUN, main
from support.settings import settings

# a dense layer of another size between two mixtures
MIXTURE = make_mixture("qwen3_moe", experts=4)
SIZES = [sum(each.numel() for each in layer.parameters()) for layer in MIXTURE.model.layers]
ONE_LESS = Round(
    number=1, kind="layers", width=MIXTURE.config.moe_intermediate_size, num_layers=2,
    recovery_share=1.0,
)  # fmt: skip


def prune(**given: Any) -> Any:
    return settings(model="it", data="data", keep=1.0, **given).prune


def test_named_layers_are_those_that_go() -> None:
    assert SIZES[0] == SIZES[2] != SIZES[1]
    assert layers_left.planned(prune(layers="1"), MIXTURE.config, ONE_LESS) == [0, 2]
    assert layers_left.note(prune(layers="1"), MIXTURE.config, [ONE_LESS]) == []


def test_where_scores_choose_the_sizes_are_bounds() -> None:
    given, config = prune(drop_layers=1), MIXTURE.config
    most, fewest = (
        layers_left.planned(given, config, ONE_LESS, most=each) for each in (True, False)
    )
    left = [sum(SIZES[layer] for layer in each) for each in (most, fewest)]
    assert left == [sum(SIZES) - min(SIZES), sum(SIZES) - max(SIZES)]
    (told,) = layers_left.note(given, config, [ONE_LESS])
    others = MIXTURE.num_parameters() - sum(SIZES)
    assert all(f"{each + others:,}" in told for each in left)


def test_layers_of_one_size_need_no_word() -> None:
    config = make_model("llama").config
    step = Round(number=1, kind="layers", width=48, num_layers=3, recovery_share=1.0)
    assert layers_left.planned(prune(drop_layers=2), config, step) == [0, 1, 2]
    assert layers_left.note(prune(drop_layers=2), config, [step]) == []


@pytest.mark.parametrize(
    "given", [{"layers": "1"}, {"drop_layers": 1}], ids=["named", "scores-choose"]
)
def test_the_record_has_the_size_of_the_model_that_is_left(
    given: dict, tiny_run: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An interval for what scores choose, the number itself for what is named."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    MIXTURE.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_run["model"]).save_pretrained(tmp_path / "model")
    run = {**tiny_run, **RUN, "model": str(tmp_path / "model"), "keep": 1.0, "rounds": None}
    run = {**run, "recovery": "none", "compensate_layers": False, **given}
    planned = planned_sizes(**run)[-1]["num_parameters"]
    report = compress(**run, output=tmp_path / "run")
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")
    assert report["final"]["num_parameters"] == final.num_parameters() <= planned
    assert "layers" not in given or final.num_parameters() == planned


def test_the_dry_run_says_that_sizes_are_bounds(
    tiny_run: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MIXTURE.save_pretrained(tmp_path)
    flags = ["--model", str(tmp_path), "--data", "data", "--keep", "1", "--sequence-length", "64"]
    assert main([*flags, "--drop-layers", "1", "--dry-run"]) == 0
    assert "scores choose which go" in capsys.readouterr().out
    assert main([*flags, "--layers", "1", "--dry-run"]) == 0
    assert "scores choose which go" not in capsys.readouterr().out
