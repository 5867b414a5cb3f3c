"""Flags, files and presets become settings: the later one counts, and a wrong name or type is told
in words.
"""

import os
from pathlib import Path
from typing import Any

import numpy
import pytest

from ptl_fast import compress
from ptl_fast.run.start import make_config, parse
from support.runs import main

GIVEN: list[dict[str, Any]] = [
    {"foo": 1},
    {"keep": "0.5"},
    {"rounds": 2.5},
    {"rounds": True},
    {"data": 5},
    {"streaming": 1},
    {"width_multiple": "64"},
    {"recovery": Path("cpt")},
    {"seed": None},
]


@pytest.mark.parametrize("given", GIVEN)
def test_the_function_refuses_wrong_names_and_types(given: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(given))}.*(is needed|--help lists them)"):
        compress(**given)


def test_numbers_of_numpy_are_numbers() -> None:
    config = make_config(rounds=numpy.int64(2), keep=numpy.float32(0.5))
    assert (config.prune.rounds, config.prune.keep) == (2, 0.5)
    assert {type(config.prune.rounds), type(config.prune.keep)} == {int, float}


def test_null_in_a_config_file_is_refused_where_a_value_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("seed: null\n")
    assert main(["--preset", "demo", "--config", str(file)]) == 2
    assert "seed=None: a whole number is needed" in capsys.readouterr().err


def flat(*flags: object) -> dict[str, Any]:
    """Settings that these flags give, by their flat names."""
    return parse([str(each) for each in flags]).flat()


def test_booleans_override_a_config_file(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("fused_ffn: true\ncompensate: false\n")
    file = ["--config", tmp_path / "settings.yaml"]
    assert flat(*file)["fused_ffn"]
    changed = flat(*file, "--fused-ffn", "false", "--compensate", "--all-statistics")
    names = ("fused_ffn", "compensate", "all_statistics")
    assert [changed[name] for name in names] == [False, True, True]


def test_flags_override_config_file_and_preset(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("keep: 0.25\nrounds: 3\neval_tasks: [nll, demo_arithmetic]\n")
    given = flat("--preset", "demo", "--config", file, "--rounds", 2)
    names = ("preset", "model", "keep", "rounds")
    assert [given[name] for name in names] == ["demo", "ptl-demo", 0.25, 2]
    assert given["eval_tasks"] == ["nll", "demo_arithmetic"]
    assert given["width_multiple"] == 32, "from the preset"
    assert flat("--model", "m", "--data", "d")["preset"] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as YAML: No such file or directory"),
        ("", "holds no settings; write lines such as keep: 0.65"),
        ("- keep", "holds no settings"),
        ("keep: [", "cannot be read as YAML: "),
    ],
)
@pytest.mark.parametrize("joined", [False, True])
def test_a_config_file_that_is_none_is_named(
    content: str | None, message: str, joined: bool, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    if content is not None:
        file.write_text(content)
    flags = [f"--config={file}"] if joined else ["--config", str(file)]
    with pytest.raises(ValueError, match=f"--config {file} {message}"):
        parse(flags)


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nkeep: [*b, *b]\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "has an alias"),
        ("keep: " + "[" * 5000 + "]" * 5000, "is nested too deep"),
        ("keep: 0.5\nrounds: 2\nkeep: 0.6\n", "sets keep more than once"),
        ("# " + "x" * 2**21, "it is too large"),
        ("rounds: 010\n", "rounds: 010 is no decimal number"),
        ("calibration_tokens: 1:30\n", "calibration_tokens: 1:30 is no decimal number"),
        ("prune:\n  keep: 0.5\n", r"settings.yaml: .*'prune.keep'"),
        ("1: 2\n", "settings.yaml: .*1"),
    ],
)
def test_files_that_would_take_long_or_say_two_things_are_refused(
    content: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        parse(["--config", str(file)])


def test_numbers_that_people_write_are_read(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("keep: 0.5\nlearning_rate: 1.0e-4\ncalibration_tokens: 1_000\nseed: 0\n")
    config = parse(["--config", str(file), "--model", "x", "--data", "x"])
    assert config.trainer.learning_rate == 1e-4
    assert config.score.calibration_tokens == 1000


def test_a_file_without_end_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match="is a pipe; give a file"):
        parse(["--config", str(pipe)])
    with pytest.raises(ValueError, match="--config /dev/zero is no file of settings"):
        parse(["--config", "/dev/zero"])


@pytest.mark.parametrize(
    ("name", "flags", "value", "in_file"),
    [
        ("keep", ["--keep", "0.4"], 0.4, "0.5"),
        ("keep", ["--keep=0.65"], 0.65, "0.5"),  # the default, given explicitly
        ("recovery_tokens", ["--recovery-tokens", "3M"], 3_000_000, "1B"),
        ("scorer", ["--scorer", "random"], "random", "magnitude"),
        ("fused_ffn", ["--fused-ffn", "false"], False, "true"),
        ("compensate", ["--compensate"], True, "false"),
        ("width_multiple", ["--width-multiple", "auto"], "auto", "64"),
        ("eval_tasks", ["--eval-tasks", "nll"], ["nll"], "[demo_arithmetic]"),
        ("model", ["--model", "mine"], "mine", "theirs"),
        ("preset", ["--preset", "demo"], "demo", "llama3-8b"),
        ("recovery", ["--recovery", "none"], "none", "cpt"),
    ],
)
def test_flags_win_wherever_they_stand(
    name: str, flags: list[str], value: object, in_file: str, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"{name.replace('_', '-')}: {in_file}\n")
    config, preset = ["--config", file], [] if name == "preset" else ["--preset", "demo"]
    for order in ([*flags, *config], [*config, *flags], [f"--config={file}", *flags]):
        assert flat(*order, *preset)[name] == value, order
        assert flat(*preset, *order)[name] == value, order
    assert flat(*config, *preset)[name] != value, "without the flag the file counts"


def test_later_files_override_earlier_ones_and_all_override_the_preset(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("keep: 0.3\nrounds: 2\npreset: demo\n")
    (tmp_path / "b.yaml").write_text("keep: 40%\n")
    given = flat("--config", tmp_path / "a.yaml", "--config", tmp_path / "b.yaml")
    assert [given[name] for name in ("keep", "rounds", "preset")] == [0.4, 2, "demo"]


@pytest.mark.parametrize(
    "flags", [["--data", "x"], ["--keep", "0.4"], ["--data", "x", "--dry-run"], ["--seed", "1"]]
)
def test_the_demo_runs_only_when_it_is_asked_for(flags: list[str]) -> None:
    with pytest.raises(ValueError, match=r"--model is missing: .*--preset demo for the bundled"):
        parse(flags).check()
    for asked in ([], ["--preset", "demo", *flags], ["--dry-run"], ["--overwrite", "--output=x"]):
        assert parse(asked).model.model == "ptl-demo"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--kepe", "0.4"], "there is no setting --kepe; did you mean --keep"),
        (["--keep", "x"], "--keep x: a number is needed"),
        (["--dtype", "bf16"], r"--dtype bf16: auto or .* is needed; did you mean bfloat16\?"),
        (["--steps", "equals"], r"--steps equals: .* did you mean equal\?"),
        (["--recovery-tokens", "3MB"], "--recovery-tokens 3MB: a whole number is needed"),
        (["--preset", "llama-8b"], r"unknown --preset llama-8b; .*did you mean llama3-8b\?"),
    ],
)
def test_a_wrong_name_or_value_comes_with_the_nearest_right_one(
    flags: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse(flags)


def test_a_wrong_name_in_a_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kepe: 0.5\n")
    with pytest.raises(ValueError, match=r"--config .*a.yaml: there is no setting kepe; .* --keep"):
        parse(["--config", str(tmp_path / "a.yaml")])
    with pytest.raises(ValueError, match=r"did you mean .*a.yaml\?"):
        parse(["--config", str(tmp_path / "b.yaml")])


def test_numbers_may_have_units() -> None:
    given = flat(
        "--preset=demo", "--keep", "65%", "--recovery-tokens=1.5M", "--ridge", "1%", "--rounds", "3"
    )
    assert [given[name] for name in ("keep", "recovery_tokens", "ridge", "rounds")] == [
        0.65,
        1_500_000,
        0.01,
        3,
    ]
    config = make_config(preset="demo", keep="65%", calibration_tokens="131k", output="3M")
    assert (config.prune.keep, config.score.calibration_tokens) == (0.65, 131_000)
    assert config.run.output == "3M", "a name stays a name"
    assert make_config(preset="demo", traces_keep="80%").traces.right_share == 0.8
