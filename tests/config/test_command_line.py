"""Flags, files and presets become settings: the later one counts, and a wrong name or type is told
in words.
"""

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
    {"data": ["a"]},
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
    assert main(["--config", str(file)]) == 2
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
    given = flat("--config", file, "--rounds", 2)
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
    ],
)
def test_files_that_would_take_long_or_say_two_things_are_refused(
    content: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        parse(["--config", str(file)])
