"""GPUs of predictions, by name."""

import pytest

from ptl_fast.run.gpus import GPUS, parse_gpus


def test_a_number_and_a_name() -> None:
    assert parse_gpus("4xA100-80GB") == (4, GPUS["A100-80GB"])


@pytest.mark.parametrize("text", ["A100-80GB", "0xA100-80GB", "4xA100", "4"])
def test_anything_else_lists_the_names(text: str) -> None:
    with pytest.raises(ValueError, match=f"--dry-run-gpus {text} is not COUNTxNAME.*A100-40GB"):
        parse_gpus(text)


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(ValueError, match=r"did you mean H100-80GB\?"):
        parse_gpus("1xH100-80G")
