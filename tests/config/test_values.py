"""Values have their setting's type, whoever gives them: Python, NumPy or a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptl_fast.config.config import HINTS
from ptl_fast.config.values import checked, choices, wanted


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keeep": 0.5}, "there is no setting keeep; .*--help lists them"),
        ({"rounds": 1.5}, "rounds=1.5: a whole number is needed"),
        ({"rounds": True}, "rounds=True: a whole number is needed"),
        ({"rounds": "4"}, "rounds='4': a whole number is needed"),
        ({"keep": "half"}, "keep='half': a number is needed"),
        ({"streaming": 1}, "streaming=1: true or false is needed"),
        ({"width_multiple": "x"}, "width_multiple='x': a whole number or auto is needed"),
        ({"eval_tasks": [1]}, "eval_tasks=.1.: a list of texts or text is needed"),
        ({"scorer": Path("output-change")}, "scorer=.*: text is needed"),
    ],
)
def test_a_value_of_another_type_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked(values)


def test_numpys_numbers_become_pythons() -> None:
    values = checked({"rounds": np.int64(3), "keep": np.float32(0.5), "learning_rate": 1})
    assert {name: type(value) for name, value in values.items()} == {
        "rounds": int,
        "keep": float,
        "learning_rate": int,
    }


def test_paths_go_where_paths_are_named() -> None:
    values = {"data": Path("a.jsonl"), "eval_tasks": ["nll"], "recovery_tokens": None}
    assert checked(values) == values


def test_what_is_wanted_in_words() -> None:
    assert wanted(HINTS["rounds"]) == "a whole number"
    assert wanted(HINTS["width_multiple"]) == "a whole number or auto"
    assert wanted(HINTS["attn"]) == "auto or flash_attention_2 or sdpa or eager"


def test_choices_are_words_alone() -> None:
    assert choices("width_multiple") == ["auto"]
    assert choices("steps") == ["proportional", "equal"]
    assert choices("rounds") == []
