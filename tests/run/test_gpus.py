"""GPUs of predictions, by name."""

import pytest

from ptl_fast.base import positive_definite
from ptl_fast.run import gpus
from ptl_fast.run.gpus import GPUS, device_peaks, parse_gpus


def test_a_number_and_a_name() -> None:
    assert parse_gpus("4xA100-80GB") == (4, GPUS["A100-80GB"])


@pytest.mark.parametrize("text", ["A100-80GB", "0xA100-80GB", "4xA100", "4"])
def test_anything_else_lists_the_names(text: str) -> None:
    with pytest.raises(
        ValueError, match=f"--dry-run-gpus {text} is not COUNTxNAME.*A100-40GB.*nor this"
    ):
        parse_gpus(text)


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(ValueError, match=r"did you mean H100-80GB\?"):
        parse_gpus("1xH100-80G")


def test_peaks_of_a_name_or_given() -> None:
    assert device_peaks("--target-device", "H200") == (989, 4800)
    assert device_peaks("--target-device", "0.5/40") == (0.5, 40)
    for text in ("A100", "1/", "0/5", "nan/1", "1/2/3"):
        with pytest.raises(ValueError, match=f"--target-device {text}: choose A100-40GB"):
            device_peaks("--target-device", text)


def test_the_width_up_to_which_all_is_float64_is_that_of_the_solver() -> None:
    assert gpus.NARROW == positive_definite.NARROW
