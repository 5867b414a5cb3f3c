"""Goals: what they may be, and that a size is said one way."""

from pathlib import Path
from typing import Any

import pytest

from ptl_fast.config.goal import TARGETS, GoalSettings
from ptl_fast.run.start import make_config, parse
from support.settings import settings


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("5B", (None, 5_000_000_000)),
        ("65%", (0.65, None)),
        ("0.65", (0.65, None)),
        (0.65, (0.65, None)),
        ("1000000", (None, 1_000_000)),
        (1_000_000, (None, 1_000_000)),
    ],
)
def test_parameters_are_a_number_or_a_share(value: Any, expected: tuple) -> None:
    assert GoalSettings(target_params=value).params == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_params": "5GiB"}, "--target-params 5GiB is no number of parameters, such as 5B"),
        ({"target_params": "0"}, "--target-params 0 is no number"),
        ({"target_flops": 1.5}, r"--target-flops 1.5 is outside \(0, 1\)"),
        ({"target_memory": "lots"}, "--target-memory lots is no size; write 600MB"),
        ({"target_size_on_disk": "65%"}, "--target-size-on-disk 65% is no size"),
        ({"target_speedup": 1.0}, "--target-speedup 1.0 is outside"),
        ({"target_batch": 0}, "--target-batch 0 must be at least 1"),
        ({"target_params": "65%", "keep": 0.5}, "--target-params and --keep 0.5 both decide"),
        ({"target_flops": 0.5, "threshold": 0.1, "keep": 0.65}, "--threshold leaves the size"),
    ],
)
def test_goals_without_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**values).check()


def test_flags_say_goals_as_files_and_python_do(tmp_path: Path) -> None:
    file = tmp_path / "goal.yaml"
    file.write_text("preset: demo\ntarget-flops: 55%\ntarget-params: 0.65\ntarget-memory: 12GiB\n")
    flags = "--preset demo --target-flops 0.55 --target-params 65% --target-memory 12GiB"
    of_flags, of_file = parse(flags.split()).goal, parse(["--config", str(file)]).goal
    of_python = make_config(preset="demo", target_flops="55%", target_params=0.65).goal
    assert of_flags.target_flops == of_file.target_flops == of_python.target_flops == 0.55
    assert of_flags.params == of_file.params == of_python.params == (0.65, None)
    assert of_flags.num_bytes("target_memory") == of_file.num_bytes("target_memory") == 12 * 2**30


def test_the_upper_layers_size_counts_said_either_way(tmp_path: Path) -> None:
    (tmp_path / "keep.yaml").write_text("model: m\nkeep: 0.5\ndrop_layers: 2\n")
    (tmp_path / "goal.yaml").write_text("model: m\ntarget_params: 65%\n")
    keep, goal = (["--config", str(tmp_path / name)] for name in ("keep.yaml", "goal.yaml"))
    flags = parse([*keep, "--target-params", "65%"])
    assert (flags.goal.given, flags.prune.keep, flags.prune.drop_layers) == (
        ["target_params"],
        0.65,
        0,
    )
    assert not parse([*goal, "--keep", "0.65"]).goal.given, "also the default, given explicitly"
    assert parse([*goal, "--keep", "1"]).goal.given == []
    assert parse(["--preset", "demo", "--target-params", "65%"]).prune.keep == 0.65
    for order in (["--keep", "0.65"], ["--keep=0.3"]):
        with pytest.raises(ValueError, match="both decide"):
            parse(["--model", "m", "--target-params", "65%", *order])
    layers_only = parse(["--model", "m", "--target-params", "65%", "--keep", "1"])
    assert layers_only.prune.keep == 1
    assert layers_only.goal.given


def test_goals_are_no_part_of_what_a_run_is() -> None:
    """Their solution is."""
    assert not set(TARGETS) & settings(target_params="65%").identity().keys()
