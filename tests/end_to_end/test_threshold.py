"""A run that --threshold steers removes what scores low enough, alike in every layer, and can be
killed like any other.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from ptl_fast.base import stored
from ptl_fast.evaluation import tasks
from ptl_fast.pruning import compact
from support.files import write_data
from support.models import make_model
from support.runs import kill_at, main, without_seconds

THRESHOLD = ["--threshold", "0.005"]


FLAGS = (
    "--keep 0.5 --rounds 2 --drop-layers 1 --width-multiple 8 --recovery-tokens 4000"
    " --sequence-length 64"
)
FLAGS += " --global-batch 8 --micro-batch 4 --calibration-tokens 1000 --eval-limit 5 --device cpu"
FLAGS += " --score-during-recovery --scorer activation"


@pytest.fixture
def prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """A model whose FFNs have 20 neurons that hardly fire, but only 11 in the last layer; and the
    command that prunes it.
    """
    monkeypatch.chdir(tmp_path)
    model = make_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[: 20 if layer is not model.model.layers[-1] else 11] *= 1e-3
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_data(tmp_path / "data.jsonl", 500)
    return ["--model", "model", "--data", "data.jsonl", *FLAGS.split()]


def test_run_by_threshold_skips_training_where_nothing_goes_and_survives_kills(
    prepared: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Round 1 removes eight of eleven, round 2 finds three and removes none, round 3 drops a layer
    at the width that is left.
    """
    assert main([*prepared, *THRESHOLD, "--output", "undisturbed"]) == 0
    said = capsys.readouterr().out
    assert (
        "Round 1: 11 to 20 neurons a layer are redundant (20, 20, 20, 20, 11); 8 went from each."
        in said
    )
    assert (
        "Round 2: 3 to 12 neurons a layer are redundant (12, 12, 12, 12, 3); 0 went from each, so"
        " the round did not train."
    ) in said
    report = json.loads((tmp_path / "undisturbed" / "report.json").read_text())
    assert [(record["kind"], record["width"]) for record in report["rounds"]] == [
        ("neurons", 40),
        ("neurons", 40),
        ("layers", 40),
    ]
    assert [record["recovery_tokens"] > 0 for record in report["rounds"]] == [True, False, True]
    assert report["rounds"][1]["eval"] == report["rounds"][0]["eval"], "the model is the same"
    assert not (tmp_path / "undisturbed" / "round-02" / "next_statistics.safetensors").exists()
    assert "Round 2: 3 to 12" in (tmp_path / "undisturbed" / "report.md").read_text()
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "undisturbed" / "final")
    assert (final.config.intermediate_size, final.config.num_hidden_layers) == (40, 4)
    assert final.num_parameters() == report["final"]["num_parameters"]
    flags = [*prepared, *THRESHOLD, "--output", "run"]
    kill_at("compact_", compact, 1, flags)  # round 1 is planned, nothing else
    kill_at("answer_nll", tasks, 2, flags)  # round 1 is saved, but its record is not written
    kill_at("compact_", compact, 1, flags)  # round 2 is planned
    kill_at("publish", stored, 2, flags)  # round 3 is recovered, and about to be saved
    assert main(flags) == 0
    again = json.loads((tmp_path / "run" / "report.json").read_text())
    assert without_seconds(again) == without_seconds(report)
    weights = [
        (tmp_path / run / "final" / "model.safetensors").read_bytes()
        for run in ("undisturbed", "run")
    ]
    assert weights[0] == weights[1]


def test_dry_run_says_that_widths_are_the_lowest(
    prepared: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*prepared, *THRESHOLD, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "| 2 neurons |    24 |" in said
    assert "the lowest that --threshold may reach" in said


def test_statistics_beyond_the_usual_come_from_recovery_too(
    prepared: list[str], tmp_path: Path
) -> None:
    """Fluctuation needs sums in the second round, angular needs angles in the third, both taken
    while the round before trains.
    """
    flags = [*prepared, "--scorer", "fluctuation", "--layer-scorer", "angular", "--output", "run"]
    assert main(flags) == 0
    for number, extra in ((2, {"sum_LI", "absolute_LI", "maximum_LI"}), (3, {"angle_L"})):
        taken = load_file(
            tmp_path / "run" / f"round-{number - 1:02d}" / "next_statistics.safetensors"
        )
        used = load_file(tmp_path / "run" / f"round-{number:02d}" / "statistics.safetensors")
        assert taken.keys() == {"num_tokens", "square_LI", "change_L3"} | extra
        assert all(torch.equal(tensor, used[name]) for name, tensor in taken.items())
