"""What a run reports to trackers: every round once, also of a run that was killed and went on."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ptl_fast import compress
from ptl_fast.base import stored
from ptl_fast.base.trackers import TRACKERS
from ptl_fast.run import track_step
from support.runs import RUN, Killed
from support.tracked import scalars

SHORT = {**RUN, "rounds": 2, "recovery_tokens": 600, "checkpoint_minutes": 10.0}


def test_a_killed_run_that_goes_on_reports_every_round_once(
    tiny_run: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, seen = stored.write_atomically, []

    def dies_once(file: Path, content: bytes) -> None:
        if file.name == "tracked.json" and b'"tensorboard": 2' in content and not seen:
            seen.append(file)
            raise Killed
        write(file, content)

    monkeypatch.setattr(stored, "write_atomically", dies_once)
    settings: dict[str, Any] = {**tiny_run, **SHORT, "output": tmp_path}
    with pytest.raises(Killed):
        compress(**settings)
    report = compress(**settings)
    found = scalars(tmp_path / "log" / "rounds")
    assert [step for step, _ in found["size/width"]] == [0, 1, 2]
    sizes = [report["dense"], *report["rounds"]]
    assert [value for _, value in found["size/width"]] == [each["width"] for each in sizes]
    losses = [each["eval"]["nll"]["nll"] for each in sizes]
    assert [value for _, value in found["evaluation/nll/nll"]] == pytest.approx(losses)
    assert [step for step, _ in found["evaluation_pruned/nll/nll"]] == [1, 2]
    assert [value for _, value in found["recovery/tokens"]] == [
        each["recovery_tokens"] for each in report["rounds"]
    ]
    # the kept neurons' scores and plan say the same
    files = tmp_path / "round-01"
    plan = json.loads((files / "plan.json").read_text())
    scores = stored.TensorFile(files / "statistics.safetensors").read()["scores"].double()
    kept = torch.tensor(plan["kept_neurons"])
    expected = 1 - scores.gather(1, kept).sum(1) / scores.sum(1)
    shares = [found[f"score_removed/layer-{layer:02d}"][0][1] for layer in range(len(kept))]
    assert shares == pytest.approx(expected.tolist(), abs=1e-6)
    assert 0 < min(shares) <= max(shares) < 0.5
    # its training's curves stand beside it
    assert scalars(tmp_path / "log" / "round-01")["train/loss"]


def test_a_tracker_that_fails_is_told_and_tried_again(
    tiny_run: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    logged: list[int] = []
    failures = [OSError("no network at all"), OSError("no network at all")]

    def write(folder: Path, run: str, number: int, values: Mapping[str, float]) -> None:
        if failures:
            raise failures.pop()
        logged.append(number)

    own = dataclasses.replace(TRACKERS["tensorboard"], write=write)
    monkeypatch.setitem(TRACKERS, "tensorboard", own)
    compress(**tiny_run, **{**SHORT, "recovery": "none"}, output=tmp_path)
    assert logged == [0, 1, 2]
    assert capsys.readouterr().out.count("--report-to tensorboard failed, and is tried again") == 2


def test_nothing_is_reported_where_nothing_is_asked_for(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    settings = {**SHORT, "rounds": 1, "report_to": "none"}
    compress(**tiny_run, **settings, output=tmp_path)
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("scores", "shares"),
    [
        ([[1.0, 3.0], [2.0, 2.0]], [0.75, 0.5]),
        ([[0.0, 0.0], [0.0, 4.0]], [0.0, 1.0]),
        ([[-1.0, 3.0], [2.0, 2.0]], []),
    ],
)
def test_the_share_of_negative_scores_means_nothing(
    scores: list[list[float]], shares: list[float]
) -> None:
    assert track_step._shares_removed(torch.tensor(scores), [[0], [0]]) == shares
