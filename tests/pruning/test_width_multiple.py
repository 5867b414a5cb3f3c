"""--width-multiple auto follows the measured times by a rule, and a run keeps what it decided."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from ptl_fast.pruning import width_multiple
from ptl_fast.run import recover_step
from support.files import write_data
from support.models import make_model
from support.runs import kill_at, main


def measured_as(slower: dict[int, float], seen: list[Any] | None = None) -> Any:
    """A stand-in for the measurement, in which widths of these largest multiples take so much
    longer.
    """

    def measure(
        hidden: int, widths: list[int], num_tokens: int, dtype: torch.dtype
    ) -> dict[str, dict[int, float]]:
        if seen is not None:
            seen.append((hidden, widths, num_tokens, dtype))
        up = {
            width: width
            * slower.get(width_multiple.largest_multiple(width, width_multiple.MULTIPLES), 1.0)
            for width in widths
        }
        return {"up": up, "down": {width: 3.0 * width for width in widths}}

    return measure


@pytest.mark.parametrize(
    ("slower", "multiple"),
    [
        ({}, 8),
        ({8: 1.1}, 16),
        ({8: 1.1, 16: 1.05, 32: 1.03}, 64),
        ({64: 1.03}, 128),
        ({8: 1.015}, 8),
    ],
)
def test_smallest_multiple_from_which_on_widths_cost_no_more(
    slower: dict[int, float], multiple: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(width_multiple, "measure", measured_as(slower))
    chosen = width_multiple.choose("cpu", 64, 1024, torch.float32)
    assert chosen["multiple"] == multiple
    for each in width_multiple.MULTIPLES:
        assert chosen["excess"][each] == pytest.approx(slower.get(each, 1.0) - 1)


def test_narrow_ffns_have_fewer_multiples_to_choose_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(width_multiple, "measure", measured_as({8: 2.0, 16: 2.0}))
    assert width_multiple.choose("cpu", 64, 96, torch.float32)["excess"].keys() == {8, 16}
    assert width_multiple.choose("cpu", 64, 96, torch.float32)["multiple"] == 16
    assert width_multiple.choose("cpu", 64, 16, torch.float32)["multiple"] == 8


def test_gpus_take_the_rule_and_cpus_measure() -> None:
    assert width_multiple.choose("cuda:0", 4096, 14336, torch.bfloat16)["multiple"] == 128
    times = width_multiple.measure(32, [40, 48, 64], 16, torch.float32)
    assert times.keys() == {"up", "down"}
    assert all(sorted(of) == [40, 48, 64] for of in times.values())
    assert all(seconds > 0 for of in times.values() for seconds in of.values())


def test_products_have_the_sizes_of_the_projections() -> None:
    calls = width_multiple.products(32, [40, 48], 16, torch.float32, "cpu")
    shapes = {key: tuple(call().shape) for key, call in calls.items()}
    assert shapes == {
        ("up", 40): (16, 40),
        ("up", 48): (16, 48),
        ("down", 40): (16, 32),
        ("down", 48): (16, 32),
    }


def test_run_keeps_what_auto_was_when_it_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: PreTrainedTokenizerBase,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Killed before its first recovery, and started again on what would now measure another
    multiple.
    """
    monkeypatch.chdir(tmp_path)
    model = make_model("llama", intermediate_size=128)
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    write_data(tmp_path / "data.jsonl", 200)
    flags = (
        "--model model --data data.jsonl --keep 0.5 --rounds 1 --width-multiple auto"
        " --recovery none --device cpu"
    )
    flags += " --sequence-length 64 --calibration-tokens 200 --eval-limit 3 --output out"
    monkeypatch.setattr(width_multiple, "measure", measured_as({8: 1.5}))
    kill_at("recover_round", recover_step, 1, flags.split())
    decided = json.loads((tmp_path / "out" / "width_multiple.json").read_text())
    monkeypatch.setattr(width_multiple, "measure", measured_as({}))
    assert main(flags.split()) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["config"]["width_multiple"] == decided["multiple"] == 16
    assert report["final"]["width"] % 16 == 0
    assert "--width-multiple auto is 16" in capsys.readouterr().out
    assert main([*flags.split(), "--width-multiple", "16"]) == 2, (
        "another setting, though the same number"
    )
    assert "width" in capsys.readouterr().err
    assert main([*flags.split(), "--overwrite"]) == 0
    assert json.loads((tmp_path / "out" / "width_multiple.json").read_text())["multiple"] == 8
