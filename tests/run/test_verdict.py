"""A recovery that does harm is told and undone, also through a kill; few steps are told."""

import gc
from pathlib import Path
from typing import Any

import pytest

from ptl_fast import compress
from ptl_fast.run import loop, verdict
from support.runs import RUN, Killed

# A learning rate at which the tiny model forgets what it knew.
HARMFUL: dict[str, Any] = {
    **RUN,
    "rounds": 1,
    "recovery_tokens": 3000,
    "learning_rate": 3.0,
    "keep_optimizer_state": True,
}


def result(folder: Path) -> bytes:
    return (folder / "final" / "model.safetensors").read_bytes()


def test_the_better_model_is_kept_and_told(
    tiny_run: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = compress(**tiny_run, **HARMFUL, output=tmp_path / "kept")
    record = report["rounds"][0]
    assert record["eval"] == record["eval_pruned"]
    assert record["worse_recovery"]["eval"]["nll"]["nll"] > record["eval"]["nll"]["nll"] + 0.05
    told = capsys.readouterr().out
    assert "(undone) |" in told
    assert (
        "Round 1: recovery made the model worse" in told.split("Result:")[0].split("undone) |")[-1]
    )
    assert "recovery made the model worse" in (tmp_path / "kept/final/README.md").read_text()
    none = {**HARMFUL, "recovery": "none", "keep_optimizer_state": False}
    compress(**tiny_run, **none, output=tmp_path / "none")
    assert result(tmp_path / "kept") == result(tmp_path / "none")
    trained = compress(**tiny_run, **HARMFUL, undo_recovery=False, output=tmp_path / "trained")
    assert trained["final"]["eval"] == record["worse_recovery"]["eval"]
    assert result(tmp_path / "trained") != result(tmp_path / "none")
    assert "(worse) |" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["remove", "load_weights", "_prune"])
def test_killed_while_it_is_undone_it_ends_the_same(
    place: str, tiny_run: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**tiny_run, **HARMFUL, "rounds": 2, "recovery_tokens": 6000}
    undisturbed = compress(**settings, output=tmp_path / "whole")
    original, is_worse = getattr(loop, place), verdict.is_worse
    armed = []

    def arm(*args: Any) -> bool:
        armed.append(1)
        return is_worse(*args)

    def die(*args: Any, **kwargs: Any) -> Any:
        if len(armed) == 2:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(verdict, "is_worse", arm)
        patched.setattr(loop, place, die)
        with pytest.raises(Killed):
            compress(**settings, output=tmp_path / "killed")
    gc.collect()
    report = compress(**settings, output=tmp_path / "killed")
    assert result(tmp_path / "killed") == result(tmp_path / "whole")
    assert [each["eval"] for each in report["rounds"]] == [
        each["eval"] for each in undisturbed["rounds"]
    ]


def test_noise_is_no_verdict() -> None:
    assert verdict.change(None, None, {"nll": 1.0}, {"nll": 1.04}) == 0
    assert verdict.change(None, None, {"nll": 10.8}, {"nll": 11.7}) == -1
    assert verdict.change(None, None, {"nll": 15.4}, {"nll": 0.0007}) == 1


def test_more_than_fits_into_memory_is_refused() -> None:
    verdict.check_steps({1: 100}, 64)
    with pytest.raises(ValueError, match=r"round 2 would train on .* lower --recovery-tokens or"):
        verdict.check_steps({1: 100, 2: 10**8}, 64)


def test_rounds_with_few_steps_are_named() -> None:
    line = verdict.few_steps_line({1: 3, 2: 9, 3: 10, 4: 0})
    assert line is not None
    assert "3 in round 1, 9 in round 2. " in line
    assert verdict.few_steps_line({1: 10}) is None


def test_rounds_with_few_calibration_tokens_are_named() -> None:
    line = verdict.few_tokens_line({1: 8192, 3: 20_000}, 4864)
    assert line is not None
    assert "8,192 in round 1, for 4,864 neurons" in line
    assert verdict.few_tokens_line({1: 20_000}, 4864) is None
    assert verdict.few_tokens_line({}, 4864) is None
